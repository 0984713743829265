# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit that changes under a running connection: silences, and how soon the new one holds."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any, NamedTuple

from ansible_collections.speed_limiter.ebpf.tests.support import limiter

from .. import shapers, traffic
from ..measure import SECOND, Curve, megabits
from ..meter import metered
from ..shapers import OURS

Stored = dict[str, Any]
PAUSE_MS = 2  # between counts
SETTLED = 0.5  # seconds after which silences count
RAISED = 0.3  # after which the new limit is to hold
LOOK = 0.5  # for how long that is looked at


class Change(NamedTuple):
    """`rates`: one after the other; each holds for `seconds`."""

    shaper: str
    rates: tuple[int, ...]
    congestion: str = "cubic"
    seconds: float = 4.0

    @property
    def what(self) -> str:
        return f"{self.shaper}, {self.congestion}, {' to '.join(megabits(rate) for rate in self.rates)} Mbit/s"


def measure(link: traffic.Link, cell: Change) -> Stored:
    with metered(link, cell.shaper, cell.rates[0]) as meter:
        meter.counter.kill()
        counter = link.count(PAUSE_MS)
        link.tcp(1, cell.congestion, cgroup=meter.cgroup)
        time.sleep(cell.seconds)
        moments = []
        for rate in cell.rates[1:]:
            if cell.shaper == OURS:
                limiter.rule(name=shapers.RULE, rate=str(rate // 8))
            else:
                shapers.change(cell.shaper, link.pair, rate)
            moments.append(time.monotonic_ns())
            time.sleep(cell.seconds)
        counts = traffic.counts(counter, link.header)
    steps = [_step(counts, moment, cell.seconds, *rates) for moment, rates in zip(moments, pairwise(cell.rates))]
    return {**cell._asdict(), "limit": cell.rates[0], "steps": steps}


def _step(counts: list[traffic.Count], moment: int, seconds: float, before: int, rate: int) -> Stored:
    curve, end = Curve(counts), moment + int(seconds * SECOND)
    raised = moment + int(RAISED * SECOND)
    return {
        "before": before,
        "rate": rate,
        "silence": _longest_silence(counts, moment + int(SETTLED * SECOND), end),
        "first": curve.rate(moment, raised),
        "then": curve.rate(raised, raised + int(LOOK * SECOND)),
        "rest": curve.rate(moment + SECOND, end),
    }


def _longest_silence(counts: list[traffic.Count], begin: int, end: int) -> float:
    """Milliseconds in which nothing arrived; one that lasts until the end counts as far as it was seen."""
    longest, last, arrived = 0, begin, -1
    for at, count in counts:
        if not begin <= at <= end:
            continue
        if count != arrived:
            last, arrived = at, count
        longest = max(longest, at - last)
    return longest / 1e6


def line(stored: Stored) -> str:
    return "; ".join(
        f"{megabits(step['before'])} to {megabits(step['rate'])}: silent for {step['silence']:.0f} ms, "
        f"{step['first'] / step['rate']:.2f} in 0.3 s, {step['then'] / step['rate']:.2f} in the next 0.5 s, "
        f"{step['rest'] / step['rate']:.3f} after the first second"
        for step in stored["steps"]
    )
