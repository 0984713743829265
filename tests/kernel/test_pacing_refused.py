# SPDX-License-Identifier: GPL-3.0-or-later
"""Where sockets are not paced: the rules limit all the same, and what is told says which mode they are in, and why."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, until
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import (
    LIMIT_EGRESS,
    PACE_SOCKETS,
    REFUSED_PACE,
    REFUSED_SETTLE,
    SETTLE_SOCKETS,
    an_object,
)
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import RELEASES, releasing

Compile = t.Callable[[str], str]

NOT_PACED = sorted([*(row.name for row in catalog.MAPS), catalog.LIMIT.link])
PACED = sorted([*NOT_PACED, catalog.PACE.link, *([catalog.SETTLE.link] if RELEASES else [])])
# Sends through a connection to itself as much as goes in a second, and says how many bytes that were.
SEND = """
import socket, sys, threading, time
print("ready", flush=True)
sys.stdin.readline()
listener = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(listener.getsockname())
receiver, peer = listener.accept()
threading.Thread(target=lambda: [None for _ in iter(lambda: receiver.recv(1 << 20), b"")], daemon=True).start()
sender.settimeout(1)
sent, end = 0, time.monotonic() + 1
while time.monotonic() < end:
    try:
        sent += sender.send(bytes(10000))
    except TimeoutError:
        pass
print(sent, flush=True)
"""


@pytest.fixture(autouse=True)
def a_clean_host() -> t.Iterator[None]:
    with limiter.clean_host():
        yield


@pytest.fixture
def built(compiled: Compile) -> t.Callable[..., str]:
    def build(pace: str = PACE_SOCKETS, settle: str = SETTLE_SOCKETS, limit: str = LIMIT_EGRESS) -> str:
        return compiled(an_object(limit, pace, settle))

    return build


def pinned() -> list[str]:
    return sorted(os.listdir(pins.PIN_DIR))


def mode() -> tuple[str, t.Any]:
    """Of the rule `it`, and why."""
    (rule,) = limiter.info(name="it", gather=["rules"])["rules"]
    return rule["pacing"]["mode"], rule["pacing"]["reason"]


def assert_still_limits() -> None:
    """A second of 100 kB/s with a bucket of 20 kB, and what TCP may borrow; loopback would carry a gigabyte."""
    with child(SEND) as sender:
        limiter.rule(name="it", rate="100k", bucket="20k", pid=sender.pid)
        sender.process.stdin.write("go\n")
        sender.process.stdin.flush()
        sent = int(sender.process.stdout.readline())
    # What is in the socket's buffer was accepted, and not sent: 4 MiB at most, by default.
    assert sent < 6 << 20
    (rule,) = limiter.info(name="it", gather=["rules"])["rules"]
    assert 0 < rule["counters"]["bytes"] < 300_000


@pytest.mark.parametrize("at", ["/", "/below"])
def test_a_program_that_shares_the_hook_of_sockets_with_none_is_named_and_the_rules_limit(
    attach: t.Callable[..., int], cgroups: t.Callable[[str], str], at: str
) -> None:
    cgroups("/below")
    foreign = attach(at, hook=bpf.SOCK_OPS)
    check = limiter.program(cgroup_path="/below", check=True)
    made = limiter.program(cgroup_path="/below")
    assert check["program"] == made["program"]
    assert made["program"]["pacing"]["state"] == "refused"
    (warning,) = made["warnings"]
    for words in ("others_sockops", f"id {foreign}", f"attached to {at} for itself alone", "only the token bucket"):
        assert words in warning
    assert pinned() == NOT_PACED
    again = limiter.program(cgroup_path="/below")
    assert (again["changed"], again["program"]) == (False, made["program"])
    about = limiter.info(gather=["program"])["program"]["pacing"]
    assert about == made["program"]["pacing"]
    assert about["state"] == "refused"
    assert "others_sockops" in about["reason"]
    limiter.program(state="absent")


def test_what_was_refused_is_tried_again_when_the_program_is_reloaded(attach: t.Callable[..., int]) -> None:
    foreign = attach("/", hook=bpf.SOCK_OPS)
    made = limiter.rule(name="it", rate="1m")
    assert [text for text in made["warnings"] if f"id {foreign}" in text]
    assert mode()[0] == "token_bucket"
    assert "others_sockops" in mode()[1]
    assert_still_limits()
    bpf.detach(Cgroups.find().mount, bpf.program_by_id(foreign), bpf.SOCK_OPS)
    assert limiter.program()["changed"] is False
    assert mode() == (
        "token_bucket",
        "the kernel refuses to pace TCP: the warning of speed_limit_program with state=reloaded says why",
    )
    check, made = (limiter.program(state="reloaded", check=check) for check in (True, False))
    assert check["program"] == made["program"]
    assert made["program"]["pacing"]["state"] == "on"
    # The connection that was not paced has ended, and is forgotten after a second.
    until(lambda: mode() == ("paced", None))


def test_a_program_for_sockets_that_the_verifier_refuses_is_left_out_with_its_words(
    built: t.Callable[..., str],
) -> None:
    limiter.rule(name="it", rate="1m")
    path = built(pace=REFUSED_PACE)
    made = limiter.program(object=path)
    assert made["program"]["pacing"]["state"] == "refused"
    (warning,) = made["warnings"]
    assert "the kernel refuses pace_sockets: EACCES" in warning
    assert "invalid mem access" in warning
    assert "\n" not in warning
    assert pinned() == NOT_PACED
    assert limiter.program(object=path)["changed"] is False
    assert "the warning of speed_limit_program" in mode()[1]
    check, again = (limiter.program(object=path, state="reloaded", check=check) for check in (True, False))
    assert check["program"] == again["program"] == made["program"]
    check, made = (limiter.program(check=check) for check in (True, False))
    assert check["program"] == made["program"]
    assert made["program"]["pacing"]["state"] == "on"


@releasing
def test_an_iterator_that_the_kernel_refuses_is_left_out_and_sockets_are_paced(built: t.Callable[..., str]) -> None:
    made = limiter.program(object=built(settle=REFUSED_SETTLE))
    assert made["program"]["pacing"]["state"] == "on"
    (warning,) = made["warnings"]
    assert "the kernel refuses settle_sockets" in warning
    assert pinned() == sorted([*NOT_PACED, catalog.PACE.link])
    assert limiter.info(gather=["program"])["program"]["pacing"] == {
        "state": "on",
        "reason": None,
        "open_connections": False,
        "open_connections_reason": "the kernel refuses settle_sockets: the warning of speed_limit_program with "
        "state=reloaded says why",
    }


def test_a_kernel_that_is_too_old_for_the_iterator_is_not_asked_and_paces_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel, "version", lambda: (5, 10))
    made = limiter.program()
    assert (made["program"]["pacing"]["state"], made["warnings"]) == ("on", [])
    assert pinned() == sorted([*NOT_PACED, catalog.PACE.link])
    about = limiter.info(gather=["program"])["program"]["pacing"]
    assert (about["open_connections"], about["open_connections_reason"]) == (
        False,
        "only Linux 6.1 and newer can go through all sockets",
    )


def test_an_upgrade_that_is_refused_pacing_ends_what_paced(built: t.Callable[..., str]) -> None:
    limiter.program()
    assert pinned() == PACED
    assert limiter.program(object=built(pace=REFUSED_PACE))["program"]["pacing"]["state"] == "refused"
    assert pinned() == NOT_PACED
    assert limiter.program()["program"]["pacing"]["state"] == "on"
    assert pinned() == PACED


def test_pacing_is_switched_off_and_on_and_what_check_mode_says_comes_true() -> None:
    limiter.rule(name="it", rate="1m")
    assert mode() == ("paced", None)
    for paced, line in ((False, "pacing off"), (True, "pacing on")):
        foreseen, made = (limiter.program(pacing=paced, check=check) for check in (True, False))
        assert foreseen == made
        assert made["changed"]
        assert made["diff"]["after"].endswith(f"{line}\n")
        assert line not in made["diff"]["before"]
        assert pinned() == (PACED if paced else NOT_PACED)
        for check in (True, False):
            assert limiter.program(pacing=paced, check=check)["changed"] is False
        if not paced:
            assert mode() == (
                "token_bucket",
                "pacing is switched off: speed_limit_program with pacing=true switches it on",
            )
            assert_still_limits()


def test_without_a_program_a_rule_says_that_nothing_limits() -> None:
    limiter.rule(name="it", rate="1m")
    limiter.program(state="absent")
    assert mode() == ("none", "no program is loaded: nothing limits")


def test_a_pin_that_somebody_removed_is_noticed_and_made_again() -> None:
    limiter.rule(name="it", rate="1m")
    os.unlink(pins.path(catalog.PACE.link))
    assert mode()[0] == "token_bucket"
    assert limiter.program()["changed"]
    assert (pinned(), mode()[0]) == (PACED, "paced")


def test_the_figures_of_a_rule_are_those_of_its_connections() -> None:
    with child(SEND.replace("+ 1\n", "+ 60\n")) as sender:
        limiter.rule(name="it", rate="1m", bucket="10k", pid=sender.pid)
        assert shown()["active_connections"] == 0
        assert shown()["fair_share"] is None
        sender.process.stdin.write("go\n")
        sender.process.stdin.flush()
        until(lambda: shown()["waiting_connections"] == 1 and shown()["unpaced_connections"] == 0)
        seen = shown()
        assert (seen["mode"], seen["active_connections"]) == ("paced", 1)
        assert 0 < seen["fair_share"] <= 2 << 20
    until(lambda: shown()["active_connections"] == 0)
    assert shown()["fair_share"] is None


def shown() -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", limiter.info(name="it", gather=["rules"])["rules"][0]["pacing"])


def test_a_foreign_link_with_a_name_of_ours_is_named(tmp_path: Path) -> None:
    limiter.program()
    if RELEASES:
        os.rename(pins.path(catalog.SETTLE.link), pins.path("aside"))
    os.rename(pins.path(catalog.PACE.link), pins.path(catalog.SETTLE.link))
    with pytest.raises(LimiterError, match="settle_sockets_link is not the limiter's.*not to an iterator"):
        limiter.program()
    os.rename(pins.path(catalog.SETTLE.link), pins.path(catalog.PACE.link))
    if RELEASES:
        os.rename(pins.path("aside"), pins.path(catalog.SETTLE.link))
