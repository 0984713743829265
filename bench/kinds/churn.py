# SPDX-License-Identifier: GPL-3.0-or-later
"""Bulk connections beside new ones that come and go, as many a second whatever becomes of those before."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import asking, traffic
from ..measure import megabits
from ..meter import metered, shares
from ..shapers import NONE

Stored = dict[str, Any]
CLIENT, SERVER = "client", "server"
# IP bytes that the limited end of a connection sends beside its data: a client SYN, ACK, FIN, ACK; a server SYN-ACK and
# FIN, and if it was asked for something two ACKs more.
_CLIENT, _SERVER, _ASKED = 60 + 3 * 52, 60 + 52, 2 * 52


class Churn(NamedTuple):
    """`where`: which end is limited. A client sends `size` bytes on each connection, a server answers with them."""

    shaper: str
    rate: int
    where: str
    per_second: int
    size: int
    bulk: int = 1
    congestion: str = "cubic"
    seconds: float = 10.0
    warm_up: float = 2.0

    @property
    def wanted(self) -> int:
        """Bits per second of the short connections."""
        around = _CLIENT if self.where == CLIENT else _SERVER + (_ASKED if self.size else 0)
        return 8 * self.per_second * (around + asking.wire(self.size))

    @property
    def what(self) -> str:
        limit = f"{megabits(self.rate)} Mbit/s, " if self.shaper != NONE else ""
        return (
            f"{self.shaper}, {limit}{self.bulk} bulk, {self.congestion}, beside {self.per_second} a second of "
            f"{self.size} B, limited {self.where}"
        )


def measure(link: traffic.Link, cell: Churn) -> Stored:
    with metered(link, cell.shaper, cell.rate) as meter:
        hurry = cell.shaper != NONE
        short = None
        bulk = link.tcp(cell.bulk, cell.congestion, cgroup=meter.cgroup) if cell.bulk else None
        if cell.per_second and cell.where == CLIENT:
            short = asking.visitors(link, meter.cgroup, cell.per_second, cell.size, hurry)
        elif cell.per_second:
            short = asking.Limited(link, meter.cgroup, hurry).open(cell.per_second, cell.size)
        window = meter.window(cell.warm_up, cell.seconds)
        found = asking.latencies(asking.visits(short) if short else [], window.begin, window.end)
        of_bulk = sum(shares(bulk, window))
    return {
        **cell._asdict(),
        "limit": cell.rate,
        **window.figures(),
        "bulk_rate": of_bulk,
        "wanted": cell.wanted,
        "made": found.answers / cell.seconds,
        "failed": found.failed,
        "p50": found.p50,
        "p99": found.p99,
    }


def line(stored: Stored) -> str:
    # Without a limit: of all.
    limit = stored["limit"] or stored["used"]
    return (
        f"used {stored['used'] / limit:.3f}, bulk {stored['bulk_rate'] / limit:.3f}, the others leave "
        f"{1 - stored['wanted'] / limit:.3f}; {stored['made']:.0f} a second, {stored['failed']} failed, "
        f"p50 {stored['p50']:.1f} p99 {stored['p99']:.1f} ms; {stored['drops']:.2f} drops in 1,000"
    )
