# SPDX-License-Identifier: GPL-3.0-or-later
"""host/groups/trees.py: trees of cgroups that a user made to be in the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.patterns import parse
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import trees
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import enforce, pacing
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import WAIT, child, refused, sandbox_cgroups, until
from ansible_collections.speed_limiter.ebpf.tests.support.homes import making

LEVELS = 1100  # more than Python's functions may be nested
NAME = "a-name-of-twenty-one-"  # so the path is longer than the kernel takes


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with sandbox_cgroups() as found:
        yield found


def deepen(top: str, levels: int = LEVELS) -> int:
    """Makes cgroups in each other; a descriptor of the innermost."""
    fd = os.open(top, os.O_RDONLY)
    for _level in range(levels):
        os.mkdir(NAME, dir_fd=fd)
        inner = os.open(NAME, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


def join(pid: int, directory: int) -> None:
    procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=directory)
    os.write(procs, str(pid).encode())
    os.close(procs)


def test_a_tree_that_is_deeper_than_any_path_is_seen_and_removed(cgroups: Cgroups) -> None:
    assert sys.getrecursionlimit() < LEVELS * 2
    cgroups.make_rule("deep")
    innermost = deepen(cgroups.absolute(cgroups.rule_cgroup("deep")))
    before = len(os.listdir("/proc/self/fd"))
    with child(WAIT) as process:
        join(process.pid, innermost)
        assert cgroups.pids("/") and process.pid in cgroups.pids(cgroups.rule_cgroup("deep"))
        with refused("busy_cgroup", str(process.pid)):
            cgroups.remove("/speed_limiter/deep")
        cgroups.move(process.pid, "/")
    os.close(innermost)
    until(lambda: not cgroups.pids(cgroups.rule_cgroup("deep")))
    cgroups.remove("/speed_limiter/deep")
    assert not cgroups.exists(cgroups.rule_cgroup("deep"))
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_tree_that_is_too_large_is_told_and_removed_step_by_step(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MOST", 10)
    cgroups.make_rule("wide")
    top = cgroups.absolute(cgroups.rule_cgroup("wide"))
    for number in range(24):
        os.mkdir(f"{top}/{number}")
    for _round in range(2):
        with refused("cgroup_not_removed", "more than 10 cgroups", "Run the task again"):
            cgroups.remove("/speed_limiter/wide")
    cgroups.remove("/speed_limiter/wide")
    assert not cgroups.exists(cgroups.rule_cgroup("wide"))


def test_of_a_wide_tree_only_what_has_processes_counts(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST", 10)
    cgroups.make_rule("wide")
    top = cgroups.absolute(cgroups.rule_cgroup("wide"))
    os.makedirs(f"{top}/empty")
    for number in range(20):
        os.mkdir(f"{top}/empty/{number}")
    with child(WAIT) as process:
        cgroups.move(process.pid, cgroups.rule_cgroup("wide"))
        assert cgroups.pids(cgroups.rule_cgroup("wide")) == [process.pid]
        assert not cgroups.too_large


def test_a_rule_task_tells_that_it_has_not_seen_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with limiter.clean_host() as cgroups, child(WAIT) as process:
        limiter.rule(name="wide", rate="1m", pids=[process.pid])
        top = cgroups.absolute(cgroups.rule_cgroup("wide"))
        for number in range(20):
            os.mkdir(f"{top}/{number}")
        with monkeypatch.context() as patch:
            patch.setattr(trees, "MOST", 10)
            assert "not all processes and cgroups in /speed_limiter/wide" in " ".join(
                limiter.rule(name="wide", rate="2m")["warnings"]
            )
        for number in range(20):
            os.rmdir(f"{top}/{number}")


@pytest.fixture
def crowd() -> Iterator[Cgroups]:
    """20 cgroups, of which a user could make any number, in one that a rule limits by a star."""
    with limiter.clean_host() as cgroups, making(cgroups) as make:
        make("/crowd")
        for number in range(20):
            make(f"/crowd/{number:02}")
        limiter.rule(name="crowd", rate="1m", cgroup_paths=["/crowd/*"])
        yield cgroups


def test_of_very_many_that_a_pattern_names_a_part_is_looked_at(crowd: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST", 10)
    for pattern, count in (("/crowd/*", 10), ("/crowd/none*", 0), ("/crowd/1*", None)):
        found = Cgroups(crowd.mount)
        names = found.matching(parse("", pattern))
        assert count is None or len(names) == count
        assert list(found.too_large) == ["/crowd"]
    whole = Cgroups(crowd.mount)
    assert whole.matching(parse("", "/crowd/07")) == ["/crowd/07"] and not whole.too_large


def test_a_rule_task_tells_that_it_has_not_seen_all_that_a_pattern_names(
    crowd: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limiter.rule(name="crowd", rate="2m")["warnings"] == ()
    monkeypatch.setattr(trees, "MOST", 10)
    done = limiter.rule(name="crowd", rate="3m")
    assert any("not all processes and cgroups in /crowd were" in warning for warning in done["warnings"])
    assert done["rule"]["waiting"] == [] and done["unenforced"] == []


def test_of_very_many_some_are_asked_whether_the_program_runs_for_them(
    crowd: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Attachments.runs_for

    def runs_for(self: Attachments, cgroup: str) -> bool:
        asked.append(cgroup)
        return real(self, cgroup)

    monkeypatch.setattr(Attachments, "runs_for", runs_for)
    monkeypatch.setattr(enforce, "_MOST_ASKED", 5)
    assert not limiter.rule(name="crowd", rate="2m")["unenforced"]
    assert asked == ["/crowd", *(f"/crowd/{number:02}" for number in range(5))]


def test_connections_of_very_many_are_looked_at_all_at_once(crowd: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[set[int] | None] = []

    def follow(pids: set[int] | None) -> list[str]:
        looked.append(pids)
        return []

    monkeypatch.setattr(pacing, "follow", follow)
    limiter.rule(name="crowd", rate="2m")
    for module, limit in ((pacing, "_MOST_CGROUPS"), (trees, "MOST")):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, 10)
            limiter.rule(name="crowd", rate="3m")
        limiter.rule(name="crowd", rate="4m")
    assert looked == [set(), None, set(), None, set()]
