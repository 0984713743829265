# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit that changes under running connections is heard of soon, and without silence."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.parts import Silence
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import releasing
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    LEAST,
    MBIT,
    Scene,
    assert_bound,
    assert_held,
    pause,
    share_of,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE, SLOW


@releasing
@pytest.mark.parametrize(
    ("high", "low"),
    [
        pytest.param(50 * MBIT, MBIT, marks=pytest.mark.every_kernel),
        (50 * MBIT, MBIT // 2),
        (50 * MBIT, MBIT // 5),
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
@pytest.mark.parametrize(
    ("first", "low", "high", "bucket_part"),
    [
        (50 * MBIT, MBIT // 5, 150 * MBIT, 1),
        (50 * MBIT, MBIT // 2, 40 * MBIT, 1),
        (50 * MBIT, MBIT // 5, 50 * MBIT, 10),
        pytest.param(100 * MBIT, MBIT // 2, 100 * MBIT, 10, marks=pytest.mark.every_kernel),
    ],
)
def test_a_limit_that_rises_is_used_soon(scene: Scene, first: int, low: int, high: int, bucket_part: int) -> None:
    pair = scene.pair
    first, high = (rate // (10 if SLOW else 1) for rate in (first, high))
    pair.send_tcp(cgroup=scene.limited(first, bucket=str(first // bucket_part)))
    pause(1.0)
    limiter.rule(name="paced", rate=str(low), bucket=str(low // bucket_part))
    pause(2.0)
    limiter.rule(name="paced", rate=str(high), bucket=str(high // bucket_part))
    before = pair.arrived()
    pause(0.3)
    share = share_of(pair, high, 0.7)
    assert_bound(before, pair.arrived(), high, high // bucket_part)
    assert share >= LEAST - 0.1
    assert_held(pair, high, 0.7)
