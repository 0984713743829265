# SPDX-License-Identifier: GPL-3.0-or-later
"""A task that is killed, interrupted or refused between any two of its steps: nothing is left half made, nobody is
unlimited who was limited, and the next run completes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import Sender, nothing, purge, rule, rules, snapshot
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import ADOPTS, APART, RELEASES, steps

LEAST_STEPS, MOST_STEPS = 3, 300


class Team(NamedTuple):
    parent: Sender
    child: Sender
    service: Sender  # in the cgroup /service, which is limited in place
    stranger: Sender  # is never limited

    @property
    def pids(self) -> list[int]:
        return [sender.pid for sender in self]

    def charged(self) -> dict[str, list[str]]:
        """By whom what is sent through sockets is charged that were opened at home, and by one opened now."""
        return {
            f"{name} through {socket}": sorted(sender.charged(socket))
            for name, sender in zip(self._fields, self)
            for socket in ("udp", "tcp")
        }

    def check_paced(self, wanted: bool = True) -> None:
        """Connections that no rule holds for are not paced any more, at once; others are when they have sent a bit.

        Before Linux 6.1 the former have to send a bit, too; before 6.12 the latter may be older than any rule.
        """
        paced = {name: sender.is_paced() for name, sender in zip(self._fields, self)}
        charged = self.charged()
        for name, sender in zip(self._fields, self):
            if charged[f"{name} through tcp"] and wanted:
                if ADOPTS:
                    until(lambda sender=sender: sender.charged("tcp") and sender.is_paced())  # type: ignore[misc]
            elif RELEASES:
                assert not paced[name], name
            else:
                until(lambda sender=sender: (sender.charged("tcp"), not sender.is_paced())[1])  # type: ignore[misc]


class Job(NamedTuple):
    """``during`` says which rules a sender's packets may be charged to until the work is complete; others: to none."""

    work: Callable[[Team], dict[str, Any]]
    during: Mapping[str, tuple[tuple[str, ...], ...]]
    begin: Callable[[Team], object] = lambda team: limiter.program()
    ends: str = "rules"  # scope of the purge after it; "all" where it is about the program, whose loading takes long
    paces: bool = True  # afterwards


def web(team: Team) -> dict[str, Any]:
    return rule(name="web", pid=team.parent.pid, rate="1m")


def web_and_service(team: Team) -> None:
    web(team)
    rule(name="web", cgroup_path="/service")


def web_and_db(team: Team) -> None:
    web(team)
    rule(name="db", rate="1m")


def automatic_and_service(team: Team) -> None:
    rule(pid=team.parent.pid, rate="1m")
    rule(name="svc", cgroup_path="/service", rate="1m")


def attached_to_home(team: Team) -> None:
    limiter.program(cgroup_path="/home_of_team")
    web(team)


def web_paced(team: Team) -> None:
    limiter.program(state="reloaded")
    web(team)


def web_unpaced(team: Team) -> None:
    limiter.program(pacing=False)
    web(team)


def refused_pacing(team: Team) -> dict[str, Any]:
    with mock.patch.object(Attachments, "refuses_pacing", return_value="somebody's program shares the hook with none"):
        return limiter.program(state="reloaded")


MAYBE_WEB = ((), ("web",))
WEB = (("web",),)
FAMILY_MAYBE_WEB = {"parent": MAYBE_WEB, "child": MAYBE_WEB}
FAMILY_WEB = {"parent": WEB, "child": WEB}
WEB_OR_DB = (("web",), ("db",))

JOBS = {
    "a rule with a process, its child and their connections": Job(web, FAMILY_MAYBE_WEB),
    "a first rule, on a host without a program": Job(web, FAMILY_MAYBE_WEB, begin=lambda team: None, ends="all"),
    "another rate": Job(lambda team: rule(name="web", rate="2m", bucket="1m"), FAMILY_WEB, web),
    "a cgroup in place": Job(
        lambda team: rule(name="web", cgroup_path="/service"), {**FAMILY_WEB, "service": MAYBE_WEB}, web
    ),
    "each cgroup of a pattern": Job(
        lambda team: rule(name="web", cgroup_paths=["/servi*"], each=True), {**FAMILY_WEB, "service": MAYBE_WEB}, web
    ),
    "a rule goes": Job(
        lambda team: rule(name="web", state="absent"), {**FAMILY_MAYBE_WEB, "service": MAYBE_WEB}, web_and_service
    ),
    "a cgroup is not limited any more": Job(
        lambda team: rule(name="web", state="absent", cgroup_path="/service"),
        {**FAMILY_WEB, "service": MAYBE_WEB},
        web_and_service,
    ),
    "processes go back": Job(lambda team: rule(pid=team.parent.pid, state="absent"), FAMILY_MAYBE_WEB, web),
    "processes go to another rule": Job(
        lambda team: rule(name="db", pid=team.parent.pid), {"parent": WEB_OR_DB, "child": WEB_OR_DB}, web_and_db
    ),
    "a list of rules in place of others": Job(
        lambda team: rules(
            {"name": "db", "rate": "1m", "pid": team.parent.pid}, {"name": "dns", "rate": "1m"}, purge=True
        ),
        {"parent": WEB_OR_DB, "child": WEB_OR_DB, "service": MAYBE_WEB},
        web_and_service,
    ),
    "the program is loaded again": Job(lambda team: limiter.program(state="reloaded"), FAMILY_WEB, web),
    "the attach point moves": Job(lambda team: limiter.program(), FAMILY_WEB, attached_to_home, "all"),
    "pacing is switched on": Job(lambda team: limiter.program(), FAMILY_WEB, web_unpaced),
    "pacing is switched off": Job(lambda team: limiter.program(pacing=False), FAMILY_WEB, web_paced, paces=False),
    "an upgrade is refused pacing": Job(refused_pacing, FAMILY_WEB, web_paced, paces=False),
    "the program is unloaded": Job(lambda team: limiter.program(state="absent"), FAMILY_MAYBE_WEB, web, "all"),
    "everything is purged": Job(
        lambda team: purge("all"), {**FAMILY_MAYBE_WEB, "service": MAYBE_WEB}, web_and_service, "all"
    ),
}
PURGED = (
    "a first rule, on a host without a program",
    "a list of rules in place of others",
    "the attach point moves",
)
OF_THE_PROGRAM = (
    "the program is loaded again",
    "pacing is switched on",
    "pacing is switched off",
    "an upgrade is refused pacing",
)
# What is killed is a task, whose steps are the same with a program that stands in for the real one. These load the real
# one, too: where none was, and in place of another.
REALLY = [
    pytest.param(JOBS[name], id=f"{name}, the real one", marks=pytest.mark.real_program)
    for name in ("a first rule, on a host without a program", "the program is loaded again")
]
UNDONE = [name for name, job in JOBS.items() if job.ends == "rules" and name not in OF_THE_PROGRAM]


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with (
        limiter.senders("/home_of_team", 2) as (parent, child),
        limiter.senders("/service") as (service,),
        limiter.senders("/home_of_stranger") as (stranger,),
        limiter.clean_host(),
    ):
        yield Team(parent, child, service, stranger)


@pytest.fixture(autouse=True)
def a_clean_host(team: Team, request: pytest.FixtureRequest) -> Iterator[None]:
    """The real program takes long to load: another one stands in for it, but where the real one is asked for."""
    purge("all")
    with contextlib.nullcontext() if request.node.get_closest_marker("real_program") else limiter.stand_in():
        yield
        purge("all")


@contextlib.contextmanager
def begun(job: Job, team: Team) -> Iterator[None]:
    job.begin(team)
    try:
        yield
    finally:
        purge(job.ends)


def check_between(job: Job, team: Team, step: int) -> None:
    """What must hold at any moment, whatever was killed when."""
    for who, charged in team.charged().items():
        assert tuple(charged) in job.during.get(who.split()[0], ((),)), f"{who}, before step {step}"
    limiter.info()


def send_home(home: dict[int, str | None]) -> None:
    for pid, cgroup in home.items():
        Cgroups.find().move(pid, str(cgroup))


def differences(before: dict[str, object], after: dict[str, object]) -> str:
    return "\n".join(f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key])


@pytest.mark.parametrize("job", [*(pytest.param(job, id=name) for name, job in JOBS.items()), *REALLY])
def test_what_is_killed_between_any_two_steps_is_completed_by_the_same_task(team: Team, job: Job) -> None:
    with begun(job, team):
        job.work(team)
        wanted, wanted_charges = snapshot(*team.pids), team.charged()
    for killed, step in enumerate(steps(MOST_STEPS)):
        with begun(job, team):
            end, text = run_with(Fault.KILLED, step, lambda: job.work(team))
            check_between(job, team, step)
            job.work(team)
            assert snapshot(*team.pids) == wanted, f"killed before step {step}"
            assert team.charged() == wanted_charges, f"killed before step {step}"
            team.check_paced(job.paces)
        if (end, text) == (End.DONE, UNTOUCHED):
            assert killed >= LEAST_STEPS if APART == 1 else killed or step >= LEAST_STEPS
            return
        assert end is End.KILLED
    pytest.fail(f"more than {MOST_STEPS} steps")


@pytest.mark.parametrize("job", [JOBS[name] for name in PURGED], ids=PURGED)
def test_what_is_killed_between_any_two_steps_can_be_purged(team: Team, job: Job) -> None:
    empty = nothing(*team.pids)
    for step in steps(MOST_STEPS):
        job.begin(team)
        end, text = run_with(Fault.KILLED, step, lambda: job.work(team))
        purge("all")
        assert snapshot(*team.pids) == empty, f"killed before step {step}"
        team.check_paced()
        if (end, text) == (End.DONE, UNTOUCHED):
            return
    pytest.fail(f"more than {MOST_STEPS} steps")


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.INTERRUPTED])
@pytest.mark.parametrize("job", [JOBS[name] for name in UNDONE], ids=UNDONE)
def test_what_the_kernel_refuses_or_a_user_interrupts_is_undone(team: Team, job: Job, fault: Fault) -> None:
    def seen() -> dict[str, object]:
        found = snapshot(*team.pids)
        # Where processes came from may be known longer than it is needed.
        found = found._replace(remembered=found.remembered._replace(origins={}, homes={}))
        return {**found._asdict(), **team.charged()}

    home = nothing(*team.pids).places
    with begun(job, team):
        job.work(team)
        wanted = seen()
    undone = 0
    for tried, step in enumerate(steps(MOST_STEPS)):
        with begun(job, team):
            before = seen()
            end, text = run_with(fault, step, lambda: job.work(team))
            after = seen()
            # What need not fail is said: that an open connection, or the cgroup that one came from, was refused.
            warned = end is End.DONE and text not in ("", UNTOUCHED)
            if end is End.DONE:
                assert warned or after == wanted, f"before step {step}:\n{differences(wanted, after)}"
            elif after == before:
                undone += 1
            else:  # an interrupt may come when all is done, and only the lock is still held
                changed = differences(before, after)
                assert (end, after) == (End.INTERRUPTED, wanted), f"{end} before step {step}: {text}\n{changed}"
            if end is End.FAILED:
                assert "ENOSPC" in text, f"before step {step}"
        if warned:
            send_home(home)
        assert snapshot(*team.pids).places == home, f"before step {step}"
        if (end, text) == (End.DONE, UNTOUCHED):
            assert undone >= LEAST_STEPS if APART == 1 else tried or step >= LEAST_STEPS
            return
    pytest.fail(f"more than {MOST_STEPS} steps")
