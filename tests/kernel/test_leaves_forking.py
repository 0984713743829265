# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that fork and exit so fast that none is there any more when it is moved."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import apply
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.apply import _Application
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import FAMILY, child, until
from ansible_collections.speed_limiter.ebpf.tests.support.homes import making, place
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import purge, rule, rules, snapshot

LEAF = "/a/speed_limiter.web"
# As fast as can be: of many, some would wait for a processor, and be moved. It ends with the one that waits.
LOOP = """
int fork(void); void _exit(int); int access(const char *, int);
int main(int count, char **argument) { while (access(argument[1], 0) == 0) if (fork() > 0) _exit(0); }
"""
LOOPS = """
import os, subprocess, sys
with open(sys.argv[1], "w") as place:
    place.write(str(os.getpid()))
subprocess.Popen([sys.argv[2], f"/proc/{os.getpid()}/fd/0"])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found, making(found) as make:
        make("/a")
        yield found


@pytest.fixture
def loops(cgroups: Cgroups, tmp_path: Path) -> Iterator[int]:
    """Children of this process fork in the leaf of a rule."""
    loop = str(tmp_path / "loop")
    subprocess.run(["clang", "-O2", "-x", "c", "-o", loop, "-"], input=LOOP, text=True, check=True)
    with child() as one:
        cgroups.move(one.pid, "/a")
        rule(name="web", pid=one.pid, rate="1m")
        with child(LOOPS, f"{cgroups.absolute(LEAF)}/cgroup.procs", loop) as parent:
            yield parent.pid
    until(lambda: not cgroups.pids("/a"))


@pytest.mark.parametrize("ends", [lambda: rule(name="web", state="absent"), purge], ids=["absent", "purge"])
def test_who_forks_and_exits_in_a_loop_keeps_no_rule(cgroups: Cgroups, loops: int, ends: Any) -> None:
    real = _Application._send_home

    def send_home(self: _Application, name: str, pid: int) -> bool:
        """As on a machine that has a processor for each loop: who is listed is gone when he is moved."""
        return real(self, name, pid) if frozen(cgroups) else True

    with mock.patch.object(_Application, "_send_home", send_home):
        assert not ends()["warnings"]
    assert not cgroups.exists(LEAF) and not snapshot().members
    before = set(cgroups.pids("/a"))
    until(lambda: len(set(cgroups.pids("/a")) - before) >= 2)
    assert place(loops) == "/a"


def frozen(cgroups: Cgroups) -> bool:
    file = Path(cgroups.absolute(LEAF), "cgroup.freeze")
    return file.exists() and file.read_text() == "1\n"


def test_a_task_that_is_killed_meanwhile_leaves_nobody_frozen(cgroups: Cgroups, loops: int) -> None:
    def killed(*_arguments: Any) -> bool:
        if frozen(cgroups):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    task = os.fork()
    if not task:
        with mock.patch.object(_Application, "_send_home", killed), mock.patch.object(apply, "_FORK_ROUNDS", 1):
            rule(name="web", state="absent")
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) == -signal.SIGKILL
    until(lambda: not frozen(cgroups))
    # As if the child that did this had been killed, too.
    Path(cgroups.absolute(LEAF), "cgroup.freeze").write_text("1")
    rule(name="web", rate="1m")
    assert not frozen(cgroups)
    assert place(loops) == LEAF


def test_who_cannot_be_got_out_of_a_leaf_is_free_there(cgroups: Cgroups, loops: int) -> None:
    real = _Application._send_home

    def send_home(self: _Application, name: str, pid: int) -> bool:
        done = real(self, name, pid)
        if pid == loops:
            cgroups.move(pid, LEAF)
        return done

    with mock.patch.object(_Application, "_send_home", send_home):
        done = rule(name="web", state="absent")
    assert any(f"stay in {LEAF}, which limits nothing" in warning for warning in done["warnings"])
    assert not frozen(cgroups) and not snapshot().members
    cgroups.move(loops, "/a")


def test_a_child_that_another_rule_of_the_list_keeps_stays_there(cgroups: Cgroups) -> None:
    """Its parent leaves that rule for one that comes later: the child was not forked meanwhile."""
    with child(FAMILY) as one:
        middle, last = (int(word) for word in one.words)
        for pid in (one.pid, middle, last):
            cgroups.move(pid, "/a")
        rule(name="jobs", pid=one.pid, rate="1m")
        rules({"name": "jobs", "pids": [middle]}, {"name": "web", "rate": "1m", "pids": [one.pid]})
        assert cgroups.pids("/a/speed_limiter.jobs") == sorted((middle, last))
        assert cgroups.pids(LEAF) == [one.pid]
