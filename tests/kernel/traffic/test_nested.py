# SPDX-License-Identifier: GPL-3.0-or-later
"""Of rules above each other the tightest is used, whichever it is."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair
from ansible_collections.speed_limiter.ebpf.tests.support.parts import BULK, USED, assert_parts
from ansible_collections.speed_limiter.ebpf.tests.support.scene import RATE, Scene, assert_bound, counters, pause

TENTH = RATE // 10
# The outermost first.
RULES = {
    "outer tighter": [RATE // 2, 10 * RATE],
    "outer a little tighter": [RATE // 2, RATE * 6 // 10],
    "equal": [RATE // 2, RATE // 2],
    "inner tighter": [10 * RATE, RATE // 2],
    "three, the outermost tightest": [RATE // 2, RATE, 10 * RATE],
    "three, the middle tightest": [10 * RATE, RATE // 2, RATE],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.every_kernel] if name == "outer tighter" else []) for name in RULES]
)
def test_a_bulk_connection_gets_what_trickling_ones_leave_of_the_tightest(scene: Scene, name: str) -> None:
    pair, path, rates = scene.pair, "", RULES[name]
    for level, rate in enumerate(rates):
        path = f"{path}/level{level}".lstrip("/")
        cgroup = scene.limited(rate, path, bucket=str(rate // 10))
    before = pair.arrived()
    pair.traffic("trickle", Pair.address, PORT, LONG, 9, RATE // 2000, cgroup=cgroup)
    bulk = pair.send_tcp(cgroup=cgroup)
    pause(0.7)
    assert_parts(pair, min(rates), (bulk, BULK), used=USED)
    assert_bound(before, pair.arrived(), min(rates), max(rates) // 10)


@pytest.mark.parametrize(
    ("above", "own"), [(RATE // 2, 10 * RATE), (10 * RATE, RATE // 2)], ids=["the slice's", "its own"]
)
def test_of_a_process_in_a_limited_slice_the_tighter_rule_is_used_and_both_hold(
    scene: Scene, above: int, own: int
) -> None:
    pair = scene.pair
    scene.limited(above, "batch", bucket=str(above // 10))
    bulk = pair.send_tcp(cgroup=scene.cgroup("batch/service"))
    limiter.rule(name="one", pid=bulk.pid, rate=str(own), bucket=str(own // 10))
    pause(0.7)
    before, counted = pair.arrived(), [counters(name)["bytes"] for name in ("batch", "one")]
    assert_parts(pair, min(above, own), (bulk, BULK), used=USED)
    now = [counters(name)["bytes"] for name in ("batch", "one")]
    after = pair.arrived()
    assert_bound(before, after, min(above, own), min(above, own) // 10)
    for was, is_ in zip(counted, now):
        assert is_ - was >= 0.9 * USED * min(above, own)  # of a second, and what arrives has its headers


def test_one_rule_below_another_leaves_its_sibling_the_rest(scene: Scene) -> None:
    """What is held elsewhere counts as modest here: its sibling takes what it leaves."""
    pair = scene.pair
    scene.limited(RATE, "outer", bucket=str(TENTH))
    slow = scene.limited(RATE // 5, "outer/slow", bucket=str(TENTH // 5))
    fast = scene.limited(10 * RATE, "outer/fast", bucket=str(TENTH))
    held = pair.send_tcp(connections=2, cgroup=slow)
    free = pair.send_tcp(connections=2, cgroup=fast)
    pause(0.7)
    assert_parts(pair, RATE, (held, 0.9 * 0.2), (free, 0.9 * 0.8), used=USED)
