# SPDX-License-Identifier: GPL-3.0-or-later
"""Closed loops: workers that ask a limited server again as soon as they have their answer."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import asking, traffic
from ..measure import jain, megabits
from ..meter import metered
from ..shapers import NONE, distant

Stored = dict[str, Any]
# IP bytes that a server sends for a connection beside its answer: SYN-ACK, ACK of the request, FIN, ACK of the other's.
AROUND = 60 + 3 * 52


class Loop(NamedTuple):
    """`size`: of an answer; on kept connections in IP bytes, else what the program sends. `rtt`: milliseconds that the
    way takes there and back.
    """

    shaper: str
    rate: int
    workers: int
    size: int
    kept: bool
    seconds: float = 10.0
    warm_up: float = 2.0
    bucket: int | None = None
    rtt: int = 0

    @property
    def cycle(self) -> float:
        """Milliseconds in which each worker can have one answer at the limit."""
        each = self.size if self.kept else asking.wire(self.size) + AROUND
        return 8000 * self.workers * each / self.rate if self.rate else float("nan")

    @property
    def what(self) -> str:
        limit = f"{megabits(self.rate)} Mbit/s, " if self.shaper != NONE else ""
        kind = "kept connections" if self.kept else "workers, a connection for each request,"
        away = f", {self.rtt} ms away" if self.rtt else ""
        return f"{self.shaper}, {limit}{self.workers} {kind} of {self.size} B{away}"


def measure(link: traffic.Link, cell: Loop) -> Stored:
    with distant(link.pair, cell.rtt), metered(link, cell.shaper, cell.rate, cell.bucket) as meter:
        server = asking.Limited(link, meter.cgroup, cell.shaper != NONE)
        size = asking.payload(cell.size) if cell.kept else cell.size
        asked = server.closed(cell.workers, size, cell.kept)
        before = _waited(server.program, asked)
        window = meter.window(cell.warm_up, cell.seconds)
        waited = _waited(server.program, asked) - before
        visits = asking.visits(asked)
    found = asking.latencies(visits, window.begin, window.end)
    return {
        **cell._asdict(),
        "limit": cell.rate,
        "cycle": cell.cycle,
        **window.figures(),
        **found._asdict(),
        "waited": waited,
        "jain": jain(asking.answers_by_worker(visits, window.begin, window.end, cell.workers)),
    }


def _waited(*ends: traffic.Program) -> int:
    """How often TCP has waited in vain for an answer so far, and how often not long enough; at both ends."""
    return sum(traffic.timeouts(end, name) for end in ends for name in ("TCPTimeouts", "TCPSpuriousRTOs"))


def line(stored: Stored) -> str:
    used = f"used {stored['used'] / stored['limit']:.3f}" if stored["limit"] else f"{stored['used'] / 1e6:.1f} Mbit/s"
    each = stored["used"] * stored["seconds"] / 8 / stored["answers"] if stored["answers"] else 0
    return (
        f"{used}, cycle {stored['cycle']:.1f} ms, p50 {stored['p50']:.1f}, p90 {stored['p90']:.1f}, "
        f"p99 {stored['p99']:.1f}, max {stored['longest']:.1f} ms of {stored['answers']} ({each:.0f} B each, "
        f"{stored['failed']} failed), Jain {stored['jain']:.3f}, {stored['drops']:.2f} drops in 1,000"
    )
