# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a limit is used, and what some of its connections have of it."""

from __future__ import annotations

import contextlib
import threading
from typing import NamedTuple

from . import limiter
from .connections import borrowed
from .net import Pair, Process
from .scene import WINDOWS, counters, pause
from .slow import SLOW

# As parts of the limit, on a machine that is busy with something else, too. The bench has the exact figures.
USED, BULK, HALF = (0.8, 0.75, 0.3) if SLOW else (0.92, 0.85, 0.42)


class Parts(NamedTuple):
    """Of a limit: what arrived in all, and what of each process's open connections."""

    used: float
    each: tuple[float, ...]


def parts_of(pair: Pair, rate: int, *processes: Process, seconds: float = 1.0) -> Parts:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(borrowed(process.pid)) for process in processes]

        def sent() -> list[int]:
            return [sum(connection.wire_bytes for connection in each) for each in connections]

        before, then = pair.arrived(), sent()
        pause(seconds)
        after, now = pair.arrived(), sent()
    whole = rate * (after.seconds - before.seconds)
    found = Parts((after.bytes - before.bytes) / whole, tuple((new - old) / whole for old, new in zip(then, now)))
    print(f"used {found.used:.3f}, each {[round(part, 3) for part in found.each]}, of {rate} bytes/s; {counters_of()}")
    return found


def assert_parts(
    pair: Pair, rate: int, *least: tuple[Process, float], used: float = USED, seconds: float = 1.0
) -> None:
    """What arrives, and what of each process's connections, is so much of a limit in one of the next windows."""
    shares: list[Parts] = []
    while len(shares) < WINDOWS:
        shares.append(parts_of(pair, rate, *(process for process, _least in least), seconds=seconds))
        if shares[-1].used >= used and all(part >= most[1] for part, most in zip(shares[-1].each, least)):
            return
    raise AssertionError(f"of {rate} bytes/s, in windows of {seconds} s: {shares}")


def counters_of() -> str:
    """What each rule has passed and dropped so far."""
    found = {rule["name"]: rule["counters"] for rule in limiter.info(gather=["rules"])["rules"]}
    return ", ".join(f"{name}: {it['packets']} passed, {it['dropped_packets']} dropped" for name, it in found.items())


class Drops:
    """Packets that one rule has dropped since, as a part of all."""

    def __init__(self, name: str = "paced") -> None:
        self._name, self._before = name, counters(name)

    @property
    def part(self) -> float:
        now = counters(self._name)
        passed, dropped = (now[key] - self._before[key] for key in ("packets", "dropped_packets"))
        print(f"{passed} passed, {dropped} dropped")
        return float(dropped / max(1, passed + dropped))


class Silence:
    """The longest time, in seconds, in which nothing arrives."""

    def __init__(self, pair: Pair) -> None:
        self._pair, self._done = pair, threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.longest = 0.0

    def __enter__(self) -> Silence:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        print(f"silence of {self.longest * 1000:.0f} ms at most")

    def _listen(self) -> None:
        heard = self._pair.arrived()
        while not self._done.wait(0.005):
            latest = self._pair.arrived()
            self.longest = max(self.longest, latest.seconds - heard.seconds)
            if latest.bytes > heard.bytes:
                heard = latest
