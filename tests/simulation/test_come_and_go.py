# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that come and go beside some that stay: they take what they send, and nothing else."""

from __future__ import annotations

import pytest
from conftest import Runner
from judge import spans_from
from scenarios import MBIT, packet
from simulator import BBR, CUBIC, OPEN, Change, Flow, Scenario

SETTLED, SECONDS = 3, 10
NEAR = 0.0003
# Megabits per second, new connections a second, bytes of each one's answer, who connects.
HERE, THERE = False, True
CELLS = [
    (100, 10, 0, HERE),
    (100, 100, 0, HERE),
    (100, 500, 0, HERE),
    (100, 2000, 0, HERE),
    (100, 500, 2_000, HERE),
    (1000, 2000, 2_000, HERE),
    (20, 2, 100, THERE),
    (20, 10, 100, THERE),
    (20, 50, 100, THERE),
    (20, 200, 100, THERE),
    (2, 10, 100, THERE),
    (2, 50, 100, THERE),
    (20, 200, 0, THERE),
    (20, 2000, 0, THERE),
]


@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
@pytest.mark.parametrize("bulk", [1, 4])
@pytest.mark.parametrize(
    ("megabits", "often", "answer", "passive"),
    CELLS,
    ids=lambda value: {HERE: "from here", THERE: "from there"}[value] if isinstance(value, bool) else str(value),
)
def test_bulk_has_what_connections_that_come_and_go_leave(
    runner: Runner, megabits: int, often: int, answer: int, passive: bool, bulk: int, kind: int
) -> None:
    new = Flow(use=OPEN, slots=1000, every=1 / often, answer=answer, passive=passive, round_trip=NEAR, start=0.5)
    flows = [new, *(Flow(kind, round_trip=NEAR) for _i in range(bulk))]
    limit = Change(0, megabits * MBIT, megabits * MBIT)
    end = SETTLED + SECONDS
    scenario = Scenario(0, flows, [limit], end, [float(second) for second in range(1, end + 1)])
    result = runner.run(scenario)
    span = spans_from(result, SETTLED)
    used, rest = span.bytes / SECONDS / limit.rate, 1 - span.flows[0] / SECONDS / limit.rate
    assert 0.98 <= used <= 1.02
    lump = packet(flows[1], limit.rate / bulk, scenario.large_bursts)
    assert min(one.bytes for one in result.bins[SETTLED:]) >= 0.97 * limit.rate - 2 * lump
    assert sum(span.flows[1:]) / SECONDS / limit.rate >= 0.97 * rest
    assert sum(span.dropped) <= 1 + sum(span.packets) / 1000
