# SPDX-License-Identifier: GPL-3.0-or-later
"""Cgroups that are threaded, go while a task runs, are meant by two rules, or cannot be seen from a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import enforce
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.apply import apply
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, refused
from ansible_collections.speed_limiter.ebpf.tests.support.homes import Make, place
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import rule, snapshot


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        limiter.program()
        yield found


@pytest.mark.parametrize("path", ["/domain/threads", "/domain/thr*", "/*/threads"])
def test_a_threaded_cgroup_is_limited_in_place(cgroups: Cgroups, path: str) -> None:
    with limiter.senders("/domain") as (sender,):
        threads = Path(cgroups.absolute("/domain/threads"))
        threads.mkdir()
        (threads / "cgroup.type").write_text("threaded")
        cgroups.move(sender.pid, "/domain/threads")
        rule(name="web", cgroup_paths=[path], rate="1m")
        assert sender.charged("late") == {"web"}
        rule(name="web", state="absent")
        assert sender.charged("later") == set()
        cgroups.move(sender.pid, "/domain")
        threads.rmdir()


def test_two_patterns_of_equal_rank_are_refused_and_both_named(cgroups: Cgroups) -> None:
    rule(name="web", cgroup_paths=["/x-*/service"], rate="1m")
    with limiter.refused_unchanged("ambiguous_patterns", "/x-*/service", "/*-x/service", "two rules"):
        rule(name="db", cgroup_paths=["/*-x/service"], rate="1m")
    rule(name="web", cgroup_paths=["/*-x/service"])  # of one rule, it does not matter which holds


@pytest.mark.parametrize("everything", [False, True], ids=["slice", "pattern"])
def test_a_slice_that_goes_while_it_is_limited_is_limited_when_it_comes_back(
    made: Make, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    slices = [made("/user.slice"), made("/user.slice/user-7.slice")]
    path = "/user.slice/user-*.slice" if everything else "/user.slice/user-7.slice"
    _before_apply(monkeypatch, slices[1].rmdir)
    done = rule(name="seven", cgroup_paths=[path], rate="1m", everything=True)
    assert done["changed"] and done["rule"]["waiting"] == [str(slices[0] / Path(path).name)]
    assert done["unenforced"] == []


def test_a_process_whose_slice_goes_while_it_is_taken_stays_where_it_went(
    cgroups: Cgroups, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _other = made("/user.slice"), made("/other.slice")
    with child() as one:
        cgroups.move(one.pid, "/user.slice")

        def log_out() -> None:
            cgroups.move(one.pid, "/other.slice")
            home.rmdir()

        rule(name="other", rate="1m")
        _before_apply(monkeypatch, log_out)
        before = snapshot()
        with refused("process_moved", f"process {one.pid} went to /other.slice", "Nothing was changed"):
            rule(name="web", pid=one.pid, rate="1m")
        assert snapshot() == before and place(one.pid) == "/other.slice"
        monkeypatch.undo()
        rule(name="web", pid=one.pid, rate="1m")
        assert place(one.pid) == "/other.slice/speed_limiter.web"


def _before_apply(monkeypatch: pytest.MonkeyPatch, happen: Any) -> None:
    def applied(*arguments: Any) -> Any:
        happen()
        return apply(*arguments)

    monkeypatch.setattr(enforce, "apply", applied)


def test_a_task_in_a_container_says_what_it_cannot_see(cgroups: Cgroups, made: Make) -> None:
    inside, mount = made("/container"), cgroups.mount
    made("/outside")
    prefix = elsewhere.in_container(mount, inside, f"mount -t bpf -o mode=0700 bpf {pins.BPFFS}")
    os.makedirs("/run/speed_limiter", exist_ok=True)
    with child() as one:
        cgroups.move(one.pid, "/outside")
        taken = f"rule(name='web', pid={one.pid}, rate='1m', check=True)['warnings']"
        assert "it is outside of this cgroup namespace. To keep those, run the task on the host" in elsewhere.said(
            prefix, taken
        )
        seen = "rule(name='web', cgroup_paths=['/outside'], rate='1m')['rule']['waiting']"
        assert elsewhere.said(prefix, seen).strip() == f"['{mount}/outside']"
        assert place(one.pid) == "/outside" and limiter.info(gather=["rules"])["rules"] == []
