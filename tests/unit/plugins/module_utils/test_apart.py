# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A child that does a part of a task."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import apart, memory


def test_a_child_that_has_said_all_is_complete_though_it_does_not_end() -> None:
    def work(tell: apart.Tell) -> None:
        tell(["all"])
        if os.fork() == 0:  # who keeps the pipe open
            time.sleep(3)
            os._exit(0)

    outcome = apart.run(work, silence=1.0)
    assert (outcome.said, outcome.complete) == ([["all"]], True)


def test_who_gets_no_processor_has_longer_than_who_waits_for_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    def works(tell: apart.Tell) -> None:
        end = time.thread_time() + 1.2
        while time.thread_time() < end:
            pass

    apart.begin()
    with monkeypatch.context() as patient:
        patient.setattr(apart, "_STARVED", 60)  # for a machine that is busy
        assert apart.run(works, most=60, silence=1.0).complete
    assert not apart.run(lambda tell: time.sleep(3.0), most=60, silence=1.0).complete

    def works_for_long(tell: apart.Tell) -> None:
        while True:
            pass

    began = time.monotonic()
    assert apart.run(works_for_long, most=60, silence=0.1).late
    assert time.monotonic() - began < 30


class Item(int):
    """Fifty of each owner; those of the first take long."""

    @property
    def owner(self) -> int:
        return self // 50


@pytest.mark.parametrize("seconds", [60.0, 0.08])
def test_who_makes_looks_slow_uses_up_nobody_elses_time(seconds: float) -> None:
    """Whether nothing is heard of them, or something each time just before they would be given up."""

    def look(item: Item) -> bool:
        if item.owner == 0:
            time.sleep(seconds)
        return True

    apart.begin()
    found, held_up = apart.each([Item(number) for number in range(150)], look, owner=lambda item: item.owner)
    assert {item for item, _answer in found if item.owner} == set(range(50, 150))
    assert held_up
    assert {item.owner for item in held_up} == {0}


def test_of_whom_a_child_was_left_behind_nothing_more_is_asked() -> None:
    def look(item: Item) -> bool:
        if item == 51:
            time.sleep(60)
        return True

    def end(child: int, heard: bool) -> int | None:
        left = real(child, heard)
        return left if heard else child  # as if the kernel could not end it

    @contextlib.contextmanager
    def claim(owner: int) -> Iterator[int]:
        with open(os.devnull) as file:
            yield file.fileno()

    real = apart._end
    apart.begin()
    with mock.patch.object(apart, "_end", end):
        found, held_up = apart.each(
            [Item(number) for number in range(150)], look, owner=lambda item: item.owner, claim=claim
        )
    assert {item for item, _answer in found} == {*range(51), *range(100, 150)}
    assert sorted(held_up) == list(range(51, 100))


def test_work_that_goes_on_takes_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tell: apart.Tell) -> None:
        for number in range(10):
            time.sleep(0.01)
            tell(number)

    monkeypatch.setattr(apart, "_AWAKE", 60.0)  # this machine may be busy
    apart.begin()
    assert apart.run(work).complete
    assert apart.patience() == apart.IN_ALL


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = memory.open_claim
    tmp_path.chmod(0o700)
    monkeypatch.setattr(memory, "open_claim", lambda name, make: real(name, make, str(tmp_path)))


@pytest.mark.usefixtures("claims")
def test_a_claim_is_of_one_owner_and_lasts_as_long_as_a_child_keeps_it() -> None:
    with apart.only_one(memory.READING, owner=33) as claim, apart.only_one(memory.READING, owner=1000):
        assert claim is not None
        kept = os.dup(claim)
    with pytest.raises(apart.HeldError), apart.only_one(memory.READING, owner=33, wait=0.0):
        pass
    with apart.only_one(memory.READING, owner=1000, wait=0.0):
        pass
    os.close(kept)
    with apart.only_one(memory.READING, owner=33, wait=0.0):
        pass


@pytest.mark.usefixtures("claims")
def test_no_more_children_are_left_behind_than_some() -> None:
    """However many numbers their owner has. What users of the system's own run is still read."""
    with contextlib.ExitStack() as stack:
        for number in range(apart.MOST_LEFT):
            stack.enter_context(apart.only_one(memory.READING, owner=100_000 + number))
        with pytest.raises(apart.HeldError), apart.only_one(memory.READING, owner=1000, wait=0.0):
            pass
        with apart.only_one(memory.READING, owner=33, wait=0.0):
            pass
