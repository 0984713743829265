# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_info tells of a second: rates, drops, the binding rule, and single connections."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import (
    connections,
    diag,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import use
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child
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


HELD = """
import socket, sys
print("ready", flush=True)
sys.stdin.readline()
listener = socket.create_server(("127.0.0.1", 0))
kept = [socket.create_connection(listener.getsockname()) for _number in range(2)]
kept += [listener.accept()[0] for _connection in range(2)]
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("seconds", "fails", "said"),
    [
        (2.5, True, "the kernel does not tell the connections of "),
        (0.0, False, "the look at the connections was ended after 0 s: there are more of them"),
    ],
    ids=["do not tell theirs", "take too long"],
)
def test_namespaces_that_users_make_hide_nobody_elses_connections(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, seconds: float, fails: bool, said: str
) -> None:
    cgroup = scene.limited(RATE)
    real, looks = diag.connections, 0

    def told(storage: int) -> Iterator[Any]:
        nonlocal looks
        looks += 1
        if looks > 1 and fails:
            raise OSError(errno.EPERM, "")
        return real(storage)

    monkeypatch.setattr(diag, "connections", told)
    monkeypatch.setattr(connections, "_DUMP_SECONDS", seconds)
    with child(HELD) as process:  # in our own network namespace
        (cgroup / "cgroup.procs").write_text(str(process.pid))
        process.process.stdin.write("\n")
        process.process.stdin.flush()
        assert process.process.stdout.readline() == "held\n"
        found = limiter.info(name="paced", gather=["use"])
    assert found["use"][0]["open_connections"] == 4
    assert [text for text in found["unseen"] if said in text]


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
    clock = SimpleNamespace(sleep=lambda seconds: limiter.rule(name="paced", state="absent"))
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


# ---- why a process is as slow as it is


def why(pid: int) -> dict[str, Any]:
    found = limiter.info(pid=pid, gather=["use"])
    assert found["unseen"] == []
    print(found["why"])
    return dict(found["why"])


def test_a_process_that_waits_is_told_its_rule_and_what_comes_next(scene: Scene) -> None:
    scene.limited(RATE, "outer", bucket=str(RATE // SMALL))
    cgroup = scene.limited(RATE // 10, "outer/inner", bucket=str(RATE // 10 // SMALL))
    sender = scene.pair.send_tcp(connections=2, cgroup=cgroup)
    other = scene.pair.send_udp(RATE // 4, cgroup=cgroup.parent)

    found: dict[str, Any] = {}

    def told() -> bool:
        found.update(why(sender.pid))
        return bool(
            found["waiting_connections"] == 2
            and found["held_seconds"]
            and 0.6 * RATE <= found["without"]["rate"] <= 0.8 * RATE
            and 0.8 * RATE // 10 <= found["rate"] <= 1.2 * RATE // 10
        )

    wait_until(told, "inner holds it, outer is next")
    assert (found["rules"], found["binding_rule"], found["without"]["rule"]) == (["outer", "inner"], "inner", "outer")
    text = found["text"]
    assert text.startswith(f"Process {sender.pid} ({sys.executable}") and "is in /outer/inner. 2 rules hold" in text
    assert "inner holds it back now: 2 of its 2 connections wait for it. Together they send " in text
    assert "Without inner, outer would be next, which leaves it" in text
    found = why(other.pid)
    assert (found["rules"], found["binding_rule"], found["connections"]) == (["outer"], None, 0)
    assert "It does not hold it back now: it has no TCP connections under it" in found["text"]


def test_of_the_rule_alone_it_is_told_what_the_windows_allow(scene: Scene) -> None:
    cgroup = scene.limited(RATE // 10, bucket=str(RATE // 10 // SMALL))
    sender = scene.pair.send_tcp(cgroup=cgroup)
    wait_until(lambda: why(sender.pid)["waiting_connections"] == 1, "it waits")

    def told() -> bool:
        found = why(sender.pid)
        return found["binding_rule"] == "paced" and bool(found["without"]["windows"])

    wait_until(told, "it waits")
    assert (
        "no rule would hold it back, but only the path and the other side; its TCP windows" in why(sender.pid)["text"]
    )


def test_datagrams_that_are_dropped_are_told_with_the_reason(scene: Scene) -> None:
    cgroup = scene.limited(10 * MBIT, bucket=str(MBIT))
    sender = scene.pair.send_udp(40 * MBIT, cgroup=cgroup)
    wait_until(lambda: "paced drops packets now" in why(sender.pid)["text"], "drops")
    found = why(sender.pid)
    assert found["binding_rule"] == "paced" and " empty): what it sends otherwise" in found["text"]


def test_of_a_process_without_rules_or_without_a_program_that_is_told(scene: Scene) -> None:
    cgroup = scene.cgroup()
    sender = scene.pair.traffic("hold", scene.pair.address, PORT, 1000, cgroup=cgroup)
    assert why(sender.pid)["text"].endswith("is in /paced, for which no rule holds: the limiter does not slow it.")
    limiter.rule(name="paced", rate=str(RATE), cgroup_path="/paced")
    text = why(sender.pid)["text"]
    assert "One rule holds for what it sends: paced (100 Mbit/s, 0 % used). It does not hold it back now" in text
    limiter.program(state="absent")
    assert why(sender.pid)["text"].endswith("No program is loaded, so nothing is limited.")


def test_only_its_own_budget_counts_for_a_process(scene: Scene) -> None:
    scene.cgroup("each")
    greedy, modest = (scene.cgroup(f"each/{name}") for name in ("greedy", "modest"))
    limiter.rule(name="paced", rate=str(RATE // 10), bucket=str(RATE // 100), cgroup_path="/each/*", each=True)
    sender = scene.pair.send_tcp(cgroup=greedy)
    other = scene.pair.send_udp(RATE // 40, cgroup=modest)
    wait_until(lambda: why(sender.pid)["binding_rule"] == "paced", "one is held")
    found = limiter.info(pid=other.pid, gather=["use"])
    assert found["why"]["binding_rule"] is None and found["use"][0]["utilization"] < 0.5


def test_who_asks_for_a_process_alone_is_told_why(scene: Scene) -> None:
    sender = scene.pair.traffic("hold", scene.pair.address, PORT, 1000, cgroup=scene.limited(RATE))
    found = limiter.info(pid=sender.pid)
    assert found["why"]["rules"] == ["paced"] and found["rules"] and found["use"]
    assert "why" not in limiter.info() and "why" not in limiter.info(pid=sender.pid, gather=["rules"])


def test_a_process_that_went_elsewhere_is_found_with_the_sockets_that_it_took_along(
    scene: Scene, clean_host: Cgroups
) -> None:
    cgroup = scene.limited(RATE // 10, bucket=str(RATE // 10 // SMALL))
    sender = scene.pair.send_tcp(cgroup=cgroup)
    wait_until(lambda: why(sender.pid)["connections"] == 1, "it has a connection")
    clean_host.move(sender.pid, "/")
    wait_until(lambda: why(sender.pid)["binding_rule"] == "paced", "it is held back all the same")
    found = why(sender.pid)
    assert found["rules"] == ["paced"] and "is in /. One rule holds for what it sends: paced" in found["text"]
    assert [one["pid"] for one in measured()["connections"]] == [sender.pid]
