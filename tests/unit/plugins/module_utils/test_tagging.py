# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task says of processes whose descriptors it could not look at, and how long it looks."""

from __future__ import annotations

import os
import time
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import apart
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import tagging

TAGS = tagging.Tags(lambda fd: None)
Alive = t.Callable[[int], None]


@pytest.fixture(autouse=True)
def begin() -> None:
    apart.begin()


class Waiting(Exception):
    """Whoever looks at a process is kept waiting."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Processes that keep whoever looks at them waiting, as if that time had passed."""
    found: set[int] = set()

    def tag(pids: t.Sequence[int], tags: object, alive: Alive) -> tagging.Tagged:
        for pid in pids:
            alive(pid)
            if pid in found:
                raise Waiting
        return tagging.Tagged(len(pids), [])

    def run(work: t.Callable[[apart.Tell], None], keep: object, most: float, silence: float) -> apart.Outcome:
        said: list[t.Any] = []
        try:
            work(said.append)
        except Waiting:
            apart._spend(silence)
            return apart.Outcome(said, False, "a child process did not end in time", True)
        return apart.Outcome(said, True)

    monkeypatch.setattr(apart, "run", run)
    monkeypatch.setattr(tagging, "tag", tag)
    monkeypatch.setattr(tagging, "_named", lambda pid: f"process {pid}")
    return found


def test_who_keeps_a_look_at_his_sockets_waiting_is_told_and_keeps_nobody_else(slow: set[int]) -> None:
    slow |= {2}
    waiting = ["open sockets of process 2, which keeps whoever looks at it waiting"]
    assert tagging.tag_apart([1, 2, 3], TAGS, []) == (2, waiting)


def test_a_child_that_sleeps_at_one_process_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def tag(pids: t.Sequence[int], tags: object, alive: Alive) -> tagging.Tagged:
        for pid in pids:
            alive(pid)
            if pid == 2:
                time.sleep(60)
        return tagging.Tagged(len(pids), [])

    monkeypatch.setattr(tagging, "tag", tag)
    began = time.monotonic()
    (told,) = tagging.tag_apart([2], TAGS, []).missed
    assert told.startswith("open sockets of process 2 (")
    assert time.monotonic() - began < 30


def test_whom_nobody_tried_to_look_at_is_not_accused(slow: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is used up by others."""
    slow |= {2, 3}
    monkeypatch.setattr(apart, "IN_ALL", 1.5)
    waiting, untried = tagging.tag_apart([2, 3, 4, 5, 6], TAGS, []).missed
    assert waiting == "open sockets of process 2, which keeps whoever looks at it waiting"
    assert untried == (
        "open sockets of process 3, process 4, process 5 and 1 more: the look at them was not done in time"
    )


def test_a_task_without_patience_accuses_nobody(slow: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "IN_ALL", 0.0)
    assert tagging.tag_apart([7], TAGS, []).missed == [
        "open sockets of process 7: the look at them was not done in time"
    ]


def test_all_looks_of_a_task_have_one_budget_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rules want one. That it is used up is told each time, in the same words."""
    given: list[float] = []
    real = apart.run

    def run(work: t.Callable[[apart.Tell], None], *rest: t.Any) -> apart.Outcome:
        given.append(apart.looks())
        return real(work, *rest)

    def tag(pids: t.Sequence[int], tags: object, alive: Alive) -> tagging.Tagged:
        end = time.process_time() + 0.06
        while time.process_time() < min(end, time.process_time() + apart.looks()):
            alive(pids[0])
        return tagging.Tagged(1, [])

    monkeypatch.setattr(apart, "run", run)
    monkeypatch.setattr(apart, "LOOKS", 0.1)
    monkeypatch.setattr(tagging, "tag", tag)
    missed = [tagging.tag_apart([pid], TAGS, []).missed for pid in range(1, 6)]
    assert len(given) == 2
    assert given[1] <= 0.04
    assert missed[:2] == [[], []]
    for told in missed[2:]:
        assert told == [
            "the look at descriptors was ended after 0.1 s of a processor: some sockets may not have been seen"
        ]
    apart.begin()
    assert tagging.tag_apart([6], TAGS, []).missed == []


def test_all_looks_of_a_task_have_one_budget_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that says something now and then takes no patience, and may take no processor either."""

    def tag(pids: t.Sequence[int], tags: object, alive: Alive) -> tagging.Tagged:
        while True:
            time.sleep(0.01)
            alive(pids[0])

    monkeypatch.setattr(apart, "LOOKS_BY_CLOCK", 0.5)
    monkeypatch.setattr(apart, "_AWAKE", 60.0)  # this machine may be busy
    monkeypatch.setattr(tagging, "tag", tag)
    monkeypatch.setattr(tagging, "_named", lambda pid: f"process {pid}")
    given: list[float] = []
    real = apart.run

    def run(work: t.Callable[[apart.Tell], None], keep: t.Any, most: float, silence: float) -> apart.Outcome:
        given.append(most)
        return real(work, keep, most, silence)

    monkeypatch.setattr(apart, "run", run)
    for pid in range(1, 6):
        (told,) = tagging.tag_apart([pid], TAGS, []).missed
        assert told == f"open sockets of process {pid}: the look at them was not done in time"
    # 2.5 s if each had a budget of its own. What a child costs by itself is not counted.
    assert sum(given) <= 0.5 + (len(given) + 1) * 0.05


def test_a_child_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    (told,) = tagging.tag_apart([1], TAGS, []).missed
    assert told.startswith("open sockets of process 1 (")
    assert told.endswith("): no process could be made: Resource temporarily unavailable")
