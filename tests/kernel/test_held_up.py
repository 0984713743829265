# SPDX-License-Identifier: GPL-3.0-or-later
"""Users who keep root's task waiting: it ends all the same, says who stands in the way, and keeps no lock."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import apart, memory, tools
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.lock import host_lock
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import WAIT, child, refused, until
from ansible_collections.speed_limiter.ebpf.tests.support.held_up import (
    COMMAND_LINE,
    PAGES,
    SOCKET,
    attackers,
    namespace,
    silent_path,
)
from ansible_collections.speed_limiter.ebpf.tests.support.homes import making
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import releasing

# A task waits apart.IN_ALL at most; what it does beside that takes as long as on a host without such users.
MOST = apart.IN_ALL + 2


@pytest.fixture(autouse=True)
def clean_host() -> Iterator[None]:
    with limiter.clean_host(), namespace():
        limiter.program()
        yield


def look_at_all_namespaces() -> None:
    """The next task does, as after one that was killed."""
    memory.write(memory.read()[0]._replace(settling=True))


def children() -> set[int]:
    """Of this very process: tasks run in it."""
    found = set()
    for pid in processes.all_pids():
        if os.getpid() in processes.ancestors(pid)[:1]:
            found.add(pid)
    return found


def end(pid: int) -> None:
    """It was told to end long ago."""
    until(lambda: os.waitpid(pid, os.WNOHANG) != (0, 0))


@releasing
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("count", [1, 20])
def test_sockets_that_their_owners_keep_locked_hold_up_no_task(count: int, page: str) -> None:
    with child() as process, attackers(SOCKET, count, page) as them:
        before = children()
        look_at_all_namespaces()
        for number in range(3):
            began = time.monotonic()
            made = limiter.rule(name="it", pid=process.pid, rate=f"{number + 1}m")
            assert time.monotonic() - began < MOST
            assert made["changed"]
            (told,) = made["warnings"]
            assert any(f"process {one.pid} (python" in told for one in them)
            assert "keeps a socket locked" in told
            assert ("and 17 more" in told) == (count == 20)
            with host_lock(0):
                pass
        (left,) = children() - before
        assert str(left) in told
        assert f"{memory.DIRECTORY}/lock" not in descriptors(left)
    end(left)
    assert limiter.rule(name="it", rate="3m")["warnings"] == ()
    assert not memory.read()[0].settling


def descriptors(pid: int) -> list[str]:
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_sockets_that_their_owners_keep_locked_hold_up_no_look_at_connections(page: str) -> None:
    """The connections are told all the same, without their rates; and no second child is left behind."""
    limiter.rule(name="it", cgroup_paths=["/"], everything=True, rate="1g")
    with attackers(SOCKET, 3, page) as them:
        before = children()
        for _turn in range(2):
            began = time.monotonic()
            found = limiter.info(gather=["use"], connections=100)
            assert time.monotonic() - began < MOST
            [rule] = found["use"]
            theirs = [one for one in rule["connections"] if one["pid"] in {process.pid for process in them}]
            assert len(theirs) == 6
            assert any(one["rate"] is None for one in theirs)
            assert any("keeps their sockets locked" in text for text in found["unseen"])
        left = children() - before
        assert len(left) <= 1
    for pid in left:
        end(pid)


@releasing
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE")
def test_attacks_of_several_kinds_at_once_add_up_to_no_more_than_their_times() -> None:
    """Command lines are read before the lock is taken, with a patience of its own."""
    name = f"wanted-by-{os.getpid()}"  # a selector sees the processes of the whole machine
    with child(WAIT, name) as process, attackers(COMMAND_LINE, 3, "fuse") as silent, attackers(SOCKET, 3) as locking:
        before = children()
        look_at_all_namespaces()
        began = time.monotonic()
        made = limiter.rule(name="it", processes={"cmdline": f"{name}$"}, rate="1m")
        assert time.monotonic() - began < 3 + MOST
        assert made["matched"] == [process.pid]
        assert any("keeps a socket locked" in text for text in made["warnings"])
        assert any(f"process {one.pid} (" in text for one in locking for text in made["warnings"])
        assert {one.pid for one in silent} <= {it["pid"] for it in made["skipped_processes"]}
        with host_lock(0):
            pass
        left = children() - before
        assert len(left) <= 1
    for pid in left:
        end(pid)


@releasing
def test_what_was_left_is_known_after_a_purge() -> None:
    with child() as process, attackers(SOCKET):
        before = children()
        look_at_all_namespaces()
        limiter.rule(name="it", pid=process.pid, rate="1m")
        purged = limiter.purge("all")
        assert any("keeps a socket locked" in text for text in purged["warnings"])
        assert os.listdir(memory.DIRECTORY) == [memory.SETTLING]
        limiter.program()
        limiter.rule(name="it", pid=process.pid, rate="1m")
        (left,) = children() - before
    end(left)


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_that_cannot_be_read_hold_up_no_task(page: str) -> None:
    with child() as process, attackers(COMMAND_LINE, 3, page) as them:
        before = children()
        limiter.rule(name="it", pids=[process.pid, *(one.pid for one in them)], rate="1m")
        for _turn in range(3):
            began = time.monotonic()
            shown = {one["pid"]: one["command"] for one in limiter.info(gather=["processes"])["processes"]}
            assert time.monotonic() - began < MOST
            assert all(shown[one.pid].startswith("python") and "-c" not in shown[one.pid] for one in them)
            assert "-c" in shown[process.pid]
        assert children() <= before


@pytest.mark.parametrize("page", PAGES)
def test_a_selector_that_cannot_read_command_lines_says_so(page: str) -> None:
    with child(WAIT, "wanted") as process, attackers(COMMAND_LINE, 3, page) as them:
        found = limiter.rule(name="it", processes={"cmdline": "wanted$"}, rate="1m")
        assert found["matched"] == [process.pid]
        assert [it["pid"] for it in found["skipped_processes"]] == [one.pid for one in them]
        (told,) = found["unenforced"]
        assert told in found["warnings"]
        assert all(f"{one.pid} (python" in told for one in them)


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE")
def test_an_executable_in_a_file_system_that_never_answers_holds_up_no_task(tmp_path: Path) -> None:
    """Neither its own rule's nor others'; no second child is left behind, and links elsewhere are followed."""
    # Of its own: a selector sees the processes of the whole machine, not of the sandbox alone.
    copy = Path(shutil.copy(os.path.realpath(sys.executable), tmp_path / "copy"))
    link = tmp_path / "link"
    link.symlink_to(copy)
    with child(executable=copy) as process, silent_path() as path:
        before = children()
        for _turn in range(2):
            began = time.monotonic()
            made = limiter.rules(
                {"name": "it", "rate": "1m", "processes": {"exe": path}},
                {"name": "other", "rate": "1m", "processes": {"exe": str(link)}},
            )
            assert time.monotonic() - began < 2 * MOST  # before the lock, and with it
            (told,) = made["unenforced"]
            assert f"where the links of exe {path} lead is not known" in told
            assert told in made["warnings"]
            assert made["matched"] == {"it": [], "other": [process.pid]}
        left = children() - before
        assert len(left) <= 1
    for pid in left:
        end(pid)


def test_who_has_a_child_left_behind_hides_nobody_else() -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with child(WAIT, "wanted") as process, child(WAIT, "wanted", user="nobody") as other:
        with apart.only_one(memory.READING, owner=nobody):  # as such a child keeps it
            found = limiter.rule(name="it", processes={"cmdline": "wanted$"}, rate="1m")
            assert found["matched"] == [process.pid]
            (told,) = found["unenforced"]
            assert f"{other.pid} (" in told
            # What needs no memory is known all the same.
            for keys in ({"user": "nobody", "exe": sys.executable}, {"user": "nobody"}):
                found = limiter.rule(name="it", processes=keys, rate="1m")
                assert other.pid in found["matched"]
                assert found["unenforced"] == []
        found = limiter.rule(name="it", processes={"cmdline": "wanted$"}, rate="1m")
        assert found["matched"] == [process.pid, other.pid]


def test_of_whom_another_key_excludes_no_memory_is_read() -> None:
    with attackers(COMMAND_LINE, 3), child(WAIT, "wanted", user="nobody") as process:
        found = limiter.rule(name="it", processes={"cmdline": "wanted$", "user": "nobody"}, rate="1m")
        assert found["matched"] == [process.pid]
        assert found["skipped_processes"] == []
        assert found["unenforced"] == []


def test_many_selectors_are_answered_in_the_time_of_one() -> None:
    wanted = [f"wanted-{number}" for number in range(6)]
    with contextlib.ExitStack() as stack:
        slow = {stack.enter_context(child()).pid for _number in range(8)}

        def look(pid: int) -> bool:
            if pid in slow:
                time.sleep(60)
            return True

        stack.enter_context(mock.patch.object(processes, "arguments_are_its_own", look))
        pids = {name: [stack.enter_context(child(WAIT, name, user="nobody")).pid] for name in wanted}
        found = limiter.rules(*({"name": name, "rate": "1m", "processes": {"cmdline": f"{name}$"}} for name in wanted))
        assert found["matched"] == pids


def test_the_owner_of_a_process_is_who_made_its_namespace() -> None:
    """He may have many numbers there. Of a container that root made it is the container."""
    nobody = pwd.getpwnam("nobody").pw_uid
    code = (
        "import ctypes, os, sys\n"
        "os.setuid(int(sys.argv[1]))\n"
        "assert ctypes.CDLL(None).unshare(0x10000000) == 0\n"  # CLONE_NEWUSER
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "os.setuid(7)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    assert processes.owner(os.getpid()) == 0
    with child(user="nobody") as plain:
        assert processes.owner(plain.pid) == nobody
    for maker in (nobody, 0):
        with child(code, str(maker)) as process:
            Path(f"/proc/{process.pid}/uid_map").write_text("0 100000 10")
            process.process.stdin.write("\n")
            process.process.stdin.flush()
            process.process.stdout.readline()
            assert processes.user(process.pid) == 100007
            owner = processes.owner(process.pid)
            assert owner == nobody if maker else owner > 2**32


def test_who_waits_for_a_file_that_never_answers_is_the_only_one_that_is_left() -> None:
    """As where the command line was moved there after it was looked at. Newer kernels end who waits for it."""
    with mock.patch.object(processes, "arguments_are_its_own", return_value=True):
        with child() as process, attackers(COMMAND_LINE, 3, "fuse") as them:
            before = children()
            limiter.rule(name="it", pids=[process.pid, *(one.pid for one in them)], rate="1m")
            for _turn in range(3):
                began = time.monotonic()
                shown = {one["pid"]: one["command"] for one in limiter.info(gather=["processes"])["processes"]}
                assert time.monotonic() - began < MOST
                assert all(shown[one.pid].startswith("python") and "-c" not in shown[one.pid] for one in them)
            left = children() - before
            assert len(left) <= 1
        for pid in left:
            end(pid)
        with child() as process:
            assert "-c" in processes.command(process.pid)


def test_a_child_has_nothing_of_the_task() -> None:
    """Neither its lock nor its output, whose readers would wait for the child's end."""
    with host_lock(0), socket.socket() as kept:
        (found,) = apart.run(lambda tell: tell(sorted(descriptors(os.getpid()))), [kept.fileno()]).said
        assert {target.partition(":")[0] for target in found} == {"/dev/null", "socket", "pipe"}
        assert len([target for target in found if target.startswith("socket:")]) == 1
        assert len([target for target in found if target.startswith("pipe:")]) == 1  # to its parent


def test_a_child_that_fails_or_ends_early_is_no_error_of_the_task() -> None:
    def fail(tell: apart.Tell) -> None:
        tell("begun")
        raise OSError(28, "No space left on device")

    outcome = apart.run(fail)
    assert (outcome.said, outcome.complete, outcome.late) == (["begun"], False, False)
    assert "No space left" in outcome.why
    outcome = apart.run(lambda tell: os.kill(os.getpid(), 9))
    assert (outcome.said, outcome.complete, outcome.late) == ([], False, False)
    assert "ended early" in outcome.why


def test_a_task_has_only_so_much_patience() -> None:
    began = time.monotonic()
    with host_lock(0):
        for _turn in range(20):
            outcome = apart.run(lambda tell: time.sleep(60), silence=1.0)
            assert outcome.late
            assert outcome.left is None
        assert apart.patience() < 0.1  # waits that short are not counted
    assert time.monotonic() - began < MOST
    with host_lock(0):
        assert apart.patience() == apart.IN_ALL


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that lxc-info, the only command of a runtime, shows in a cgroup of its own."""
    cgroups = Cgroups.find()
    with making(cgroups) as make, child() as process:
        make("/delegated")
        make("/delegated/lxc.payload.box")
        cgroups.move(process.pid, "/delegated/lxc.payload.box")

        def ask(arguments: list[str], seconds: float) -> tuple[int, str, str]:
            with host_lock(0):
                return 0, f"{process.pid}\n", ""

        monkeypatch.setattr(tools, "find", lambda name: "/bin/lxc-info" if name == "lxc-info" else None)
        monkeypatch.setattr(tools, "ask", ask)
        yield cgroups.absolute("/delegated")


def test_the_lock_is_free_while_names_are_looked_up(container: str) -> None:
    done = limiter.rule(name="it", containers=["box"], rate="1m")
    assert f"{container}/lxc.payload.box" in done["rule"]["members"]


def test_a_user_who_answers_for_a_container_has_none_of_his_cgroups_limited_for_it(container: str) -> None:
    os.chown(container, 1, 1)
    with refused("container_not_running", "a user answers for it", "/delegated is not root's"):
        limiter.rule(name="it", containers=["box"], rate="1m")


def test_who_is_held_up_does_not_keep_others_from_being_looked_at() -> None:
    def look(number: int) -> int:
        if number in (1, 3):
            time.sleep(60)
        return number * number

    found, held_up = apart.each(range(5), look)
    assert found == [(0, 0), (2, 4), (4, 16)]
    assert held_up == [1, 3]
