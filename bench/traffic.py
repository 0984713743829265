# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic between two namespaces: the programs of send.c and receive.c, in a cgroup and on a CPU, and their records."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from ansible_collections.speed_limiter.ebpf.tests.support import net

PORT, ECHO_PORT = 6000, 6001
DEADLINE = 20.0  # seconds after which a program counts as hanging


class Count(NamedTuple):
    """What a device had received at a moment, in nanoseconds; IP bytes."""

    at: int
    bytes: int


class Sample(NamedTuple):
    """TCP_INFO of a connection at a moment, in nanoseconds."""

    at: int
    connection: int
    rtt_us: int
    acked: int  # bytes of payload
    segments: int
    retransmits: int
    segment_bytes: int
    broken: int  # connections that the kernel has given up so far


class Ping(NamedTuple):
    at: int
    nanoseconds: int


class Program:
    """One program of send.c or receive.c that has said that it is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        words = _first_line(process.stdout.fileno()).split()
        if not words or words[0] != "ready":
            self.kill()
            raise RuntimeError(f"not ready: {process.args!r}")
        self.began = int(words[1])

    def finish(self) -> list[list[int]]:
        """Stops it; the lines that it recorded."""
        self.process.terminate()
        output, _errors = self.process.communicate(timeout=DEADLINE)
        if self.process.returncode:
            raise RuntimeError(f"failed: {self.process.args!r}")
        return [[int(word) for word in line.split()] for line in output.splitlines()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _first_line(descriptor: int) -> str:
    """No more than that: of what a program says soon after, nothing must stay in a buffer."""
    line = b""
    while not line.endswith(b"\n") and select.select([descriptor], [], [], DEADLINE)[0]:
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode()


class Ends(Protocol):
    """Two namespaces, whose devices towards each other are veth0, and their addresses."""

    sender: str
    receiver: str
    address: str
    sender_address: str


class Link:
    """A sending and a receiving end: two namespaces, or the loopback device of the sender."""

    def __init__(self, pair: Ends, programs: Path, loopback: bool = False, counted: bool = True) -> None:
        self.pair, self.programs, self.loopback = pair, programs, loopback
        self.address = "127.0.0.1" if loopback else pair.address
        self.device = "lo" if loopback else "veth0"
        self.receiving = pair.sender if loopback else pair.receiver
        # The loopback device counts without it; it also carries the receiver's acknowledgements, 0.1 % of the bytes.
        self.header = 0 if loopback else net.ETHERNET_HEADER
        self.counted = counted
        self.running: list[Program] = []

    def start(
        self, namespace: str, program: str, *arguments: str, cgroup: Path | None = None, cpu: int | None = None
    ) -> Program:
        """Starts a program in a namespace and, before it makes any socket, in a cgroup and on a CPU."""

        def place() -> None:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text("0", encoding="ascii")
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        command = ["nsenter", f"--net=/run/netns/{namespace}", str(self.programs / program), *arguments]
        started = Program(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=place))
        self.running.append(started)
        return started

    @contextmanager
    def receiver(self, cpu: int | None = None, hurry: bool = True, echo: bool = True) -> Iterator[None]:
        """While there is a receiver and an echo; whatever was started meanwhile ends with them."""
        try:
            self.start(self.receiving, "receive", "sink", self.address, str(PORT), cpu=cpu)
            if echo:
                self.start(self.receiving, "receive", "echo", self.address, str(ECHO_PORT), str(int(hurry)), cpu=cpu)
            yield
        finally:
            while self.running:
                self.running.pop().kill()

    def count(self, pause_ms: int = 10) -> Program:
        return self.start(self.receiving, "receive", "count", self.device, str(pause_ms))

    def tcp(
        self, connections: int, congestion: str, rate: int = 0, cgroup: Path | None = None, cpu: int | None = None
    ) -> Program:
        """`rate`: bytes per second of payload of all connections, where the program itself limits them."""
        limited = (str(rate),) if rate else ()
        where = (self.address, str(PORT), str(connections), congestion, *limited)
        return self.start(self.pair.sender, "send", "tcp", *where, cgroup=cgroup, cpu=cpu)

    def ping(self, pause_us: int, cgroup: Path | None = None, cpu: int | None = None) -> Program:
        """`pause_us`: between an answer and the next; 0 also runs without priority, since it would keep the CPU."""
        where = (self.address, str(ECHO_PORT), str(pause_us))
        return self.start(self.pair.sender, "send", "ping", *where, cgroup=cgroup, cpu=cpu)

    def udp(
        self, rate: int, cgroup: Path | None = None, cpu: int | None = None, sizes: tuple[int, ...] = ()
    ) -> Program:
        """`rate`: bytes per second of IP; `sizes`: of the payload, and of what the kernel cuts it into."""
        where = (self.address, str(PORT), str(rate), *map(str, sizes))
        return self.start(self.pair.sender, "send", "udp", *where, cgroup=cgroup, cpu=cpu)


def timeouts(program: Program, name: str = "TCPTimeouts") -> int:
    """TCP's retransmission timeouts, or another of its counters, in the namespace of a running program, so far."""
    table = Path(f"/proc/{program.process.pid}/net/netstat").read_text(encoding="ascii").splitlines()
    names, values = (line.split() for line in table if line.startswith("TcpExt:"))
    return int(values[names.index(name)])


def counts(program: Program, header: int = net.ETHERNET_HEADER) -> list[Count]:
    """The record of Link.count(), without the link layer's header."""
    return [Count(at, received - header * packets) for at, received, packets in program.finish()]


def samples(program: Program) -> list[Sample]:
    """The record of Link.tcp()."""
    return [Sample(*line) for line in program.finish()]


def pings(program: Program) -> list[Ping]:
    """The record of Link.ping()."""
    return [Ping(*line) for line in program.finish()]
