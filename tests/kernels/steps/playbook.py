# SPDX-License-Identifier: GPL-3.0-or-later
"""A playbook as users write it, on localhost: foretold in check mode, run, run again, and purged, beside a process that
sends UDP packets all the while; counted is what arrives of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from step import BUILT, PINS, ROOT, Step, Wrong, main

RATE, BUCKET = 125_000, 25 * 1024  # bytes, as in playbook.yml
OFFERED, SIZE = 2_000_000, 1400  # bytes per second, bytes of each packet without its headers
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

    def during(self, seconds: float) -> tuple[int, float]:
        """Bytes that came, and in how many seconds."""
        begin, before = time.monotonic(), self.bytes
        time.sleep(seconds)
        return self.bytes - before, time.monotonic() - begin


@contextlib.contextmanager
def sender(port: int) -> Iterator[int]:
    """The pid of a process that sends for good."""
    words = ["udp", "127.0.0.1", str(port), "100000", str(OFFERED), str(SIZE)]
    traffic = str(ROOT / "tests" / "kernel" / "traffic.py")
    process = subprocess.Popen([sys.executable, traffic, *words], stdout=subprocess.DEVNULL)
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


def unlimited(step: Step, receiver: Receiver, when: str) -> None:
    came, seconds = receiver.during(SECONDS)
    step.found[f"{when}_bps"] = 8 * came / seconds
    print(f"{when}: {8 * came / seconds / 1e6:.2f} Mbit/s arrive")
    # Else what comes later would prove nothing.
    if came <= 2 * most(seconds):
        raise Wrong(f"{when}: the sender gets only {came} bytes through in {seconds:.1f} s")


def most(seconds: float) -> float:
    """What may pass of a rule: the rate, a bucket, and a packet that makes a debt."""
    return RATE * seconds + BUCKET + SIZE + HEADERS


def play(step: Step, pid: int, *arguments: str) -> dict[str, int]:
    """The counts of one run. A quick one neither looks for packages nor compiles; the object step has done that."""
    shared = step.options["shared_object"]
    quick: dict[str, object] = {"setup_manage_packages": False}
    if Path(shared).exists():
        quick.update(setup_object_from="file", setup_object=shared)
    return step.playbook("playbook", *arguments, pid=pid, **(quick if step.options["quick"] else {}))


def work(step: Step) -> None:
    receiver = Receiver()
    receiver.start()
    with sender(receiver.port) as pid:
        home = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii")
        unlimited(step, receiver, "before")

        counts = play(step, pid, "--check", "--diff")
        if not counts["changed"] or not any(line.startswith("+") and "sender" in line for line in step.output):
            raise Wrong(f"check mode foretells no rule, or does not show it: {counts}")
        if traces() or Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii") != home:
            raise Wrong(f"check mode touched the host: {traces()}")

        if not play(step, pid)["changed"]:
            raise Wrong("the playbook changed nothing")
        time.sleep(1)  # what waits in the receiver's buffer from before
        came, seconds = receiver.during(SECONDS)
        step.found["limited_bps"] = 8 * came / seconds
        print(f"limited to {8 * RATE / 1e6:.2f} Mbit/s: {8 * came / seconds / 1e6:.2f} Mbit/s arrive")
        if not 0 < came <= most(seconds):
            raise Wrong(f"{came} bytes came in {seconds:.2f} s through a rule that allows {most(seconds):.0f}")

        counts = play(step, pid)
        if counts["changed"]:
            raise Wrong(f"the second run changed something: {step.last()} {counts}")

        if not step.playbook("purge")["changed"]:
            raise Wrong("the purge changed nothing")
        left = [trace for trace in traces() if trace not in (str(BUILT.parent), "/run/speed_limiter")]
        if left or Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii") != home:
            raise Wrong(f"the purge left {left}, or the sender where it was: {os.listdir('/run')}")
        unlimited(step, receiver, "after")


main("playbook", work)
