# SPDX-License-Identifier: GPL-3.0-or-later
"""A playbook as users write it, on localhost: foretold in check mode, run, run again, and purged, beside a process that
sends UDP packets all the while; counted is what arrives of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.tests.support import net
from ansible_collections.speed_limiter.ebpf.tests.vm.steps.step import BUILT, PINS, Step, Wrong, main

RATE, BUCKET = 10_000, 10_000  # bytes per second, bytes
# Bytes per second, which leave a slow guest time for Ansible; bytes of each packet without its headers.
OFFERED, SIZE = 100_000, 1400
HEADERS = 28  # IP and UDP
SECONDS = 4.0


class Receiver(threading.Thread):
    """Counts the bytes of IP packets that come to a port of its own."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port, self.bytes = self.socket.getsockname()[1], 0

    def run(self) -> None:
        while True:
            self.bytes += len(self.socket.recv(65536)) + HEADERS

    def catch_up(self) -> None:
        """Waits until nothing is left in the buffer of what came earlier."""
        waiting = bytearray(b"more")
        while any(waiting):
            time.sleep(0.1)
            fcntl.ioctl(self.socket, termios.FIONREAD, waiting)

    def during(self, seconds: float) -> tuple[int, float]:
        """Bytes that came, and in how many seconds."""
        begin, before = time.monotonic(), self.bytes
        time.sleep(seconds)
        return self.bytes - before, time.monotonic() - begin


@contextlib.contextmanager
def sender(port: int) -> Iterator[int]:
    """The pid of a process that sends for good."""
    words = ["udp", "127.0.0.1", str(port), "100000", str(OFFERED), str(SIZE)]
    process = subprocess.Popen([*net.TRAFFIC, *words], stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def traces() -> list[str]:
    """What there is of the collection on this host."""
    places = (PINS, BUILT.parent, cgroup2() / "speed_limiter", Path("/run/speed_limiter"))
    return [str(place) for place in places if place.exists()]


def cgroup2() -> Path:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="ascii").splitlines()
    return Path(next(line.split()[4] for line in mounts if " - cgroup2 " in line))


def most(seconds: float) -> float:
    """What may pass of a rule: the rate, a bucket, and a packet that makes a debt."""
    return RATE * seconds + BUCKET + SIZE + HEADERS


class Playbook(Step):
    """The step, with the sender's pid and the receiver."""

    pid: int
    receiver: Receiver

    def play(self, name: str, *arguments: str) -> dict[str, int]:
        """What each play changed."""
        rules = [
            {"name": "sender", "rate": RATE, "bucket": BUCKET, "pid": self.pid},
            {"name": "nobody", "rate": "20m"},
        ]
        return self.playbook(name, *arguments, rules=rules)

    def home(self) -> str:
        """The sender's cgroup."""
        return Path(f"/proc/{self.pid}/cgroup").read_text(encoding="ascii")

    def observe(self, when: str) -> None:
        """While the rule holds."""
        self.receiver.catch_up()
        came, seconds = self.receiver.during(SECONDS)
        self.found["limited_bps"] = 8 * came / seconds
        print(f"{when} to {8 * RATE / 1000:.0f} kbit/s: {8 * came / seconds / 1000:.0f} kbit/s arrive", flush=True)
        if not 0 < came <= most(seconds):
            raise Wrong(f"{came} bytes came in {seconds:.2f} s through a rule that allows {most(seconds):.0f}")

    def unlimited(self, when: str) -> None:
        """Else what the rule lets through would prove nothing."""
        came, seconds = self.receiver.during(SECONDS)
        self.found[f"{when}_bps"] = 8 * came / seconds
        print(f"{when}: {8 * came / seconds / 1000:.0f} kbit/s arrive", flush=True)
        if came <= 2 * most(seconds):
            raise Wrong(f"{when}: the sender gets only {came} bytes through in {seconds:.1f} s")


def work(step: Playbook) -> None:
    step.receiver = Receiver()
    step.receiver.start()
    with sender(step.receiver.port) as step.pid:
        home = step.home()
        step.unlimited("before")

        changes = step.play("foretell", "--check", "--diff")
        if not changes["Foretell"] or not any(line.startswith("+") and "sender" in line for line in step.output):
            raise Wrong(f"check mode foretells no rule, or does not show it: {changes}")
        if traces() or step.home() != home:
            raise Wrong(f"check mode touched the host: {traces()}")

        changes = step.play("playbook")
        if not changes["Limit"] or changes["Again"] or not changes["Purge"]:
            raise Wrong(f"the playbook, the same again, or the purge changed nothing or too much: {changes}")
        left = [trace for trace in traces() if trace not in (str(BUILT.parent), "/run/speed_limiter")]
        if left or step.home() != home:
            raise Wrong(f"the purge left {left}, or the sender where it was: {step.home()}")
        step.unlimited("after")


main("playbook", work, Playbook)
