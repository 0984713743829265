# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_info tells of a second: rates, drops, the binding rule, and single connections."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import use
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.net import PORT
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import ADOPTS
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    LEAST,
    MBIT,
    MOST,
    RATE,
    SMALL,
    Scene,
    wait_until,
)

ABOUT_ALL = (LEAST - 0.05, MOST + 0.1)


def measured(name: str = "paced", **options: Any) -> dict[str, Any]:
    """Of one rule."""
    found = limiter.info(name=name, gather=["use"], **options)
    assert found["unseen"] == []
    [rule] = found["use"]
    print(rule)
    return dict(rule)


def until_told(
    told: Callable[[dict[str, Any]], bool], what: str, name: str = "paced", **options: Any
) -> dict[str, Any]:
    """What is told when it is so."""
    found: dict[str, Any] = {}

    def is_told() -> bool:
        found.update(measured(name, **options))
        return bool(told(found))

    wait_until(is_told, what)
    return found


@pytest.mark.every_kernel
def test_connections_are_told_with_their_process_share_and_rate(scene: Scene) -> None:
    cgroup = scene.limited(RATE, bucket=str(RATE // SMALL))
    sender = scene.pair.send_tcp(connections=4, cgroup=cgroup)

    def equal(rule: dict[str, Any]) -> bool:
        share = RATE / 4
        return (
            ABOUT_ALL[0] <= rule["utilization"] <= ABOUT_ALL[1]
            and (rule["waiting_connections"], rule["active_connections"]) == (4, 4)
            and all(
                one["waits"] and all(0.8 * share <= (one[what] or 0) <= 1.3 * share for what in ("rate", "share"))
                for one in rule["connections"]
            )
        )

    rule = until_told(equal, "four equal shares")
    assert rule["limit"] == RATE
    assert 1 <= rule["seconds"] < 10
    assert (rule["binds"], rule["binding_rule"], rule["open_connections"]) == (True, "paced", 4)
    assert (rule["unpaced_connections"], rule["unpaced"]) == (0, [])
    assert abs(rule["rate"] - rule["counters"]["bytes"] / rule["seconds"]) <= 0.01 * RATE
    assert len(rule["connections"]) == 4
    for one in rule["connections"]:
        assert (one["address"], one["port"]) == (scene.pair.address, PORT)
        assert one["local_port"] and one["local_address"] and one["round_trip_us"]
        assert (one["pid"], one["waits"], one["binding_rule"], one["paced"]) == (sender.pid, True, "paced", True)
        assert one["command"].startswith(sys.executable)
    assert len(measured(connections=2)["connections"]) == 2
    assert measured(connections=0)["connections"] == []


def test_the_rule_that_binds_is_named_at_the_other_one(scene: Scene) -> None:
    scene.limited(10 * MBIT, "outer")
    cgroup = scene.limited(20 * MBIT, "outer/inner")
    scene.pair.send_tcp(cgroup=cgroup)
    inner = until_told(lambda rule: rule["binding_rule"] == "outer", "outer binds inner", "inner")
    assert not inner["binds"] and inner["waiting_elsewhere"] == 1 and inner["waiting_connections"] == 0
    assert inner["connections"][0]["binding_rule"] == "outer"
    assert measured("outer")["binding_rule"] == "outer"


def test_drops_are_those_of_the_second(scene: Scene) -> None:
    cgroup = scene.limited(10 * MBIT, bucket=str(MBIT))
    sender = scene.pair.send_udp(40 * MBIT, cgroup=cgroup)
    rule = until_told(lambda rule: rule["counters"]["drops"]["empty"] > 0, "drops")
    assert rule["binds"] and rule["connections"] == [] and rule["open_connections"] == 0
    assert rule["counters"]["dropped_packets"] == sum(rule["counters"]["drops"].values())
    sender.finish()
    rule = until_told(lambda rule: rule["counters"]["packets"] == 0, "silence")
    assert rule["counters"]["dropped_packets"] == 0 and rule["rate"] == 0 and rule["binding_rule"] is None


def test_what_is_not_paced_is_told_with_the_reason(scene: Scene) -> None:
    limiter.program(pacing=False)
    cgroup = scene.limited(RATE)
    scene.pair.send_tcp(connections=2, cgroup=cgroup)
    rule = until_told(lambda rule: any(one["rate"] for one in rule["connections"]), "they send")
    [unpaced] = rule["unpaced"]
    assert unpaced["connections"] == 2 and unpaced["reason"].startswith("pacing is switched off")
    assert [one["paced"] for one in rule["connections"]] == [False, False] and rule["mode"] == "token_bucket"


def test_a_connection_that_has_not_sent_since_its_rule_was_made_is_told(scene: Scene) -> None:
    cgroup = scene.cgroup()
    scene.pair.traffic("hold", scene.pair.address, PORT, 1000, cgroup=cgroup)
    limiter.rule(name="paced", rate=str(RATE), cgroup_path="/paced")
    rule = until_told(lambda rule: rule["open_connections"] == 1, "it is seen")
    if not ADOPTS:
        [unpaced] = rule["unpaced"]
        assert unpaced == {"reason": "they have sent nothing since the rule holds for them", "connections": 1}
    assert not rule["binds"] and rule["connections"][0]["rate"] == 0


def test_each_cgroup_that_uses_its_own_limit_is_told(scene: Scene) -> None:
    scene.cgroup("each")
    greedy, modest = (scene.cgroup(f"each/{name}") for name in ("greedy", "modest"))
    limiter.rule(name="paced", rate=str(RATE // 10), bucket=str(RATE // 100), cgroup_path="/each/*", each=True)
    scene.pair.send_tcp(connections=2, cgroup=greedy)
    scene.pair.send_udp(RATE // 40, cgroup=modest)
    rule = until_told(
        lambda rule: (
            [one["binds"] for one in rule["budgets"]] == [True, False]
            and rule["budgets"][0]["waiting_connections"] == 2
            and ABOUT_ALL[0] <= rule["budgets"][0]["utilization"] <= ABOUT_ALL[1]
            and all(one["waits"] for one in rule["connections"])
        ),
        "one of two binds",
    )
    assert [one["cgroup"] for one in rule["budgets"]] == ["/each/greedy", "/each/modest"]
    assert rule["binding_rule"] == "paced" and rule["open_connections"] == 2
    assert {one["binding_rule"] for one in rule["connections"]} == {"paced"}


def test_a_rule_that_goes_meanwhile_is_left_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.limited(RATE)
    limiter.rule(name="other", rate="1m")
    clock = SimpleNamespace(
        monotonic_ns=time.monotonic_ns, sleep=lambda seconds: limiter.rule(name="paced", state="absent")
    )
    monkeypatch.setattr(use, "time", clock)
    found = limiter.info(gather=["use"])
    assert [rule["name"] for rule in found["use"]] == ["other"] and found["unseen"] == []


def test_nothing_stays_of_a_look(scene: Scene, clean_host: Cgroups) -> None:
    cgroup = scene.limited(RATE)
    scene.pair.send_tcp(cgroup=cgroup)
    before, children = limiter.snapshot(), set(_children())
    measured()
    assert limiter.snapshot() == before and set(_children()) <= children


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
