# SPDX-License-Identifier: GPL-3.0-or-later
"""One TCP connection beside datagrams of all sizes."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from .. import traffic
from ..measure import megabits
from ..meter import metered, shares

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
        return f"{self.shaper}, {megabits(self.rate)} Mbit/s, TCP beside {self.factor:g}x of {self.kind}"


def measure(link: traffic.Link, cell: Datagrams) -> Stored:
    cpus = sorted(os.sched_getaffinity(0))
    sizes = (cell.size, GSO_SEGMENT) if cell.size == GSO else (cell.size,)
    with metered(link, cell.shaper, cell.rate) as meter:
        for cpu in (cpus[0], cpus[-1]):
            link.udp(int(cell.factor * cell.rate / 8 / 2), meter.cgroup, cpu, sizes)
        sender = link.tcp(1, "cubic", cgroup=meter.cgroup)
        window = meter.window(cell.warm_up, cell.seconds)
        of_tcp = sum(shares(sender, window))
    return {
        **cell._asdict(),
        "limit": cell.rate,
        **window.figures(),
        "tcp": of_tcp,
        "fragments": cell.fragments,
    }


def line(stored: Stored) -> str:
    used, tcp = stored["used"] / stored["limit"], stored["tcp"] / stored["limit"]
    return f"TCP {tcp:.3f}, in all {used:.3f} (fragments may add {stored['fragments']:.3f})"
