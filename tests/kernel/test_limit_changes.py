# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit that changes under running connections is heard of soon, and without silence."""

from __future__ import annotations

import limiter
import pytest
from kernels import releasing
from parts import Silence
from scene import LEAST, MBIT, MOST, Scene, assert_bound, pause, share_of
from slow import PATIENCE, SLOW


@releasing
@pytest.mark.parametrize(
    ("high", "low"),
    [
        pytest.param(50 * MBIT, MBIT, marks=pytest.mark.every_kernel),
        (50 * MBIT, MBIT // 2),
        (10 * MBIT, MBIT),
    ],
)
@pytest.mark.parametrize("connections", [1, 4])
def test_a_limit_that_falls_silences_nobody(scene: Scene, high: int, low: int, connections: int) -> None:
    high //= 10 if SLOW else 1
    pair = scene.pair
    pair.send_tcp(connections=connections, cgroup=scene.limited(high, bucket=str(high // 10)))
    pause(1.0)
    limiter.rule(name="paced", rate=str(low), bucket=str(low // 10))
    before = pair.arrived()
    pause(0.5)
    with Silence(pair) as silence:
        pause(3.0)
    assert_bound(before, pair.arrived(), low, low // 10)
    assert silence.longest <= 0.3 * PATIENCE
    assert share_of(pair, low, 1.0) >= LEAST - 0.1


@releasing
@pytest.mark.parametrize(("low", "high"), [(MBIT // 5, 150 * MBIT), (MBIT // 2, 40 * MBIT), (MBIT, 50 * MBIT)])
def test_a_limit_that_rises_is_used_soon(scene: Scene, low: int, high: int) -> None:
    high //= 10 if SLOW else 1
    pair = scene.pair
    pair.send_tcp(cgroup=scene.limited(high, bucket=str(high // 10)))
    pause(0.5)
    limiter.rule(name="paced", rate=str(low), bucket=str(low // 10))
    pause(2.0)
    limiter.rule(name="paced", rate=str(high), bucket=str(high // 10))
    before = pair.arrived()
    pause(0.3)
    share = share_of(pair, high, 0.7)
    assert_bound(before, pair.arrived(), high, high // 10)
    assert LEAST - 0.1 <= share <= MOST + 0.1
