# SPDX-License-Identifier: GPL-3.0-or-later
"""A task that is killed while sockets begin or cease to be paced: the next one that changes something, whatever it is,
completes it, and until then speed_limit_info says it. One that fails leaves pacing as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Callable
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import KernelError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import settle
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.faults import End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import Sender, rule
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import ADOPTS, RELEASES, adopting, releasing

NO_STEP = -1  # of run_with's own faults


@pytest.fixture(autouse=True)
def a_clean_host() -> Iterator[None]:
    with limiter.clean_host():
        yield


@contextlib.contextmanager
def unpaced_sender() -> Iterator[Sender]:
    """A process in the rule `web` on a host that does not pace, with a connection that never was paced."""
    limiter.program(pacing=False)
    with limiter.senders("/home") as (one,):
        rule(name="web", pid=one.pid, rate="1m")
        yield one
        rule(name="web", state="absent")


@contextlib.contextmanager
def paced_sender() -> Iterator[Sender]:
    if not ADOPTS:  # what is older than its rule is not paced
        rule(name="web", cgroup_path="/", rate="1m")
    with limiter.senders("/home") as (one,):
        rule(name="web", pid=one.pid, rate="1m")
        until(lambda: bool(one.charged("tcp")) and one.is_paced())
        yield one
        rule(name="web", state="absent")


def killed_in(module: ModuleType, function: str, work: Callable[[], dict[str, Any]]) -> None:
    """Runs a module's work in a child process that is killed where this function is called."""
    with mock.patch.object(module, function, lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)):
        assert run_with(Fault.KILLED, NO_STEP, work)[0] is End.KILLED


def the_same_rule() -> dict[str, Any]:
    return rule(name="web", rate="1m")


def pacing() -> dict[str, Any]:
    found: dict[str, Any] = limiter.info(gather=["program"])["program"]["pacing"]
    return found


NEXT: dict[str, Callable[[], dict[str, Any]]] = {
    "a rule task that changes nothing": the_same_rule,
    "a list of rules": lambda: limiter.rules({"name": "web", "rate": "1m"}),
    "a purge of what is stale": lambda: limiter.purge("stale"),
}


@adopting
@pytest.mark.parametrize("following", NEXT.values(), ids=list(NEXT))
def test_what_a_killed_load_has_not_settled_is_settled_by_the_next_task(
    following: Callable[[], dict[str, Any]],
) -> None:
    with unpaced_sender() as sender:
        killed_in(settle, "settle", limiter.program)
        assert pacing()["state"] == "on"
        following()
        assert not memory.read()[0].settling
        until(lambda: bool(sender.charged("tcp")) and sender.is_paced())


@adopting
def test_what_a_killed_task_has_not_settled_is_settled_by_a_program_task_that_changes_nothing() -> None:
    with unpaced_sender() as sender:
        limiter.program()
        killed_in(settle, "settle", lambda: rule(name="web", rate="2m"))
        assert memory.read()[0].settling
        assert limiter.program()["changed"] is False
        assert not memory.read()[0].settling
        until(lambda: bool(sender.charged("tcp")) and sender.is_paced())


ENDS: dict[str, Callable[[], dict[str, Any]]] = {
    "pacing is switched off": lambda: limiter.program(pacing=False),
    "the program is unloaded": lambda: limiter.program(state="absent"),
}


@pytest.mark.parametrize("killed_at", [pytest.param("settle", marks=releasing), "release_one_by_one"])
@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_pacing_whose_end_was_killed_is_ended_by_the_next_rule_task(end: Callable[[], Any], killed_at: str) -> None:
    with paced_sender() as sender:
        killed_in(settle, killed_at, end)
        assert "was killed" in pacing()["reason"]
        (shown,) = limiter.info(gather=["rules"])["rules"]
        assert (shown["pacing"]["mode"], shown["pacing"]["reason"]) == ("token_bucket", pacing()["reason"])
        assert the_same_rule()["changed"] is False
        assert set(os.listdir(pins.PIN_DIR)) == {*(row.name for row in catalog.MAPS), catalog.LIMIT.link}
        assert not sender.is_paced()
        assert "was killed" not in pacing()["reason"]
        assert limiter.program()["program"]["pacing"]["state"] == "on"


def test_check_mode_ends_nothing() -> None:
    with paced_sender():
        killed_in(settle, "settle" if RELEASES else "release_one_by_one", lambda: limiter.program(pacing=False))
        before = set(os.listdir(pins.PIN_DIR))
        rule(name="web", rate="2m", check=True)
        assert set(os.listdir(pins.PIN_DIR)) == before


@contextlib.contextmanager
def a_full_hook() -> Iterator[None]:
    full = KernelError("the BPF program cannot be attached", errno.E2BIG)
    with mock.patch.object(Attachments, "_attach", side_effect=full), pytest.raises(KernelError, match="E2BIG"):
        yield


def test_a_load_that_fails_leaves_nothing_that_paces_and_nothing_to_settle() -> None:
    with unpaced_sender() as sender:
        before = memory.read()
        with a_full_hook():
            limiter.program()
        assert (memory.read(), pacing()["state"]) == (before, "off")
        assert set(os.listdir(pins.PIN_DIR)) == {*(row.name for row in catalog.MAPS), catalog.LIMIT.link}
        assert sender.charged("tcp") == {"web"}
        assert not sender.is_paced()


def test_a_rule_whose_load_fails_leaves_no_pin() -> None:
    with a_full_hook():
        rule(name="web", rate="1m")
    assert (limiter.snapshot().pins, limiter.snapshot().cgroups) == ((), ())
