# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules above each other: connections that want little, and one that wants all, below all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.speed_limiter.ebpf.tests.support import dataplane, limiter, net

from .. import traffic
from ..measure import megabits
from ..meter import Meter, shares
from ..shapers import HTB, OURS, has_fq_codel, home

Stored = dict[str, Any]
TRICKLING = 9
TRICKLE = 20  # all of them together want one part in so many of the smallest limit


class Nest(NamedTuple):
    """`rates`: outermost first."""

    shaper: str
    rates: tuple[int, ...]
    seconds: float = 10.0
    warm_up: float = 2.0

    @property
    def what(self) -> str:
        return f"{self.shaper}, {' over '.join(megabits(rate) for rate in self.rates)} Mbit/s, 9 trickling and 1 bulk"


@contextmanager
def nested(cell: Nest, pair: traffic.Ends) -> Iterator[Path]:
    """While limits hold above each other for a cgroup; it."""
    with ExitStack() as stack:
        if cell.shaper == OURS:
            stack.callback(limiter.purge, "all")
            path = ""
            for depth, rate in enumerate(cell.rates):
                path = f"{path}/nest{depth}"
                stack.enter_context(home(path[1:]))
                limiter.rule(name=f"nest{depth}", rate=str(rate // 8), cgroup_path=path)
            yield dataplane.cgroup2() / path[1:]
        else:
            assert cell.shaper == HTB
            cgroup = stack.enter_context(home("sender"))
            stack.enter_context(_classes(pair, cell.rates))
            yield cgroup


@contextmanager
def _classes(pair: traffic.Ends, rates: tuple[int, ...]) -> Iterator[None]:
    tc, device = ("tc", "-n", pair.sender), ("dev", "veth0")
    net.run(*tc, "qdisc", "add", *device, "root", "handle", "1:", "htb", "default", f"{len(rates)}")
    try:
        parent = "1:"
        for number, rate in enumerate(rates, 1):
            burst, sure = str(max(6000, rate // 8 // 500)), min(rates[:number])
            words = ("htb", "rate", f"{sure}bit", "ceil", f"{rate}bit", "burst", burst, "cburst", burst)
            net.run(*tc, "class", "add", *device, "parent", parent, "classid", f"1:{number}", *words)
            parent = f"1:{number}"
        if has_fq_codel(pair):
            net.run(*tc, "qdisc", "add", *device, "parent", parent, "fq_codel")
        yield
    finally:
        net.run(*tc, "qdisc", "delete", *device, "root")


def measure(link: traffic.Link, cell: Nest) -> Stored:
    smallest = min(cell.rates)
    with nested(cell, link.pair) as cgroup, link.receiver(echo=False):
        meter = Meter(link, cell.shaper, smallest, cgroup)
        trickling = link.tcp(TRICKLING, "cubic", smallest // 8 // TRICKLE, cgroup)
        bulk = link.tcp(1, "cubic", cgroup=cgroup)
        window = meter.window(cell.warm_up, cell.seconds)
        of_bulk, of_trickling = sum(shares(bulk, window)), sum(shares(trickling, window))
    return {
        **cell._asdict(),
        "limit": smallest,
        **window.figures(),
        "bulk_rate": of_bulk,
        "trickling_rate": of_trickling,
    }


def line(stored: Stored) -> str:
    used, bulk, rest = (stored[name] / stored["limit"] for name in ("used", "bulk_rate", "trickling_rate"))
    return f"used {used:.3f}, bulk {bulk:.3f}, trickling {rest:.3f}, {stored['drops']:.2f} drops in 1,000"
