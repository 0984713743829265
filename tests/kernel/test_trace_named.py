# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces of units and users on a host with systemd, by the names that an operator knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.net import Pair
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import Host

SERVICE = "/system.slice/talk.service"
TALK = f"""
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    sender.sendto(bytes(500), ("{Pair.address}", 9))
    time.sleep(0.002)
"""


@pytest.fixture(autouse=True)
def service(host: Host) -> Iterator[None]:
    """A service that sends, under a rule of its own."""
    host.path("/root/talk").write_text(TALK)
    host.path("/root").chmod(0o755)
    host.unit("talk.service", "[Service]\nExecStart=/usr/bin/python3 -S -E /root/talk")
    host.task("speed_limit_rule", name="talk", rate=str(8 * MBIT), units=["talk"])
    host.run("systemctl", "start", "talk")
    yield
    host.run("systemctl", "stop", "talk")
    host.task("speed_limit_purge", scope="all")


def trace(host: Host, **options: Any) -> list[dict[str, Any]]:
    found: dict[str, Any] = host.task("speed_limit_trace", **{"max_events": 5, "duration": 20, **options})
    assert not found["changed"]
    sessions: list[dict[str, Any]] = found["sessions"]
    return sessions


def test_a_unit_is_traced_and_no_other(host: Host) -> None:
    sessions = trace(host, units=["talk"])
    assert len(sessions) == 5
    assert {(one["cgroup"], one["rule"], one["target"]) for one in sessions} == {(SERVICE, "talk", Pair.address)}
    assert trace(host, users=["0"], duration=0.3) == []  # nobody is logged in


def test_a_user_is_traced_and_no_other(host: Host) -> None:
    """What runs in the slice that systemd gives to a user's sessions."""
    host.unit("session.service", "[Service]\nSlice=user-1000.slice\nExecStart=/usr/bin/python3 -S -E /root/talk")
    host.run("systemctl", "start", "session")
    sessions = trace(host, users=["1000"])
    host.run("systemctl", "stop", "session")
    assert len(sessions) == 5
    assert {(one["cgroup"], one["reason"]) for one in sessions} == {
        ("/user.slice/user-1000.slice/session.service", "exempt")
    }


def test_a_unit_that_is_not_known_is_refused_and_one_that_has_stopped_is_not(host: Host) -> None:
    assert "nosuch.service" in host.refused("speed_limit_trace", units=["nosuch"])
    host.run("systemctl", "stop", "talk")
    assert trace(host, units=["talk"], duration=0.3) == []


def test_a_service_that_restarts_meanwhile_is_traced_on(host: Host) -> None:
    """Its cgroup is another one then, with another id."""
    host.unit("again.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'sleep 1; exec systemctl restart talk'")
    host.run("systemctl", "start", "--no-block", "again")
    seen: set[int] = set()
    for _window in range(20):
        seen |= {one["cgroup_id"] for one in trace(host, units=["talk"], max_events=10_000, duration=3)}
        if len(seen) > 1:
            break
        host.run("systemctl", "start", "--no-block", "again")
    assert len(seen) > 1
