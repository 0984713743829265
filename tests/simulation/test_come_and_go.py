# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that come and go beside some that stay: they take what they send, and nothing else."""

from __future__ import annotations

import pytest
from conftest import Runner
from judge import jain, spans_from
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


@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
def test_new_connections_that_want_nearly_half_get_it_at_once(runner: Runner, kind: int) -> None:
    """At regular intervals; those that come by chance wait for each other now and then."""
    limit = Change(0, 2 * MBIT, 2 * MBIT)
    new = Flow(use=OPEN, slots=1000, every=1 / 50, answer=2_000, passive=True, round_trip=NEAR, regular=True)
    result = runner.run(Scenario(0, [new, Flow(kind, round_trip=NEAR)], [limit], 13, [3, 13]))
    span = result.bins[-1]
    assert 0.98 <= span.bytes / SECONDS / limit.rate <= 1.02
    assert sum(span.dropped) <= 1 + sum(span.packets) / 1000


def test_shares_are_right_at_once_after_100000_connections(runner: Runner) -> None:
    limit = Change(0, 100 * MBIT, 100 * MBIT)
    new = Flow(use=OPEN, slots=5000, every=1 / 5000, answer=100, round_trip=NEAR, stop=20)
    flows = [new, Flow(round_trip=NEAR), Flow(BBR, round_trip=NEAR)]
    span = runner.run(Scenario(0, flows, [limit], 21.2, [20.2, 21.2])).bins[-1]
    assert 0.98 <= span.bytes / limit.rate <= 1.02
    assert jain(span.flows[1:]) >= 0.99


def test_a_rule_whose_only_traffic_is_handshakes_is_used_and_not_exceeded(runner: Runner) -> None:
    limit = Change(0, MBIT, MBIT)
    # A SYN-ACK, an ACK and a FIN each: twice the limit.
    new = Flow(use=OPEN, slots=8_000, every=1 / 1500, round_trip=NEAR)
    result = runner.run(Scenario(0, [new], [limit], 8, [4, 8]))
    assert 0.95 <= result.bins[-1].bytes / 4 / limit.rate <= 1.01
