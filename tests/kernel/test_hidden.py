# SPDX-License-Identifier: GPL-3.0-or-later
"""What limits although no pin of ours leads to it: found, told, and pinned again; or refused with what helps."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import hidden, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import cgroup2
from ansible_collections.speed_limiter.ebpf.tests.support.faults import End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import (
    info,
    program,
    purge,
    rule,
    rules,
    senders,
)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with limiter.clean_host():
        yield


@contextlib.contextmanager
def covered() -> Iterator[None]:
    """Another bpffs is mounted over the one that has the pins."""
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", pins.BPFFS], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", pins.BPFFS], check=True)


def attached(libbpf: Libbpf) -> list[int]:
    """The programs of ours that limit in this sandbox."""
    return [it.program_id for it in hidden.look(libbpf, str(cgroup2())) if it.cgroup is not None]


def only(found: dict[str, Any]) -> dict[str, Any]:
    """The one rule, without what goes with the time."""
    (it,) = found["rules"]
    return {key: value for key, value in it.items() if key not in ("use", "pacing")}


def test_below_another_bpffs_the_rules_are_seen_and_the_next_task_pins_them_again(libbpf: Libbpf) -> None:
    with senders("/home") as (sender,):
        rule(name="held", rate="5m", pids=[sender.pid])
        assert sender.charged() == {"held"}
        before, loaded = only(info()), attached(libbpf)
        with covered():
            found = info()
            assert only(found)["counters"] == before["counters"]
            assert found["program"]["program_id"] == loaded[0]
            assert "pins them again" in " ".join(found["warnings"])
            assert not os.path.exists(pins.PIN_DIR)

            foretold = rules({"name": "held", "rate": "6m"}, check=True)
            assert not os.path.exists(pins.PIN_DIR)
            done = rules({"name": "held", "rate": "6m"})
            for key in ("changed", "diff", "summary", "program_actions", "unenforced"):
                assert foretold[key] == done[key], key
            assert done["changed"]
            assert done["diff"]["before"] != done["diff"]["after"]
            assert done["summary"] == {"created": 0, "changed": 1, "removed": 0, "unchanged": 0}
            assert attached(libbpf) == loaded
            assert sender.charged() == {"held"}
            again = rules({"name": "held", "rate": "6m"})
            assert (again["changed"], *again["warnings"], *info()["warnings"]) == (False,)
            assert purge("all")["changed"]
            assert attached(libbpf) == []
            assert sender.charged() == set()


def test_pins_removed_by_hand_leave_no_gap_and_cost_no_counter(libbpf: Libbpf) -> None:
    with senders("/home") as (sender,):
        rule(name="held", rate="5m", pids=[sender.pid])
        sender.charged()
        before, loaded = only(info()), attached(libbpf)
        for name in (row.name for row in catalog.MAPS):
            os.unlink(pins.path(name))
        found = info()
        assert (only(found), found["program"]["program_id"]) == (before, loaded[0])
        assert catalog.CONFIG.name in " ".join(found["warnings"])
        sender.charged()  # nobody can look who is
        assert rule(name="held", rate="5m")["changed"]
        assert sender.charged() == {"held"}
        assert attached(libbpf) == loaded
        assert only(info())["counters"]["packets"] == before["counters"]["packets"] + 2
        purge("all")


@pytest.mark.parametrize("row", [catalog.CONFIG, catalog.CONTROL])
def test_any_pin_of_a_map_comes_back_as_it_was(row: catalog.MapRow) -> None:
    rule(name="empty", rate="5m")
    before = only(info())
    os.unlink(pins.path(row.name))
    assert program()["actions"] == ["pinned the limiter again, which runs on with all that it has"]
    assert only(info()) == before
    assert not program()["changed"]


def test_a_limiter_of_another_mount_namespace_is_taken_over(libbpf: Libbpf) -> None:
    """It has a bpffs of its own, as a service with PrivateMounts or a container has; and it stays as long as that."""
    code = (
        "from ansible_collections.speed_limiter.ebpf.tests.support import limiter\n"
        "limiter.rule(name='theirs', rate='1m')\nprint('ready', flush=True)\ninput()"
    )
    script = f'mount -t bpf -o mode=0700 bpf {pins.BPFFS}; exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, sys.executable, code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "ready\n"
        loaded = attached(libbpf)
        assert not os.path.exists(pins.PIN_DIR)
        rule(name="ours", rate="2m")
        assert attached(libbpf) == loaded
        assert [it["name"] for it in info()["rules"]] == ["ours", "theirs"]
        other.communicate("\n")
    assert attached(libbpf) == loaded
    assert not rule(name="theirs", rate="1m")["changed"]


def test_a_task_that_is_killed_while_it_pins_leaves_that_to_the_next(libbpf: Libbpf) -> None:
    rule(name="held", rate="5m")
    loaded, before = attached(libbpf), only(info())
    for number in range(100):
        with covered():
            end, _text = run_with(Fault.KILLED, number, lambda: rule(name="held", rate="5m"))
            assert not rule(name="held", rate="5m")["warnings"] or end is End.KILLED
            assert (attached(libbpf), only(info()), info()["warnings"]) == (loaded, before, [])
        if end is not End.KILLED:
            assert number > len(catalog.MAPS)
            return
    pytest.fail("pinning takes more than a hundred steps")


def two() -> None:
    """As an earlier version of this collection left it: each has rules of its own."""
    rule(name="first", rate="1m")
    with mock.patch.object(hidden, "look", lambda *arguments: []):
        subprocess.run(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", pins.BPFFS], check=True)
        rule(name="second", rate="2m")


def test_two_limiters_are_refused_and_told_and_a_purge_of_everything_ends_both(libbpf: Libbpf) -> None:
    two()
    try:
        both = attached(libbpf)
        assert len(both) == 2
        for work in (partial(rule, name="third", rate="1m"), program, purge):
            with refused("hidden_limiter", "two limiters", "speed_limit_purge with scope=all"):
                work()
        found = info()
        assert "two limiters" in " ".join(found["warnings"])
        assert [it["name"] for it in found["rules"]] == ["first", "second"]
        assert attached(libbpf) == both
        assert purge("all", check=True)["changed"]
        assert attached(libbpf) == both
        purge("all")
        assert attached(libbpf) == []
    finally:
        subprocess.run(["umount", pins.BPFFS], check=True)


def test_connections_that_a_hidden_limiter_paced_are_released_by_a_purge_of_everything() -> None:
    with senders("/home") as (sender,):
        rule(name="held", rate="5m", pids=[sender.pid])
        sender.charged("tcp")
        assert sender.is_paced()
        with covered():
            purge("all")
            assert not sender.is_paced()


def test_what_was_attached_without_a_link_is_refused_with_the_command_that_ends_it(libbpf: Libbpf) -> None:
    rule(name="held", rate="5m")
    fd = bpf.program_by_id(attached(libbpf)[0])
    bpf.attach(str(cgroup2()), fd)
    try:
        for name in os.listdir(pins.PIN_DIR):
            os.unlink(pins.path(name))
        with refused(
            "hidden_limiter", "cannot be taken over", f"egress id {attached(libbpf)[0]}", "bpftool cgroup detach"
        ):
            rule(name="held", rate="5m")
        assert "cannot be taken over" in " ".join(info()["warnings"])
    finally:
        bpf.detach(str(cgroup2()), fd)
        os.close(fd)
    rule(name="held", rate="5m")
    assert len(attached(libbpf)) == 1


def test_a_limiter_of_a_container_is_its_own_affair(libbpf: Libbpf) -> None:
    """Its rules' cgroups are not ours, and its program is attached below ours."""
    code = (
        "from ansible_collections.speed_limiter.ebpf.tests.support import limiter\n"
        "limiter.rule(name='theirs', rate='1m')\nprint('ready', flush=True)\ninput()\nlimiter.purge('all')"
    )
    below = Path(f"{cgroup2()}/container")
    below.mkdir()
    os.makedirs("/run/speed_limiter", exist_ok=True)
    prefix = elsewhere.in_container(str(cgroup2()), below, f"mount -t bpf -o mode=0700 bpf {pins.BPFFS}")
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "ready\n"
        assert info()["warnings"] == []
        assert not rule(name="ours", rate="1m")["warnings"]
        assert [it["name"] for it in info()["rules"]] == ["ours"]
        other.communicate("\n")
        assert other.returncode == 0
    below.rmdir()
