# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP beside datagrams of all sizes, and beside TCP that cannot be told a rate."""

from __future__ import annotations

import pytest
from conftest import Runner
from judge import PACKETS_OF_DEBT, spans_from
from scenarios import MBIT
from simulator import BBR, CUBIC, UDP, Change, Flow, Result, Scenario

SETTLED, SECONDS = 4, 10
NEAR = 0.0003


def simulated(runner: Runner, flows: list[Flow], megabits: int) -> Result:
    rate, end = megabits * MBIT, SETTLED + SECONDS
    bins = [float(second) for second in range(1, end + 1)]
    return runner.run(Scenario(0, flows, [Change(0, rate, rate)], end, bins))


@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
@pytest.mark.parametrize("times", [0.5, 2, 10])
@pytest.mark.parametrize(
    ("size", "gso"), [(100, False), (1_400, False), (20_000, False), (65_000, False), (64_000, True)]
)
@pytest.mark.parametrize("megabits", [1, 10, 100, 500])
def test_tcp_has_half_beside_datagrams(
    runner: Runner, megabits: int, size: int, gso: bool, times: float, kind: int
) -> None:
    rate = megabits * MBIT
    if rate * times / size > 100_000:
        pytest.skip("more datagrams than are worth the time")
    datagrams = Flow(UDP, rate=int(rate * times), chunk=size, gso=gso, mss=1_400 if gso else 1_448)
    span = spans_from(simulated(runner, [Flow(kind, round_trip=NEAR), datagrams], megabits), SETTLED)
    tcp, used = span.flows[0] / SECONDS / rate, span.bytes / SECONDS / rate
    assert tcp >= 0.45
    assert 0.98 <= used <= 1.005 + PACKETS_OF_DEBT / SECONDS / rate


@pytest.mark.parametrize("megabits", [2, 20, 100, 500])
def test_tcp_that_cannot_be_told_a_rate_has_no_more_than_half(runner: Runner, megabits: int) -> None:
    flows = [Flow(CUBIC, round_trip=NEAR), Flow(CUBIC, round_trip=NEAR, foreign=True)]
    span = spans_from(simulated(runner, flows, megabits), SETTLED)
    assert span.flows[0] / SECONDS >= 0.45 * megabits * MBIT
    assert span.bytes / SECONDS >= 0.98 * megabits * MBIT


@pytest.mark.parametrize("low_water", [4_096, 16_384, 131_072])
@pytest.mark.parametrize("megabits", [2, 20, 100])
def test_a_program_that_keeps_little_unsent_has_as_much_as_a_greedy_one(
    runner: Runner, megabits: int, low_water: int
) -> None:
    flows = [
        Flow(CUBIC, round_trip=NEAR),
        Flow(CUBIC, round_trip=NEAR, low_water=low_water, chunk=min(low_water, 65_536)),
    ]
    span = spans_from(simulated(runner, flows, megabits), SETTLED)
    assert 0.9 <= span.flows[1] / span.flows[0] <= 1.1
    assert span.bytes / SECONDS >= 0.98 * megabits * MBIT
