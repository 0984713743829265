# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaves that nobody is in, that went with their service, whose rule is gone, or that somebody else has to do with."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Callable
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.apply import _Application
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, until
from ansible_collections.speed_limiter.ebpf.tests.support.homes import (
    HOME,
    LEAF,
    Make,
    Service,
    place,
)
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import Sender, info, purge, rule, snapshot


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        limiter.program()
        yield found


def everything(sender: Sender, new: str) -> dict[str, set[str]]:
    return {through: sender.charged(through) for through in ("udp", "tcp", new)}


# ---- what is left


def test_a_leaf_that_nobody_is_in_any_more_goes_with_the_next_task(made: Make, cgroups: Cgroups) -> None:
    made("/a")
    with child() as one:
        cgroups.move(one.pid, "/a")
        rule(name="web", pid=one.pid, rate="1m")
    leaf = "/a/speed_limiter.web"
    until(lambda: not cgroups.pids(leaf))
    stale = purge("stale", check=True)["removed"]
    assert stale["stale_leaves"] == [cgroups.absolute(leaf)] and cgroups.exists(leaf)
    assert info(name="web", gather=["rules"])["rules"][0]["members"] == [cgroups.absolute("/speed_limiter/web")]
    assert not rule(name="web", rate="1m")["changed"]
    assert not cgroups.exists(leaf) and leaf not in snapshot().members
    assert not purge("stale")["changed"]


def test_a_purge_of_what_is_stale_removes_it_too(made: Make, cgroups: Cgroups) -> None:
    made("/a")
    with child() as one:
        cgroups.move(one.pid, "/a")
        rule(name="web", pid=one.pid, rate="1m")
    until(lambda: not cgroups.pids("/a"))
    assert purge("stale")["changed"]
    assert not cgroups.exists("/a/speed_limiter.web") and set(snapshot().members) == {"/speed_limiter/web"}


@pytest.mark.parametrize("ends", [lambda: rule(name="web", rate="1m"), lambda: purge("stale")], ids=["rule", "purge"])
def test_a_leaf_that_went_with_its_service_is_forgotten(
    made: Make, cgroups: Cgroups, ends: Callable[[], dict[str, Any]]
) -> None:
    """As systemd does when the service stops."""
    made("/a")
    with child() as one:
        cgroups.move(one.pid, "/a")
        rule(name="web", pid=one.pid, rate="1m")
    until(lambda: not cgroups.pids("/a"))
    cgroups.remove("/a/speed_limiter.web")
    assert any(member.startswith("gone") for member in snapshot().members)
    ends()
    assert set(snapshot().members) == {"/speed_limiter/web"}
    assert not purge("stale")["changed"]


def test_what_somebody_elses_rmdir_left_of_a_rule_is_purged(service: Service, cgroups: Cgroups) -> None:
    """A rule's own cgroup is empty as long as all its processes are in leaves, so everybody can remove it."""
    parent, child_of_it = service
    rule(name="web", pid=parent.pid, rate="1m")
    os.rmdir(cgroups.absolute("/speed_limiter/web"))
    done = purge("stale")
    assert done["removed"]["stale_leaves"] == [cgroups.absolute(LEAF)]
    assert done["removed"]["pids"] == service.pids
    assert place(parent.pid) == HOME and not cgroups.exists(LEAF)
    assert set(snapshot().members) == {"/speed_limiter/tight", "/tight.slice"}
    assert parent.charged() == {"tight"}


def test_a_rule_that_is_made_anew_takes_over_what_such_an_rmdir_left(service: Service, cgroups: Cgroups) -> None:
    parent = service.parent
    rule(name="web", pid=parent.pid, rate="1m")
    os.rmdir(cgroups.absolute("/speed_limiter/web"))
    assert rule(name="web", pid=parent.pid, rate="2m")["changed"]
    assert place(parent.pid) == LEAF and parent.charged("new") == {"tight", "web"}
    rule(name="web", state="absent")
    assert place(parent.pid) == HOME and not cgroups.exists(LEAF)


def test_a_leaf_of_a_killed_run_that_is_no_member_yet_goes_with_all(made: Make) -> None:
    leaf = made("/a") / "speed_limiter.web"
    leaf.mkdir()
    users = made("/b") / "speed_limiter.theirs"
    users.mkdir()
    os.chown(users, 1, 1)
    assert purge("stale")["removed"]["stale_leaves"] == []
    assert purge("all")["removed"]["stale_leaves"] == [str(leaf)]
    assert not leaf.exists() and users.exists()
    users.rmdir()


def test_a_unit_or_an_occupied_cgroup_with_such_a_name_is_nobody_s_leaf(made: Make, cgroups: Cgroups) -> None:
    """As the collection's own units have: a restore may be waiting for the lock in one of them."""
    made("/system.slice")
    units = [made(f"/system.slice/speed_limiter{name}") for name in (".service", ".mine", "-metrics.service")]
    with child() as restore, child() as other:
        cgroups.move(restore.pid, "/system.slice/speed_limiter.service")
        cgroups.move(other.pid, "/system.slice/speed_limiter.mine")
        done = rule(name="web", pid=restore.pid, rate="1m")
        assert [one["cgroup"] for one in done["matched_units"]] == ["/system.slice/speed_limiter.service"]
        assert place(restore.pid) == "/system.slice/speed_limiter.service/speed_limiter.web"
        rule(name="web", state="absent")
        assert place(restore.pid) == "/system.slice/speed_limiter.service"
        assert purge("all")["removed"]["stale_leaves"] == []
        assert place(other.pid) == "/system.slice/speed_limiter.mine"
    until(lambda: not cgroups.pids("/system.slice"))
    assert units[0].name not in " ".join(purge("all")["removed"]["stale_leaves"]) and units[0].exists()


def test_the_leaves_of_a_limiter_in_a_container_are_its_own(made: Make, cgroups: Cgroups) -> None:
    inside, mount = made("/container"), cgroups.mount
    made("/container/program")
    os.makedirs("/run/speed_limiter", exist_ok=True)
    prefix = elsewhere.in_container(mount, inside, f"mount -t bpf -o mode=0700 bpf {pins.BPFFS}")
    code = (
        "import sys\nfrom ansible_collections.speed_limiter.ebpf.tests.support import limiter\n"
        "limiter.rule(name='web', pid=int(sys.argv[1]), rate='1m')\nprint('ready', flush=True)\ninput()\n"
        "limiter.purge('all')"
    )
    leaf = "/container/program/speed_limiter.web"
    with child() as one:
        cgroups.move(one.pid, "/container/program")
        with Popen([*prefix, sys.executable, "-c", code, str(one.pid)], stdin=PIPE, stdout=PIPE, text=True) as other:
            assert other.stdout and other.stdout.readline() == "ready\n"
            assert place(one.pid) == leaf
            rule(name="host", pid=one.pid, rate="1m")
            assert place(one.pid) == f"{leaf}/speed_limiter.host"  # in its limit, too
            assert purge("all")["removed"]["stale_leaves"] == []
            assert place(one.pid) == leaf
            other.communicate("\n")
            assert place(one.pid) == "/container/program"


def test_an_occupied_leaf_of_an_earlier_version_that_is_no_member_any_more_is_known(
    no_way_home: Service, cgroups: Cgroups
) -> None:
    os.removexattr(cgroups.absolute(LEAF), "trusted.speed_limiter")
    rule(name="web", state="absent")
    assert place(no_way_home.parent.pid) == LEAF
    assert purge("all", check=True)["removed"]["stale_leaves"] == [cgroups.absolute(LEAF)]


def test_leaves_without_marks_are_leaves_as_long_as_they_are_members(service: Service, cgroups: Cgroups) -> None:
    """Where the kernel permits no attribute."""
    with mock.patch.object(os, "setxattr", side_effect=PermissionError(1, "EPERM")):
        rule(name="web", pid=service.parent.pid, rate="1m")
        assert place(service.parent.pid) == LEAF
        rule(name="web", state="absent")
    assert place(service.parent.pid) == HOME and not cgroups.exists(LEAF)


# ---- what a user does in his own part of the hierarchy


def test_what_a_user_calls_like_a_leaf_limits_nobody_and_hides_nobody(service: Service, cgroups: Cgroups) -> None:
    parent, child_of_it = service
    theirs = Path(cgroups.absolute(LEAF))
    theirs.mkdir()
    os.chown(theirs, 1, 1)
    cgroups.move(parent.pid, LEAF)
    rule(name="web", rate="1m")
    assert parent.charged() == {"tight"}
    assert info(gather=["processes"])["processes"] == []
    assert not rule(name="web", pid=parent.pid, children=False)["warnings"]
    assert place(parent.pid) == f"{LEAF}/speed_limiter.web" and parent.charged("new") == {"tight", "web"}
    done = rule(name="web", pid=child_of_it.pid)
    assert any("somebody else than root has made a cgroup of that name" in warning for warning in done["warnings"])
    assert place(child_of_it.pid) == "/speed_limiter/web" and child_of_it.charged("new") == {"web"}
    (theirs / "below").mkdir()
    assert rule(name="web", state="absent")["warnings"] == ()
    assert parent.charged() == {"tight"} and place(parent.pid) == LEAF and place(child_of_it.pid) == HOME
    cgroups.move(parent.pid, HOME)
    cgroups.remove(LEAF)


def own(path: str) -> None:
    """The cgroup is a user's from now on."""
    os.chown(path, 1, 1)


def instead(cgroups: Cgroups) -> None:
    """A user was faster than root."""
    path = cgroups.absolute(LEAF)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    own(path)


def no_room(cgroups: Cgroups) -> None:
    Path(cgroups.absolute(HOME), "cgroup.max.descendants").write_text("0")


def threads(cgroups: Cgroups) -> None:
    """The leaf that is made takes no processes."""
    below = Path(cgroups.absolute(HOME), "below")
    below.mkdir(exist_ok=True)
    (below / "cgroup.type").write_text("threaded")


@pytest.mark.parametrize("meanwhile", [instead, no_room, threads])
def test_a_user_who_spoils_a_leaf_while_it_is_made_does_not_stop_the_task(
    service: Service, cgroups: Cgroups, meanwhile: Callable[[Cgroups], None]
) -> None:
    parent, child_of_it = service
    real = Cgroups.make

    def make(self: Cgroups, cgroup: str) -> bool:
        meanwhile(self)
        return real(self, cgroup)

    with mock.patch.object(Cgroups, "make", make):
        done = rule(name="web", pid=parent.pid, rate="1m")
    (told,) = [warning for warning in done["warnings"] if f"processes leave {HOME}" in warning]
    assert "no longer holds for them" in told
    assert place(parent.pid) == place(child_of_it.pid) == "/speed_limiter/web"
    assert parent.charged("new") == child_of_it.charged("new") == {"web"}
    assert LEAF not in snapshot().members
    rule(name="web", state="absent")
    assert place(parent.pid) == place(child_of_it.pid) == HOME and parent.charged("new") == {"tight"}
    cgroups.remove(LEAF)
    cgroups.remove(f"{HOME}/below")


def test_who_is_killed_after_such_a_change_of_plan_leaves_processes_that_go_home(
    service: Service, cgroups: Cgroups
) -> None:
    real = Cgroups.make

    def make(self: Cgroups, cgroup: str) -> bool:
        instead(self)
        return real(self, cgroup)

    task = os.fork()
    if not task:
        with mock.patch.object(Cgroups, "make", make), mock.patch.object(_Application, "_tidy", lambda *_: os._exit(7)):
            rule(name="web", pid=service.parent.pid, rate="1m")
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) == 7
    assert place(service.parent.pid) == "/speed_limiter/web"
    rule(name="web", state="absent")
    assert place(service.parent.pid) == place(service.child.pid) == HOME
    cgroups.remove(LEAF)


def test_a_leaf_that_cannot_be_removed_keeps_no_rule(service: Service, cgroups: Cgroups) -> None:
    """As where systemd has given all of a unit to its user anew, and he made more below it."""
    parent, child_of_it = service
    rule(name="web", pid=parent.pid, rate="1m")
    own(cgroups.absolute(LEAF))
    assert not rule(name="web", pid=parent.pid)["changed"] and place(parent.pid) == LEAF
    real = os.rmdir

    def rmdir(path: str) -> None:
        if path.endswith(LEAF):
            os.makedirs(f"{path}/again", exist_ok=True)
        real(path)

    with mock.patch.object(os, "rmdir", rmdir):
        done = rule(name="web", state="absent")
    assert any(f"{LEAF} stays, and limits nothing" in warning for warning in done["warnings"])
    assert place(parent.pid) == place(child_of_it.pid) == HOME and parent.charged() == {"tight"}
    assert set(snapshot().members) == {"/speed_limiter/tight", "/tight.slice"}
    cgroups.remove(LEAF)


def test_who_could_not_leave_when_his_rule_went_does_with_what_is_stale(service: Service) -> None:
    def leave(_self: object, pid: int, cgroup: str) -> None:
        raise LimiterError("unusable_cgroup", f"process {pid} cannot be moved", cgroup, "Choose another")

    rule(name="web", pid=service.parent.pid, rate="1m")
    with mock.patch.object(Cgroups, "move", leave):
        done = rule(name="web", state="absent")
    assert any(f"stay in {LEAF}, which limits nothing; speed_limit_purge" in warning for warning in done["warnings"])
    assert place(service.parent.pid) == place(service.child.pid) == LEAF
    assert service.parent.charged() == {"tight"}
    said = purge("stale", check=True)
    assert place(service.parent.pid) == LEAF
    removed = purge("stale")
    assert removed["changed"] and removed["diff"] == said["diff"]
    assert place(service.parent.pid) == place(service.child.pid) == HOME
    assert not purge("stale")["changed"]


@pytest.fixture
def no_way_home(service: Service, cgroups: Cgroups) -> Iterator[Service]:
    """Who owns the service's cgroup has made it one that takes no processes, while all of them were in the leaf."""
    rule(name="web", pid=service.parent.pid, rate="1m")
    real = Cgroups.move

    def move(self: Cgroups, pid: int, cgroup: str) -> None:
        if cgroup == HOME:
            raise LimiterError("unusable_cgroup", f"process {pid} cannot be moved to the cgroup {cgroup}", "EBUSY")
        real(self, pid, cgroup)

    with mock.patch.object(Cgroups, "move", move):
        yield service
    purge("all")


def test_who_cannot_go_home_stays_in_his_service_and_is_free(no_way_home: Service, cgroups: Cgroups) -> None:
    """Further up he would lose the limits of his service, which a user could make use of."""
    parent = no_way_home.parent
    done = rule(name="web", state="absent")
    assert any("stays in /tight.slice/a.service" in warning for warning in done["warnings"])
    assert place(parent.pid) == LEAF and LEAF not in snapshot().members
    assert everything(parent, "new") == dict.fromkeys(("udp", "tcp", "new"), {"tight"})


def test_one_of_several_who_cannot_go_home_stays_limited(no_way_home: Service) -> None:
    parent, child_of_it = no_way_home
    done = rule(name="web", pid=child_of_it.pid, state="absent")
    assert any("stays in" in warning for warning in done["warnings"]) and done["rule"]["pids"] == no_way_home.pids
    assert child_of_it.charged() == {"tight", "web"}


def test_the_end_of_a_process_is_the_end_of_its_automatic_rule(made: Make, cgroups: Cgroups) -> None:
    made("/a")
    with child() as one:
        cgroups.move(one.pid, "/a")
        rule(pid=one.pid, rate="1m")
        leaf = f"/a/speed_limiter.pid-{one.pid}"
        assert place(one.pid) == leaf
        os.kill(one.pid, signal.SIGKILL)
    until(lambda: not cgroups.pids("/a"))
    assert [one["name"] for one in purge("stale")["removed"]["rules"]] == [f"pid-{one.pid}"]
    assert not cgroups.exists(leaf)
