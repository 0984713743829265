# SPDX-License-Identifier: GPL-3.0-or-later
"""What is concluded of a host's sockets, and what its user is told."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.association import (
    KEPT,
    LOST,
    SUSPECTED,
    UNKNOWN,
    Association,
    can_be_lost,
    judge,
    used,
)


@pytest.mark.parametrize(
    ("own", "socket", "state"),
    [
        (4217, 4217, KEPT),
        (4217, 1, LOST),
        (1, 1, UNKNOWN),  # a socket of the root's says nothing
        (None, 1, UNKNOWN),  # where we are cannot be seen: outside of a cgroup namespace
        (None, 4217, KEPT),
        (4217, 99, KEPT),  # we were moved meanwhile
        (4217, None, UNKNOWN),  # the kernel does not tell
        (None, None, UNKNOWN),
    ],
)
def test_a_socket_of_ours_decides(own: int | None, socket: int | None, state: str) -> None:
    assert judge(own, socket) == state


@pytest.mark.parametrize(
    ("version", "controllers", "can"),
    [
        ((5, 10), {"memory", "net_cls"}, True),
        ((5, 14), {"net_prio"}, True),
        ((4, 19), {"net_cls", "net_prio"}, True),
        ((5, 10), {"memory", "pids"}, False),
        ((5, 15), {"net_cls", "net_prio"}, False),
        ((6, 1), {"net_cls"}, False),
    ],
)
def test_only_kernels_with_the_flaw_are_tried(version: tuple[int, int], controllers: set[str], can: bool) -> None:
    assert can_be_lost(version, controllers) is can


@pytest.mark.parametrize(
    ("value", "has"),
    [
        ("0\n", False),
        ("1048577\n", True),
        ("lo 0\neth0 0\n", False),
        ("lo 0\neth0 5\n", True),
        ("", False),
    ],
)
def test_a_value_is_seen_in_either_controllers_files(value: str, has: bool) -> None:
    assert used(value) is has


def test_what_is_lost_is_told_with_the_kernel_the_evidence_and_what_helps() -> None:
    text = Association(LOST, "the evidence").warning("5.10.0-32-amd64") or ""
    assert text.startswith("new connections are not limited: after a program has used net_cls")
    for words in ("kernel (5.10.0-32-amd64)", "until the next boot", "(the evidence)", "cgroup_no_v1=", "5.15"):
        assert words in text


def test_what_is_only_suspected_is_told_as_such() -> None:
    text = Association(SUSPECTED, "the evidence").warning("5.10.0-32-amd64") or ""
    assert text.startswith("new connections may not be limited: after a program has used")


@pytest.mark.parametrize("state", [KEPT, UNKNOWN])
def test_where_nothing_speaks_for_it_nothing_is_said(state: str) -> None:
    assert Association(state).warning("5.10.0-32-amd64") is None
