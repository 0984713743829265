# SPDX-License-Identifier: GPL-3.0-or-later
"""Two network namespaces joined by a veth pair, processes in them, and what really arrived."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .slow import SLOW

TRAFFIC = (sys.executable, "-m", f"{__package__}.traffic")
ETHERNET_HEADER = 14
PORT = 5000
OFFLOADS_OFF = ("tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off")
DEADLINE = 90.0 if SLOW else 30.0  # seconds after which anything here counts as hanging


LONG = 300.0  # seconds: until it is stopped
_numbers = itertools.count()


class Sent(NamedTuple):
    """A sender's own account: bytes given to the kernel, and errors by errno's name."""

    bytes: int
    errors: dict[str, int]
    round_trips: tuple[float, ...] = ()  # milliseconds


class Arrived(NamedTuple):
    """IP bytes and packets at the receiver's interface up to a moment of CLOCK_MONOTONIC, in seconds."""

    seconds: float
    bytes: int
    packets: int


class Process:
    """A program of traffic.py that has said that it is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], DEADLINE)[0] or process.stdout.readline() != "ready\n":
            process.kill()
            raise RuntimeError(f"not ready: {process.args!r}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def finish(self) -> Sent:
        """Stops a sender before its time."""
        self.process.terminate()
        return self.result()

    def result(self) -> Sent:
        """A sender's account, once it has ended."""
        output, _errors = self.process.communicate(timeout=DEADLINE)
        answer = json.loads(output)
        return Sent(answer["sent"], answer["errors"], tuple(answer["round_trips"]))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Pair:
    """A sending and a receiving namespace. Use as a context manager: leaving it removes all that it made.

    Offloads are off unless asked for: veth passes GSO packets on whole, and the receiver's count then lacks the headers
    of all segments but the first. Without receivers, whoever measures brings their own.
    """

    address, address6 = "10.255.0.2", "fd00:255::2"
    sender_address, sender_address6 = "10.255.0.1", "fd00:255::1"

    def __init__(self, offloads: bool = False, mtu: int = 1500, receivers: bool = True) -> None:
        number = next(_numbers)
        self.sender, self.receiver = f"send-{os.getpid()}-{number}", f"receive-{os.getpid()}-{number}"
        self.senders: list[Process] = []
        for namespace in (self.sender, self.receiver):
            run("ip", "netns", "add", namespace)
        run("ip", "link", "add", "veth0", "netns", self.sender, "type", "veth", "peer", "veth0", "netns", self.receiver)
        for namespace, host in ((self.sender, 1), (self.receiver, 2)):
            here = ("ip", "-n", namespace)
            run(*here, "address", "add", f"10.255.0.{host}/24", "dev", "veth0")
            run(*here, "address", "add", f"fd00:255::{host}/64", "dev", "veth0", "nodad")
            run(*here, "link", "set", "veth0", "mtu", str(mtu), "up")
            run(*here, "link", "set", "lo", "up")
            if not offloads:
                inside = ("nsenter", f"--net=/run/netns/{namespace}")
                run(*inside, "ethtool", "-K", "veth0", *OFFLOADS_OFF)
        addresses = (self.address, self.address6) if receivers else ()
        self.receivers = [self.start(self.receiver, "receive", address, str(PORT)) for address in addresses]

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for process in self.receivers:
            process.kill()
        for namespace in (self.sender, self.receiver):
            run("ip", "netns", "delete", namespace)

    def stop(self) -> None:
        """Kills all senders."""
        while self.senders:
            self.senders.pop().kill()

    def start(self, namespace: str, *arguments: str, cgroup: Path | None = None, cpu: int | None = None) -> Process:
        """Starts a program of traffic.py in a namespace and, before it makes any socket, in a cgroup and on a CPU."""

        def place() -> None:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text("0", encoding="ascii")
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        command = ["nsenter", f"--net=/run/netns/{namespace}", *TRAFFIC, *arguments]
        return Process(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=place))

    def _send(self, *arguments: str, **where: Any) -> Process:
        sender = self.start(self.sender, *arguments, **where)
        self.senders.append(sender)
        return sender

    def send_tcp(self, seconds: float = LONG, connections: int = 1, congestion: str = "cubic", **where: Any) -> Process:
        address = where.pop("address", self.address)
        return self._send("tcp", address, str(PORT), str(seconds), str(connections), congestion, **where)

    def send_udp(self, rate: int, seconds: float = LONG, size: int = 1400, option: str = "", **where: Any) -> Process:
        """Offers `rate` bytes of payload a second; what it had no time for, it sends later."""
        address = where.pop("address", self.address)
        return self._send("udp", address, str(PORT), str(seconds), str(rate), str(size), option, **where)

    def traffic(self, *arguments: object, namespace: str = "", **where: Any) -> Process:
        """Any program of traffic.py, where senders are unless another namespace is named; stopped with them."""
        started = self.start(namespace or self.sender, *map(str, arguments), **where)
        self.senders.append(started)
        return started

    def tcp_counter(self, name: str = "TCPTimeouts") -> int:
        """Of a sender's TCP since the namespace was made: how often it has waited in vain for an answer, or another."""
        text = run("nsenter", f"--net=/run/netns/{self.sender}", "cat", "/proc/net/netstat")
        names, numbers = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
        return int(numbers[names.index(name)])

    def arrived(self) -> Arrived:
        """Read through the receiver's /proc: no process to start, so time and count belong together on any machine."""
        while True:
            begin = time.monotonic()
            with open(f"/proc/{self.receivers[0].pid}/net/dev", encoding="ascii") as file:
                line = next(line for line in file if line.lstrip().startswith("veth0:"))
            now = time.monotonic()
            if now - begin < 0.001:
                received, packets = (int(field) for field in line.partition(":")[2].split()[:2])
                return Arrived(now, received - ETHERNET_HEADER * packets, packets)


@contextlib.contextmanager
def setting(pair: Pair, name: str, value: str) -> Iterator[None]:
    """One of net.ipv4's, in both namespaces."""
    inside = [("nsenter", f"--net=/run/netns/{namespace}", "sysctl") for namespace in (pair.sender, pair.receiver)]
    before = run(*inside[0], "-n", f"net.ipv4.{name}").strip()
    for where in inside:
        run(*where, "-w", f"net.ipv4.{name}={value}")
    try:
        yield
    finally:
        for where in inside:
            run(*where, "-w", f"net.ipv4.{name}={before}")


def run(*command: str) -> str:
    """A command's output; a failure carries its own message."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.strip()}")
    return done.stdout
