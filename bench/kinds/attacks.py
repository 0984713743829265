# SPDX-License-Identifier: GPL-3.0-or-later
"""Two users in one rule: one has a bulk connection, the other tries to get more than that."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import traffic
from ..measure import megabits
from ..meter import metered, shares

Stored = dict[str, Any]
KEYS, PACING, TINY, MANY, ACKS = "keys", "pacing", "tiny", "many", "acks"
KINDS = {
    KEYS: "TCP_MD5SIG keys until its socket has no room for more",
    PACING: "SO_MAX_PACING_RATE back to infinity every 0.2 ms",
    TINY: "segments of one byte",
    MANY: "64 connections",
    ACKS: "a flood of ACKs, asked for from outside",
}
CONNECTIONS = 64
ASKING = 4  # connections from outside whose tiny segments are acknowledged
_BACK = 6003  # a port of the limited cgroup, to which these go


class Attack(NamedTuple):
    shaper: str
    rate: int
    kind: str
    seconds: float = 10.0
    warm_up: float = 2.0

    @property
    def what(self) -> str:
        return f"{self.shaper}, {megabits(self.rate)} Mbit/s, an honest connection beside {KINDS[self.kind]}"


def measure(link: traffic.Link, cell: Attack) -> Stored:
    with metered(link, cell.shaper, cell.rate) as meter:
        if cell.kind == MANY:
            link.tcp(CONNECTIONS, "cubic", cgroup=meter.cgroup)
        elif cell.kind == ACKS:
            inside = link.pair.sender_address
            link.start(link.pair.sender, "receive", "sink", inside, str(_BACK), cgroup=meter.cgroup)
            for _connection in range(ASKING):
                link.start(link.receiving, "attack", "small", inside, str(_BACK))
        else:
            link.start(link.pair.sender, "attack", cell.kind, link.address, str(traffic.PORT), cgroup=meter.cgroup)
        honest = link.tcp(1, "cubic", cgroup=meter.cgroup)
        window = meter.window(cell.warm_up, cell.seconds)
        of_honest = sum(shares(honest, window))
    return {**cell._asdict(), "limit": cell.rate, "honest": of_honest, **window.figures()}


def line(stored: Stored) -> str:
    limit = stored["limit"]
    return (
        f"honest {stored['honest'] / limit:.3f}, the other {(stored['used'] - stored['honest']) / limit:.3f}, "
        f"{stored['drops']:.2f} drops in 1,000"
    )
