# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel is asked which cgroup a socket has that is opened now: on every kernel, wherever the asking process is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.lock import host_lock
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import association
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until

SAID = b"6,510,269748648,-;cgroup: cgroup: disabling cgroup2 socket matching due to net_prio or net_cls activation\n"


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


def test_a_new_socket_has_the_cgroup_of_its_process(cgroups: Cgroups) -> None:
    if association.cgroup_of_new_socket() is None:
        pytest.skip("this kernel has no udp_diag")
    child = limiter.rule(name="x", rate="1m")["rule"]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            Path(child["cgroup_path"], "cgroup.procs").write_text("0")
            os.write(writing, str(association.cgroup_of_new_socket()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        assert int(pipe.read()) == child["cgroup_id"]
    os.waitpid(pid, 0)
    assert association._try_inside(cgroups, "/speed_limiter/x") == "kept"
    assert cgroups.pids("/speed_limiter/x") == []  # nobody stays


def test_where_it_cannot_be_tried_nothing_is_claimed(cgroups: Cgroups) -> None:
    assert association._try_inside(cgroups, "/speed_limiter/there-is-none") == "unknown"
    # No loopback, no socket to try it with; and info still comes.
    assert "'kernel': " in elsewhere.said(["unshare", "--net"], "info(gather=['host'])")


def test_a_rule_that_is_frozen_holds_neither_the_task_nor_the_lock_of_one_that_is_killed(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = limiter.rule(name="x", rate="1m")["rule"]
    freeze = Path(rule["cgroup_path"], "cgroup.freeze")
    freeze.write_text("1")
    try:
        assert association._try_inside(cgroups, "/speed_limiter/x") == "unknown"
        assert cgroups.pids("/speed_limiter/x") == []
        monkeypatch.setattr(association, "_TIMEOUT", 600.0)
        pid = os.fork()
        if pid == 0:
            try:
                with host_lock(1.0):
                    association._try_inside(cgroups, "/speed_limiter/x")
            finally:
                os._exit(1)
        until(lambda: cgroups.pids("/speed_limiter/x") != [])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with host_lock(1.0):
            assert cgroups.pids("/speed_limiter/x") != []
    finally:
        freeze.write_text("0")
    until(lambda: not cgroups.pids("/speed_limiter/x"))


def test_what_a_use_of_cgroup_v1_leaves_is_found(tmp_path: Path) -> None:
    below = tmp_path / "docker"
    below.mkdir()
    for directory in (tmp_path, below):
        (directory / "net_prio.ifpriomap").write_text("lo 0\neth0 0\n")
        (directory / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.procs").write_text("1\n")  # where all processes are, unless somebody moves them
    assert association._trace(str(tmp_path)) is None
    (below / "cgroup.procs").write_text("1234\n")
    assert association._trace(str(tmp_path)) == f"{below} of net_prio has processes"
    (below / "net_prio.ifpriomap").write_text("lo 0\neth0 7\n")
    assert association._trace(str(tmp_path)) == f"{below}/net_prio.ifpriomap has a value"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (SAID, True),
        (SAID.replace(b"6,", b"14,", 1), False),  # not the kernel's: who is root may write there, too
        (b"6,1,1,-;something else\n", False),
        (b"", False),  # as in containers that have /dev/null there: it has no end
    ],
)
def test_only_the_kernels_own_words_in_its_log_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: bytes, said: bool
) -> None:
    (tmp_path / "log").write_bytes(log)
    monkeypatch.setattr(association, "LOG", str(tmp_path / "log"))
    assert association._kernel_said_so() is said
