# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that show a task little of themselves, or give it little: it says so, and nothing is half made."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child
from ansible_collections.speed_limiter.ebpf.tests.support.refusing import KCMP, PIDFD_GETFD, PIDFD_OPEN, refusing_call

IN_OWN_MOUNTS = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
NEW = "rule(name='new', rate='1m')"


@pytest.fixture(autouse=True)
def web() -> Iterator[None]:
    """A host with the program and a rule."""
    with limiter.clean_host():
        limiter.rule(name="web", rate="1m")
        yield


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of another user, with a socket."""
    code = (
        "import os, socket, sys; it = socket.socket(type=socket.SOCK_DGRAM); os.setuid(65534); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    with child(code) as process:
        yield process.pid


def mounted(command: str) -> list[str]:
    return [*IN_OWN_MOUNTS, f'{command}; exec "$@"', "sh"]


@pytest.mark.parametrize(
    ("prefix", "missing"),
    [
        (mounted("mount -t tmpfs none /proc"), "/proc/self/mountinfo"),
        (mounted("mount -t proc -o subset=pid proc /proc"), "/proc/sys/kernel/random/boot_id"),
    ],
    ids=["no /proc", "/proc with processes alone"],
)
def test_without_what_proc_tells_nothing_is_changed(prefix: list[str], missing: str) -> None:
    before = limiter.snapshot()
    for call in (NEW, "rule(name='web', rate='2m')", "rule(name='web', state='absent')"):
        assert elsewhere.error_of(prefix, call).startswith(f"os_error: {missing} could not be used: ENOENT")
        assert limiter.snapshot() == before
    limiter.rule(name="new", rate="1m")


@pytest.mark.every_kernel
def test_who_may_not_see_others_processes_says_which_sockets_it_misses(stranger: int) -> None:
    """Root without CAP_SYS_PTRACE, and a /proc with hidepid, which then hides from it, too."""
    prefix = mounted('mount -t proc -o hidepid=invisible proc /proc; set -- setpriv --bounding-set=-sys_ptrace "$@"')
    said = elsewhere.said(prefix, f"rule(name='it', pid={stranger}, rate='1m')['unenforced']")
    assert f"open sockets of process {stranger}" in said
    assert "EACCES" in said


@pytest.mark.parametrize("call", [PIDFD_OPEN, PIDFD_GETFD], ids=["pidfd_open", "pidfd_getfd"])
def test_who_is_refused_pidfds_says_which_sockets_it_misses(stranger: int, call: int) -> None:
    """As by a filter of seccomp's. What looks at rules says it, too."""
    prefix = refusing_call(call, errno.EPERM)
    for text in (f"rule(name='it', pid={stranger}, rate='1m')['unenforced']", "info(gather=['rules'])['rules']"):
        said = elsewhere.said(prefix, text)
        assert f"of process {stranger}" in said
        assert "the kernel lends no sockets of other processes: EPERM" in said


def test_without_a_comparison_of_tables_all_sockets_are_found(stranger: int) -> None:
    prefix = refusing_call(KCMP, errno.EPERM)
    assert elsewhere.said(prefix, f"rule(name='it', pid={stranger}, rate='1m')['unenforced']") == "[]\n"
    assert limiter.info(gather=["rules"])["rules"][0]["unlimited"] == []


def test_a_pid_namespace_hides_processes_and_no_rules(stranger: int) -> None:
    prefix = ["unshare", "--pid", "--fork", "--mount-proc"]
    before = limiter.snapshot(stranger)
    assert elsewhere.error_of(prefix, f"rule(pid={stranger}, rate='1m')").startswith("dead_process: ")
    assert limiter.snapshot(stranger) == before
    assert "'name': 'web'" in elsewhere.said(prefix, "info(gather=['rules'])['rules']")
    elsewhere.said(prefix, "rule(name='web', rate='2m', cgroup_paths=['/x.slice'])")
    # A rule that holds processes which it cannot see stays as it is.
    limiter.rule(name="web", pid=stranger)
    before = limiter.snapshot(stranger)
    assert elsewhere.error_of(prefix, "rule(name='web', state='absent')").startswith("cgroup_not_removed: ")
    after = limiter.snapshot(stranger)
    assert after._replace(remembered=before.remembered) == before


@pytest.mark.parametrize("call", ["rule(name='it', pid={}, rate='1m')", "rule(name='web', state='absent')"])
def test_out_of_descriptors_in_the_middle_a_task_undoes_what_it_did(stranger: int, call: str) -> None:
    before = limiter.snapshot(stranger)
    refused = 0
    for number in range(8, 64, 2):
        code, text = elsewhere.run(["prlimit", f"--nofile={number}"], call.format(stranger))
        if code == 0:
            break
        refused += 1
        assert "EMFILE" in text or "ImportError" in text or "libffi" in text, f"{number}: {text}"
        assert limiter.snapshot(stranger) == before, number
    else:
        pytest.fail("it never succeeds")
    assert refused


@pytest.mark.parametrize("call", ["rule(pid={}, rate='1m')", "rule(name='web', state='absent')", "purge('rules')"])
def test_on_a_full_run_nothing_is_changed(stranger: int, call: str) -> None:
    full = f"mount -t tmpfs -o size=4k,mode=0700 tmpfs {memory.DIRECTORY}; echo x >{memory.DIRECTORY}/others"
    before = limiter.snapshot(stranger)
    error = elsewhere.error_of(mounted(full), call.format(stranger))
    assert "ENOSPC" in error
    assert limiter.snapshot(stranger) == before
