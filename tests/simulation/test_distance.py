# SPDX-License-Identifier: GPL-3.0-or-later
"""Over distance, where a share is heard late: the cells that tests/vm/distance measures in real kernels."""

from __future__ import annotations

import pytest
from conftest import Runner
from judge import jain
from scenarios import MBIT
from simulator import BBR, CUBIC, Change, Flow, Scenario

WARM_UP, SECONDS = 5.0, 15.0


@pytest.mark.parametrize("round_trip", [0.005, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("megabits", [1, 10, 50])
@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
def test_far_connections_have_the_limit_and_equal_shares(
    runner: Runner, kind: int, megabits: int, connections: int, round_trip: float
) -> None:
    flows = [Flow(kind, start=0.01 * i, round_trip=round_trip, window=6 << 20) for i in range(connections)]
    limit = Change(0, megabits * MBIT, megabits * MBIT)
    span = runner.run(Scenario(0, flows, [limit], WARM_UP + SECONDS, [WARM_UP, WARM_UP + SECONDS])).bins[-1]
    least = 0.99 if round_trip <= 0.02 else 0.98
    assert least <= span.bytes / SECONDS / limit.rate <= 1.01
    assert jain(span.flows) >= 0.97
    assert span.drops == 0
