# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tag the sockets of moved processes get, in the order in which things happen."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Process
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import following

RULES = {"/a.service/speed_limiter.web": 7, "/speed_limiter/web": 7}


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], int | None]]:
    found: list[tuple[tuple[int, ...], int | None]] = []

    def note(self: following.Following, rules: t.Mapping[int, int | None]) -> list[str]:
        found.extend(((pid,), rule) for pid, rule in rules.items())
        return []

    def limited_by(self: following.Following, cgroup: str, in_place: bool) -> int | None:
        return RULES.get(cgroup, 9 if in_place else None)

    monkeypatch.setattr(following.Following, "_tag", note)
    monkeypatch.setattr(following.Following, "_limited_by", limited_by)
    return found


def moved(monkeypatch: pytest.MonkeyPatch, cgroup: str) -> following.Following:
    monkeypatch.setattr(processes, "read", lambda pid: Process(pid, 1, cgroup))
    return following.Following(t.cast(t.Any, None), [], [])


def test_who_is_put_back_into_a_leaf_is_limited_again(tagged: list[t.Any], monkeypatch: pytest.MonkeyPatch) -> None:
    it = moved(monkeypatch, "/a.service/speed_limiter.web")
    it.moved(5, from_leaf=True)
    it.moved(5, from_leaf=False)
    it.tag_moved()
    assert tagged == [((5,), 7)]


def test_who_left_a_leaf_is_limited_by_his_way_up_alone(tagged: list[t.Any], monkeypatch: pytest.MonkeyPatch) -> None:
    it = moved(monkeypatch, "/a.service")
    it.moved(5, from_leaf=True)
    it.tag_moved()
    it.tag_moved()
    assert tagged == [((5,), None)]


def test_what_was_opened_in_a_rules_own_cgroup_is_under_the_rule_of_the_home(
    tagged: list[t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = moved(monkeypatch, "/a.service")
    it.moved(5, from_leaf=False)
    it.tag_moved()
    assert tagged == [((5,), 9)]
