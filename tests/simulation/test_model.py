# SPDX-License-Identifier: GPL-3.0-or-later
"""The model itself does what Linux does where the other tests lean on it most."""

from __future__ import annotations

from conftest import Runner
from scenarios import MBIT
from simulator import KEPT, OPEN, UDP, Change, Flow, Scenario

NEAR = 0.0003
LATE = 0.003  # that all timers of a request may be together


def beside_a_flood(runner: Runner, flow: Flow) -> list[float]:
    """Seconds that requests take without any part of their own, so that most packets are refused."""
    flood = Flow(UDP, rate=10 * MBIT, chunk=100)
    limit = Change(0, MBIT, MBIT // 10)
    result = runner.run(Scenario(1, [flow, flood], [limit], 60, requests=1000))
    return [one.took for one in result.requests if one.answered]


def offset(seconds: float, first: float, then: float) -> float:
    """How far it is from none, the first, or a later one of such waits."""
    waits = [0, *(first + i * then for i in range(100))]
    return min(abs(seconds - wait - NEAR) for wait in waits)


def test_a_packet_that_is_refused_while_idle_is_tried_after_200_ms_and_each_half_second(runner: Runner) -> None:
    took = beside_a_flood(runner, Flow(use=KEPT, answer=1_000, round_trip=NEAR, foreign=True))
    assert max(offset(one, 0.2 + NEAR, 0.5) for one in took) < LATE
    assert len({round(one, 1) for one in took}) >= 3


def test_a_syn_that_is_refused_is_tried_after_a_second_and_each_half_second(runner: Runner) -> None:
    new = Flow(use=OPEN, slots=100, every=1, passive=False, round_trip=NEAR, foreign=True)
    took = beside_a_flood(runner, new)
    # Its FIN may be refused as well, and takes 200 ms then.
    assert max(min(offset(one, 1, 0.5), offset(one - 0.2 - NEAR, 1, 0.5)) for one in took) < LATE
    assert len({round(one) for one in took}) >= 3
