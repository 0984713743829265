# SPDX-License-Identifier: GPL-3.0-or-later
"""What is right but rare: two tasks at once, processes that fork meanwhile or whose home is gone, odd names."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import host
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import FAMILY, child, until
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import Sender, program, purge, rule, snapshot


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        program()
        yield found


@pytest.fixture
def made(cgroups: Cgroups) -> Iterator[Callable[[str], str]]:
    """Makes cgroups, which are removed after the test."""
    paths: list[str] = []

    def make(path: str) -> str:
        os.mkdir(cgroups.absolute(path))
        paths.append(path)
        return path

    yield make
    for path in reversed(paths):
        if cgroups.exists(path):
            until(lambda path=path: _removed(cgroups, path))  # type: ignore[misc]


def _removed(cgroups: Cgroups, path: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(cgroups.absolute(path))
    return not cgroups.exists(path)


def place(pid: int) -> str | None:
    return snapshot(pid).places[pid]


# ---- two tasks at once


def at_once(*tasks: Callable[[], dict[str, Any]]) -> list[bool]:
    """Runs each in a process of its own, all from the same moment on; whether each has changed something."""
    waiting, start = os.pipe()
    children = []
    for task in tasks:
        pid = os.fork()
        if pid == 0:
            os.close(start)
            try:
                os.read(waiting, 1)
                os._exit(10 + task()["changed"])
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    os.close(waiting)
    os.close(start)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert set(codes) <= {10, 11}
    return [code == 11 for code in codes]


@pytest.mark.parametrize("loaded", [True, False], ids=["with the program", "without it"])
def test_one_rule_twice_at_once_is_made_once(cgroups: Cgroups, loaded: bool) -> None:
    if not loaded:
        purge("all")
    with child(FAMILY) as family:
        same = functools.partial(rule, name="web", pid=family.pid, rate="1m")
        assert sorted(at_once(same, same, same)) == [False, False, True]
        found = snapshot(family.pid)
        assert found.limits == {"/speed_limiter/web": Limit(1024**2, 1024**2)}
        assert found.places[family.pid] == "/speed_limiter/web"
        assert not same()["changed"]


def test_different_rules_at_once_are_all_made(cgroups: Cgroups) -> None:
    with contextlib.ExitStack() as stack:
        families = {f"rule-{number}": stack.enter_context(child()) for number in range(6)}
        tasks = [
            lambda name=name, pid=family.pid: rule(name=name, pid=pid, rate="1m") for name, family in families.items()
        ]
        assert at_once(*tasks) == [True] * 6
        found = snapshot(*(family.pid for family in families.values()))
        assert found.places == {family.pid: f"/speed_limiter/{name}" for name, family in families.items()}
        assert set(found.remembered.homes) == set(families)
        assert at_once(*tasks) == [False] * 6


def test_making_and_removing_at_once_leave_all_or_nothing(cgroups: Cgroups) -> None:
    with child() as one:
        for _turn in range(5):
            at_once(lambda: rule(name="web", pid=one.pid, rate="1m"), lambda: purge("rules"))
            found = snapshot(one.pid)
            if found.limits:
                assert found.members == {"/speed_limiter/web": "/speed_limiter/web"}
                assert found.places[one.pid] == "/speed_limiter/web"
            else:
                assert (found.states, found.members, found.places[one.pid]) == ((), {}, "/")


HOLDER = """
import sys
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.lock import host_lock
with host_lock(1):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_lock_that_is_not_given_back_is_an_error_that_names_its_holder(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LOCK_SECONDS", 0.2)
    before = snapshot()
    with child(HOLDER) as holder:
        with pytest.raises(LimiterError) as raised:
            rule(name="web", rate="1m")
        assert raised.value.kind == "locked"
        for words in (str(holder.pid), "0.2 s", f"kill {holder.pid}"):
            assert words in str(raised.value)
        assert rule(name="web", rate="1m", check=True)["changed"]  # looking does not wait
    assert snapshot() == before
    assert rule(name="web", rate="1m")["changed"]  # the kernel took it from the dead


# ---- processes that fork, lose their parents, or their home

# Each generation ends as soon as it has forked the next one, and every hundredth process stays.
STORM = """
import os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(0)
    time.sleep(0.002)
"""


def test_all_descendants_of_a_process_that_forks_without_end_come_along(
    cgroups: Cgroups, made: Callable[[str], str]
) -> None:
    home = made("/home_of_storm")
    with child(STORM) as storm:
        cgroups.move(storm.pid, home)
        until(lambda: len(cgroups.pids(home)) > 5)
        done = rule(name="web", pid=storm.pid, rate="1m")
        assert not done["warnings"]
        # What had lost its parent before it could be seen ends by itself; nothing new is born there.
        until(lambda: not cgroups.pids(home, recursive=False))
        until(lambda: len(cgroups.pids(f"{home}/speed_limiter.web")) > 5)
        rule(name="web", state="absent")
        until(lambda: len(cgroups.pids(home, recursive=False)) > 5)
        assert snapshot().cgroups == ("/speed_limiter",)


# Once told, forks twice; the one in between ends.
FORKS_LATER = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(write, b"%d" % os.getpid())
        sys.stdin.read()
    os._exit(0)
os.wait()
print(os.read(read, 100).decode(), flush=True)
sys.stdin.read()
"""


def test_a_grandchild_whose_parents_are_gone_goes_where_the_rules_processes_came_from(
    cgroups: Cgroups, made: Callable[[str], str]
) -> None:
    home = made("/home_of_orphan")
    with child(FORKS_LATER) as parent:
        cgroups.move(parent.pid, home)
        limiter.refuse_leaves(home)
        rule(pid=parent.pid, rate="1m")
        parent.process.stdin.write("\n")
        parent.process.stdin.flush()
        orphan = int(parent.process.stdout.readline())
        assert place(orphan) == f"/speed_limiter/pid-{parent.pid}"
        parent.process.kill()
        parent.process.wait()
        done = rule(name=f"pid-{parent.pid}", state="absent")
        assert place(orphan) == home
        assert not done["warnings"]
        os.kill(orphan, 9)


def test_where_the_home_is_gone_the_nearest_cgroup_above_takes_the_process(
    cgroups: Cgroups, made: Callable[[str], str]
) -> None:
    made("/above")
    home = made("/above/home")
    with child() as one:
        cgroups.move(one.pid, home)
        limiter.refuse_leaves(home)
        rule(name="web", pid=one.pid, rate="1m")
        os.rmdir(cgroups.absolute(home))
        done = rule(pid=one.pid, state="absent")
        assert place(one.pid) == "/above"
        assert any(home in warning and "went to /above" in warning for warning in done["warnings"])


def test_a_home_that_takes_no_process_any_more_is_passed_by(cgroups: Cgroups, made: Callable[[str], str]) -> None:
    made("/above")
    home = made("/above/home")
    with child() as one:
        cgroups.move(one.pid, home)
        limiter.refuse_leaves(home)
        rule(name="web", pid=one.pid, rate="1m")
        # A threaded cgroup makes those beside it invalid.
        Path(cgroups.absolute(made("/above/threaded")), "cgroup.type").write_text("threaded")
        done = rule(name="web", state="absent")
        assert place(one.pid) == "/above"
        assert any(home in warning and "went to /above" in warning for warning in done["warnings"])


def test_a_process_whose_origin_nobody_remembers_goes_to_the_root_with_a_warning(cgroups: Cgroups) -> None:
    with child() as one:
        rule(name="web", rate="1m")
        cgroups.move(one.pid, "/speed_limiter/web")
        done = rule(name="web", state="absent")
        assert place(one.pid) == "/"
        assert any(str(one.pid) in warning and "not known" in warning for warning in done["warnings"])


# ---- names and places


@pytest.mark.parametrize("name", ["n" * 128, "a", "0", "_", "web@1:2.3-4", "pid-x", "memory", "cgroup.", "cpu-max"])
def test_names_at_the_limits_of_what_is_allowed(cgroups: Cgroups, name: str) -> None:
    with child() as one:
        assert rule(name=name, pid=one.pid, rate="1m")["rule"]["pids"] == [one.pid]
        assert not rule(name=name, pid=one.pid, rate="1m")["changed"]
        assert place(one.pid) == f"/speed_limiter/{name}"
        assert rule(name=name, state="absent")["changed"]
        assert place(one.pid) == "/"


@pytest.mark.parametrize("path", ["/a\\x2db.service", "/with space", "/ünï", "/'\"$`;", "/dir:1", "/%s{}"])
def test_cgroups_with_odd_names_are_limited_in_place(cgroups: Cgroups, made: Callable[[str], str], path: str) -> None:
    made(path)
    assert rule(name="web", cgroup_path=path, rate="1m")["changed"]
    assert not rule(name="web", cgroup_path=cgroups.absolute(path), rate="1m")["changed"]
    assert snapshot().members[path] == "/speed_limiter/web"
    assert [found["name"] for found in limiter.info(cgroup_path=path)["rules"]] == ["web"]
    assert rule(name="web", cgroup_path=path, state="absent")["changed"]
    assert path not in snapshot().members


@pytest.fixture
def sender() -> Iterator[Sender]:
    with limiter.senders("/home_of_sender") as (one,):
        yield one


def test_a_rule_on_the_root_limits_everybody(sender: Sender, cgroups: Cgroups) -> None:
    rule(name="all", cgroup_path="/", rate="1m", everything=True)
    assert sender.charged() == {"all"}
    rule(name="web", pid=sender.pid, rate="1m")
    assert sender.charged("late") == {"all", "web"}
    rule(name="all", state="absent")
    assert sender.charged("later") == {"web"}


def test_a_second_mount_of_cgroup2_is_no_matter(sender: Sender, cgroups: Cgroups, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", tmp_path], check=True)
    try:
        assert Cgroups.find().mount == cgroups.mount
        made = rule(name="web", pid=sender.pid, rate="1m")["rule"]
        assert made["cgroup_path"] == f"{cgroups.mount}/speed_limiter/web"
        assert sender.charged() == {"web"}
        assert not rule(name="web", pid=sender.pid)["changed"]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_rule_named_twice_for_the_same_process_is_no_second_rule(sender: Sender, cgroups: Cgroups) -> None:
    rule(name="web", pid=sender.pid, rate="1m")
    again = rule(cgroup_path=f"{cgroups.mount}/speed_limiter/web", pids=[sender.pid, sender.pid])
    assert not again["changed"]
    assert rule(cgid=again["rule"]["cgroup_id"], rate="2m")["rule"]["rate"] == 2 * 1024**2
    assert rule(last=True, rate="3m")["rule"]["rate"] == 3 * 1024**2
    kept = "/home_of_sender/speed_limiter.web"
    assert snapshot().cgroups == ("/speed_limiter", "/speed_limiter/web", kept)
