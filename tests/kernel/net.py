# SPDX-License-Identifier: GPL-3.0-or-later
"""Two network namespaces joined by a veth pair, processes in them, and what really arrived."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

TRAFFIC = Path(__file__).resolve().parent / "traffic.py"
ETHERNET_HEADER = 14
PORT = 5000
DEADLINE = 30.0  # seconds after which anything here counts as hanging


class Sent(NamedTuple):
    """A sender's own account: bytes given to the kernel, and errors by errno's name."""

    bytes: int
    errors: dict[str, int]


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

    def result(self) -> Sent:
        output, _errors = self.process.communicate(timeout=DEADLINE)
        answer = json.loads(output)
        return Sent(answer["sent"], answer["errors"])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Pair:
    """A sending and a receiving namespace. Use as a context manager: leaving it removes all that it made.

    Offloads are off unless asked for: veth passes GSO packets on whole, and the receiver's count then lacks the headers
    of all segments but the first.
    """

    address, address6 = "10.255.0.2", "fd00:255::2"

    def __init__(self, offloads: bool = False, mtu: int = 1500) -> None:
        self.sender, self.receiver = f"sl-s{os.getpid()}", f"sl-r{os.getpid()}"
        self.processes: list[Process] = []
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
                run(*inside, "ethtool", "-K", "veth0", "tso", "off", "gso", "off", "gro", "off")

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for namespace in (self.sender, self.receiver):
            run("ip", "netns", "delete", namespace)

    def start(self, namespace: str, *arguments: str, cgroup: Path | None = None, cpu: int | None = None) -> Process:
        """Starts a program of traffic.py in a namespace and, before it makes any socket, in a cgroup and on a CPU."""

        def place() -> None:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text("0", encoding="ascii")
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        command = ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, str(TRAFFIC), *arguments]
        process = Process(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=place))
        self.processes.append(process)
        return process

    def receive(self, address: str = address, port: int = PORT) -> Process:
        return self.start(self.receiver, "receive", address, str(port))

    def send_tcp(self, seconds: float, connections: int = 1, congestion: str = "cubic", **where: Any) -> Process:
        address = where.pop("address", self.address)
        return self.start(self.sender, "tcp", address, str(PORT), str(seconds), str(connections), congestion, **where)

    def send_udp(self, seconds: float, rate: int, size: int = 1400, option: str = "", **where: Any) -> Process:
        """Offers `rate` bytes of payload a second."""
        address = where.pop("address", self.address)
        return self.start(self.sender, "udp", address, str(PORT), str(seconds), str(rate), str(size), option, **where)

    def arrived(self) -> Arrived:
        link = json.loads(run("ip", "-n", self.receiver, "-s", "-s", "-j", "link", "show", "veth0"))[0]["stats64"]["rx"]
        return Arrived(time.monotonic(), link["bytes"] - ETHERNET_HEADER * link["packets"], link["packets"])


def run(*command: str) -> str:
    """A command's output; a failure carries its own message."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.strip()}")
    return done.stdout
