# SPDX-License-Identifier: GPL-3.0-or-later
"""A page of many objects from a server whose limit nobody has used for a while."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from .. import asking, traffic
from ..measure import Curve, excess, megabits
from ..meter import metered
from ..shapers import NONE, OURS

Stored = dict[str, Any]
IDLE = 1.2  # seconds: every shaper's bucket is full


class Page(NamedTuple):
    """`bucket`: bytes; None: the default one, a second of the rate, which peers are given, too."""

    shaper: str
    rate: int
    connections: int
    kept: bool
    bucket: int | None = None
    objects: int = 100
    size: int = 10_000
    times: int = 3

    @property
    def what(self) -> str:
        limit = f"{megabits(self.rate)} Mbit/s, " if self.shaper != NONE else ""
        bucket = "default bucket" if self.bucket is None else f"bucket of {8000 * self.bucket / self.rate:g} ms"
        kept = "kept" if self.kept else "new"
        return f"{self.shaper}, {limit}{bucket}, {self.objects} x {self.size} B, {kept} x {self.connections}"


def measure(link: traffic.Link, cell: Page) -> Stored:
    """The median time of some pages, and what they would take at exactly the limit."""
    taken, sizes = [], []
    bucket = cell.rate // 8 if cell.bucket is None and cell.shaper != OURS else cell.bucket
    with metered(link, cell.shaper, cell.rate, bucket) as meter:
        server = asking.Limited(link, meter.cgroup, cell.shaper != NONE)
        loaded = []
        for _time in range(cell.times):
            time.sleep(IDLE)
            asked = server.closed(cell.connections, cell.size, cell.kept, cell.objects)
            visits = asking.visits(asked, wait=True)
            loaded.append((min(visit.at for visit in visits), max(visit.ended for visit in visits)))
        time.sleep(0.1)
        counts = traffic.counts(meter.counter, link.header)
    curve = Curve(counts)
    for begin, end in loaded:
        taken.append((end - begin) / 1e6)
        sizes.append(curve.at(end + 50_000_000) - curve.at(begin - 50_000_000))
    ideal = 8000 * statistics.median(sizes) / cell.rate if cell.rate else float("nan")
    return {
        **cell._asdict(),
        "limit": cell.rate,
        "taken": taken,
        "took": statistics.median(taken),
        "ideal": ideal,
        "excess": round(excess(counts, 0, cell.rate)),
    }


def line(stored: Stored) -> str:
    each = ", ".join(f"{taken:.0f}" for taken in stored["taken"])
    return f"{stored['took'] / stored['ideal']:.2f} of the ideal {stored['ideal']:.0f} ms ({each} ms)"
