# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a limit is used in a window of time, and how much is dropped for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from . import traffic
from .measure import Curve, acknowledged, per_connection
from .shapers import passed_and_dropped, shaped


class Window(NamedTuple):
    begin: int  # nanoseconds
    end: int
    rate: float  # bits per second of IP at the receiver
    passed: int  # packets
    dropped: int

    @property
    def drops(self) -> float:
        """Of 1,000 packets."""
        return 1000 * self.dropped / max(1, self.passed + self.dropped)


class Meter:
    """What passes a shaper, in whose cgroup senders are to be started."""

    def __init__(self, link: traffic.Link, shaper: str, cgroup: Path, pause_ms: int = 10) -> None:
        self.link, self.shaper, self.cgroup = link, shaper, cgroup
        self.counter = link.count(pause_ms)

    def window(self, warm_up: float, seconds: float) -> Window:
        """Once: the counter ends with it."""
        time.sleep(warm_up)
        begin, before = time.monotonic_ns(), passed_and_dropped(self.shaper, self.link.pair)
        time.sleep(seconds)
        end, after = time.monotonic_ns(), passed_and_dropped(self.shaper, self.link.pair)
        curve = Curve(traffic.counts(self.counter, self.link.header))
        return Window(begin, end, curve.rate(begin, end), after[0] - before[0], after[1] - before[1])


@contextmanager
def metered(link: traffic.Link, shaper: str, rate: int, bucket: int | None = None) -> Iterator[Meter]:
    """While a shaper limits a cgroup, and there is a receiver."""
    with ExitStack() as stack:
        cgroup = stack.enter_context(shaped(shaper, link.pair, rate, bucket))
        stack.enter_context(link.receiver(echo=False))
        yield Meter(link, shaper, cgroup)


def shares(bulk: traffic.Program | None, window: Window) -> list[float]:
    """Bits per second of IP of each connection."""
    if bulk is None:
        return []
    return [acknowledged(pair) for pair in per_connection(traffic.samples(bulk), window.begin, window.end)]
