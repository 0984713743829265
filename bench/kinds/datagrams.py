# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP beside datagrams of all sizes."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from .. import traffic
from ..measure import acknowledged, median_rtt, megabits, per_connection
from ..meter import metered

Stored = dict[str, Any]
GSO = 63_000  # given to the kernel at once, to be cut into datagrams of
GSO_SEGMENT = 1400
_HEADERS, _FRAGMENT = 28, 1480


class Datagrams(NamedTuple):
    """`size`: bytes of payload; GSO: cut by the kernel. `factor`: of the limit, offered by two CPUs."""

    shaper: str
    rate: int
    size: int
    factor: float
    seconds: float = 10.0
    warm_up: float = 2.0
    connections: int = 1

    @property
    def kind(self) -> str:
        return "GSO" if self.size == GSO else f"{self.size} B"

    @property
    def fragments(self) -> float:
        """What the headers of fragments add, which are made after the hook: a part of the datagram."""
        if self.size == GSO:
            return 0.0
        return 20 * (-(-(self.size + 8) // _FRAGMENT) - 1) / (self.size + _HEADERS)

    @property
    def what(self) -> str:
        several = f" x {self.connections}" if self.connections > 1 else ""
        return f"{self.shaper}, {megabits(self.rate)} Mbit/s, TCP{several} beside {self.factor:g}x of {self.kind}"


def measure(link: traffic.Link, cell: Datagrams) -> Stored:
    cpus = sorted(os.sched_getaffinity(0))
    sizes = (cell.size, GSO_SEGMENT) if cell.size == GSO else (cell.size,)
    with metered(link, cell.shaper, cell.rate) as meter:
        for cpu in (cpus[0], cpus[-1]):
            link.udp(int(cell.factor * cell.rate / 8 / 2), meter.cgroup, cpu, sizes)
        sender = link.tcp(cell.connections, "cubic", cgroup=meter.cgroup)
        window = meter.window(cell.warm_up, cell.seconds)
        samples = traffic.samples(sender)
    return {
        **cell._asdict(),
        "limit": cell.rate,
        **window.figures(),
        "tcp": sum(map(acknowledged, per_connection(samples, window.begin, window.end))),
        "rtt": median_rtt(samples, window.begin, window.end),
        "fragments": cell.fragments,
    }


def line(stored: Stored) -> str:
    used, tcp = stored["used"] / stored["limit"], stored["tcp"] / stored["limit"]
    return f"TCP {tcp:.3f}, in all {used:.3f} (fragments may add {stored['fragments']:.3f})"
