# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of playbooks/report.yml, of what the modules really return where rules are as wanted and do not limit."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.association import LOST, Association
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import KernelError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import association
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report import text
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.fleet import Fleet
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.hosts import Answers, read
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, program, rule, rules

WANTED: dict[str, Any] = {"name": "mirror", "rate": "1m", "cgroup_path": "/mirror"}


@pytest.fixture
def member() -> Iterator[str]:
    with limiter.clean_host() as cgroups:
        directory = Path(cgroups.absolute("/mirror"))
        directory.mkdir()
        try:
            yield "/mirror"
        finally:
            directory.rmdir()


def reported(wanted: dict[str, Any]) -> str:
    """As report.yml registers it, for two hosts that are alike."""
    answers = Answers(info(gather=["host", "rules"]), {**rules(wanted, check=True), "failed": False}, [wanted["name"]])
    return text.render(Fleet([read(name, answers) for name in ("a", "b")], "2026-11-27T13:00:00Z"))


def test_hosts_that_are_as_wanted_are_counted(member: str) -> None:
    rule(**WANTED)
    assert reported(WANTED).splitlines() == [
        "2 hosts: 2 as wanted, 0 differ, 0 failed, 0 unreachable",
        "",
        "2 with rules that do not survive a reboot: a, b",
        "    mirror",
    ]


def test_a_limiter_that_is_not_pinned_is_told(member: str) -> None:
    rule(**WANTED)
    Path(pins.path("rate_limit_config_map")).unlink()
    assert "+ pins of the limiter: complete" in reported(WANTED)
    rule(**WANTED)
    assert "2 as wanted" in reported(WANTED)


def test_rules_that_do_not_limit_are_not_as_wanted(member: str) -> None:
    rule(**WANTED)
    program(cgroup_path="/speed_limiter")  # the member is not below it
    shown = reported(WANTED)
    assert shown.startswith("2 hosts: 0 as wanted, 0 differ, 0 failed, 0 unreachable, 2 not limited\n")
    assert "2 not limited: a, b\n    the program does not run for /mirror: nothing limits it." in shown
    assert "+ mirror" not in shown
    changed = reported({**WANTED, "rate": "2m"})
    assert "2 not limited: a, b\n" in changed and "\n    + mirror: 2097152 B/s" in changed


def test_kernels_that_have_lost_the_cgroups_of_new_sockets_are_in_the_report(member: str) -> None:
    rule(**WANTED)
    with mock.patch.object(association, "look", return_value=Association(LOST, "it was tried")):
        shown = reported(WANTED)
    assert ", 2 not limited\n" in shown
    assert "    new connections are not limited: after a program has used net_cls" in shown


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        # The service was restarted meanwhile.
        (LimiterError("no_cgroup", "the cgroup /mirror cannot be opened", "No such file or directory"), []),
        (KernelError("the BPF programs of a cgroup cannot be listed", errno.ENOMEM), ["/mirror", "cannot be listed"]),
    ],
)
def test_what_cannot_be_looked_at_when_the_work_is_done_does_not_fail_the_task(
    member: str, error: LimiterError, reasons: list[str]
) -> None:
    with mock.patch.object(Attachments, "runs_for", side_effect=error):
        done = rule(**WANTED)
    assert done["changed"]
    assert len(done["unenforced"]) == bool(reasons)
    assert all(reason in done["unenforced"][0] for reason in reasons)
    assert [found["name"] for found in info(gather=["rules"])["rules"]] == ["mirror"]
