# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules above each other: the smaller one is used, wherever it is."""

from __future__ import annotations

import pytest
from conftest import Runner
from judge import spans_from
from scenarios import MBIT
from simulator import BBR, CUBIC, UDP, Change, Flow, Scenario

SETTLED, SECONDS = 4, 10
NEAR = 0.0003


@pytest.mark.parametrize("deeper", [[], [50], [1000]], ids=["two", "three", "three, the outermost large"])
@pytest.mark.parametrize(("inner", "outer"), [(50, 1000), (1000, 50), (50, 50), (50, 60), (60, 50)])
def test_trickling_connections_leave_the_smaller_limit_to_a_bulk_one(
    runner: Runner, inner: int, outer: int, deeper: list[int]
) -> None:
    megabits = [inner, outer, *deeper]
    rules = tuple(range(len(megabits)))
    flows = [Flow(CUBIC, round_trip=NEAR, rules=rules)]
    flows += [Flow(CUBIC, rate=MBIT // 10, chunk=2_000, round_trip=NEAR, rules=rules) for _i in range(9)]
    limits = [Change(0, one * MBIT, one * MBIT, rule) for rule, one in enumerate(megabits)]
    bins = [float(second) for second in range(1, SETTLED + SECONDS + 1)]
    result = runner.run(Scenario(0, flows, limits, bins[-1], bins))
    span, least = spans_from(result, SETTLED), min(megabits) * MBIT
    assert 0.98 <= span.bytes / SECONDS / least <= 1.01
    assert all(one.bytes >= 0.97 * least for one in result.bins[SETTLED:])
    assert span.flows[0] / SECONDS >= 0.94 * least
    assert not span.drops


@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
@pytest.mark.parametrize("fast", [1, 10], ids=["2 Mbit/s", "20 Mbit/s"])
def test_datagrams_that_an_outer_rule_refuses_leave_the_inner_one_to_tcp(runner: Runner, fast: int, kind: int) -> None:
    """A flood beside the inner rule leaves its datagrams next to nothing of the outer one, but TCP all that it has."""
    inner, outer = 2 * fast * MBIT, 10 * fast * MBIT
    flows = [
        Flow(kind, round_trip=NEAR, rules=(0, 1)),
        Flow(UDP, rate=inner, chunk=1_000, rules=(0, 1)),
        Flow(UDP, rate=10 * outer, chunk=1_000, rules=(1,)),
    ]
    limits = [Change(0, inner, inner // 20, 0), Change(0, outer, outer, 1)]
    bins = [float(second) for second in range(1, SETTLED + SECONDS + 1)]
    span = spans_from(runner.run(Scenario(0, flows, limits, bins[-1], bins)), SETTLED)
    assert span.flows[1] / SECONDS <= 0.2 * inner
    assert 0.97 <= (span.flows[0] + span.flows[1]) / SECONDS / inner <= 1.01
