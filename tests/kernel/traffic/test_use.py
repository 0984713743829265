# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_info says of how much of a limit is used, and of which rule binds, while it is so."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    LEAST,
    MBIT,
    MOST,
    RATE,
    Scene,
    assert_held,
    pause,
    share_of,
    wait_until,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

# Over the last second, by a sliding window: a little more than what assert_held has for one of its windows.
ABOUT_ALL = (LEAST - 0.05, MOST + 0.1)


def seen(name: str = "paced") -> dict[str, Any]:
    """What speed_limit_info says of a rule's use; and of its pacing, who waits."""
    found = limiter.info(name=name, gather=["rules"])["rules"][0]
    use: dict[str, Any] = {**found["use"], "waiting": found["pacing"]["waiting_connections"], "limit": found["rate"]}
    print(name, use)
    assert use["utilization"] == round(use["rate"] / use["limit"], 3)
    return use


def used(low: float, high: float, name: str = "paced") -> None:
    """Waits until it says so, of a part of the rate."""
    wait_until(lambda: low <= seen(name)["utilization"] <= high, f"{low} to {high} of the limit of {name}")


@pytest.mark.parametrize(("outer", "inner"), [pytest.param(10, 20, marks=pytest.mark.every_kernel), (20, 10)])
def test_of_two_rules_the_one_that_a_saturated_connection_waits_for_binds(scene: Scene, outer: int, inner: int) -> None:
    """It says so of each, with the rate, which is the same."""
    scene.limited(outer * MBIT, "outer")
    cgroup = scene.limited(inner * MBIT, "outer/inner")
    scene.pair.send_tcp(cgroup=cgroup)
    tighter, wider = ("outer", "inner") if outer < inner else ("inner", "outer")
    part = min(outer, inner) / max(outer, inner)
    assert_held(scene.pair, min(outer, inner) * MBIT)

    def told() -> bool:
        binding, other = seen(tighter), seen(wider)
        return (
            (binding["waiting"], binding["waiting_elsewhere"], binding["binds"]) == (1, 0, True)
            and (other["waiting"], other["waiting_elsewhere"], other["binds"]) == (0, 1, False)
            and ABOUT_ALL[0] <= binding["utilization"] <= ABOUT_ALL[1]
            and part * ABOUT_ALL[0] <= other["utilization"] <= part * ABOUT_ALL[1]
            and binding["reason"] is None
            and (other["reason"] or "").startswith("another rule")
        )

    wait_until(told, f"{tighter} binds")


@pytest.mark.parametrize("pacing", [True, False], ids=["paced", "by the bucket alone"])
def test_the_rate_is_what_arrives_and_goes_to_nothing_when_nothing_is_sent(scene: Scene, pacing: bool) -> None:
    limiter.program(pacing=pacing)
    cgroup = scene.limited(RATE)
    assert seen() == {
        "rate": 0,
        "utilization": 0.0,
        "binds": False,
        "binds_seconds": None,
        "waiting_elsewhere": 0,
        "reason": None,
        "waiting": 0,
        "limit": RATE,
    }
    sender = scene.pair.send_udp(RATE // 2, cgroup=cgroup)
    pause(1.5)  # more than a span of measuring
    arrives = share_of(scene.pair, RATE)
    used(arrives - 0.1, arrives + 0.1)
    assert not seen()["binds"]
    sender.finish()
    assert wait_until(lambda: seen()["rate"] == 0, "nothing") < 3 * (3 if SLOW else 1)


@pytest.mark.parametrize("pacing", [True, False], ids=["paced", "by the bucket alone"])
def test_a_flood_of_datagrams_binds_its_rule_though_no_connection_waits(scene: Scene, pacing: bool) -> None:
    limiter.program(pacing=pacing)
    cgroup = scene.limited(10 * MBIT, bucket=str(MBIT))
    scene.pair.send_udp(40 * MBIT, cgroup=cgroup)
    pause(1.5)
    used(*ABOUT_ALL)
    wait_until(lambda: seen()["binds"], "the rule binds")
    assert seen()["waiting"] == 0


@pytest.mark.parametrize("pacing", [True, False], ids=["paced", "by the bucket alone"])
def test_whoever_looks_while_datagrams_are_dropped_is_told_that_the_rule_binds(scene: Scene, pacing: bool) -> None:
    """With a small bucket, which is full again whenever the sender has slept."""
    limiter.program(pacing=pacing)
    cgroup = scene.limited(8 * MBIT, bucket="20k")
    scene.pair.send_udp(24 * MBIT, cgroup=cgroup)
    looks: list[bool] = []
    dropped = 0
    while len(looks) < 30:
        rule = limiter.info(name="paced", gather=["rules"])["rules"][0]
        if rule["counters"]["dropped_packets"] > dropped > 0:
            looks.append(rule["use"]["binds"])
        dropped = rule["counters"]["dropped_packets"]
    assert all(looks), looks


def test_a_rule_that_gives_each_cgroup_a_limit_of_its_own_is_used_by_all_of_them(scene: Scene) -> None:
    scene.cgroup("each")
    [greedy, modest, flood] = [scene.cgroup(f"each/{name}") for name in ("greedy", "modest", "flood")]
    limiter.rule(name="paced", rate=str(RATE // 10), cgroup_path="/each/*", each=True)
    scene.pair.send_tcp(connections=2, cgroup=greedy)
    scene.pair.send_udp(RATE // 40, cgroup=modest)

    def greedy_binds() -> bool:
        found = limiter.info(name="paced", gather=["rules"])["rules"][0]
        use, pacing = found["use"], found["pacing"]
        print(use, pacing)
        return bool(
            use["binds"]
            and pacing["waiting_connections"] == 2
            and ABOUT_ALL[0] <= use["utilization"] <= ABOUT_ALL[1]
            and use["rate"] / found["rate"] >= use["utilization"] + 0.2
            and pacing["fair_share"] <= 0.6 * found["rate"]
        )

    wait_until(greedy_binds, "one cgroup waits")
    scene.pair.send_udp(RATE, cgroup=flood)
    wait_until(lambda: limiter.info(name="paced")["rules"][0]["use"]["rate"] > 2 * RATE // 10, "two use their limits")
