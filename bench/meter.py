# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a limit is used in a window of time, how much is dropped for it, and how busy the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from . import traffic
from .measure import SECOND, Curve, acknowledged, busy, excess, per_connection
from .shapers import passed_and_dropped, shaped


class Window(NamedTuple):
    begin: int  # nanoseconds
    end: int
    rate: float  # bits per second of IP at the receiver
    passed: int  # packets
    dropped: int
    busy: float  # the part of all CPUs' time in which they worked
    excess: float  # bytes, since the counter began: see measure.excess()

    def figures(self) -> dict[str, Any]:
        """What every kind of cell keeps of it; drops of 1,000 packets."""
        drops = 1000 * self.dropped / max(1, self.passed + self.dropped)
        return {"used": self.rate, "drops": drops, "busy": round(self.busy, 3), "excess": round(self.excess)}


class Meter:
    """What passes a shaper, in whose cgroup senders are to be started."""

    def __init__(self, link: traffic.Link, shaper: str, rate: int, cgroup: Path, pause_ms: int = 10) -> None:
        self.link, self.shaper, self.rate, self.cgroup = link, shaper, rate, cgroup
        self.counter = link.count(pause_ms)

    def window(self, warm_up: float, seconds: float) -> Window:
        """Once: the counter ends with it."""
        time.sleep(warm_up)
        begin, worked, before = time.monotonic_ns(), busy(), passed_and_dropped(self.shaper, self.link.pair)
        time.sleep(seconds)
        end, worked, after = time.monotonic_ns(), busy() - worked, passed_and_dropped(self.shaper, self.link.pair)
        counts = traffic.counts(self.counter, self.link.header)
        return Window(
            begin,
            end,
            rate=Curve(counts).rate(begin, end),
            passed=after[0] - before[0],
            dropped=after[1] - before[1],
            busy=worked * SECOND / (end - begin) / (os.cpu_count() or 1),
            excess=excess(counts, 0, self.rate),
        )


@contextmanager
def metered(link: traffic.Link, shaper: str, rate: int, bucket: int | None = None) -> Iterator[Meter]:
    """While a shaper limits a cgroup, and there is a receiver."""
    with ExitStack() as stack:
        cgroup = stack.enter_context(shaped(shaper, link.pair, rate, bucket))
        stack.enter_context(link.receiver(echo=False))
        yield Meter(link, shaper, rate, cgroup)


def shares(bulk: traffic.Program | None, window: Window) -> list[float]:
    """Bits per second of IP of each connection."""
    if bulk is None:
        return []
    return [acknowledged(pair) for pair in per_connection(traffic.samples(bulk), window.begin, window.end)]
