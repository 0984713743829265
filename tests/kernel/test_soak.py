# SPDX-License-Identifier: GPL-3.0-or-later
"""What the soak would say: it is worth as much as what it finds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.tests.soak import check
from ansible_collections.speed_limiter.ebpf.tests.soak.soak import Soak, Violation
from ansible_collections.speed_limiter.ebpf.tests.soak.world import World
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.scene import StateEntry


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with limiter.clean_host(), World() as it:
        yield it
        limiter.purge("all")


@pytest.fixture
def soak(world: World) -> Soak:
    limiter.purge("all")
    it = Soak(world, 1)
    it.begin()
    return it


def violation(soak: Soak) -> str:
    """What it says in the end, without any further task."""
    told: list[str] = []

    def found() -> bool:
        try:
            soak.look()
        except Violation as violation:
            told.append(str(violation))
        return bool(told)

    until(found)
    return told[0]


def test_another_limit_than_was_asked_for_is_found(soak: Soak) -> None:
    with contextlib.closing(bpf.Map(pins.path("rate_limit_config_map"), 16)) as limits:
        key = layout.ID.pack(limiter.info(name="steady", gather=["rules"])["rules"][0]["cgroup_id"])
        limits[key] = limits[key][::-1]
    assert "limits: wanted" in violation(soak)


def test_more_than_the_limit_is_found(soak: Soak, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "differences", lambda *_arguments: [])
    rules = soak.host.wanted.rules
    wanted = soak.host.wanted._replace(rules={"steady": rules["steady"]._replace(rate=10_000, bucket=2048)})
    soak.host = soak.host._replace(wanted=wanted)
    assert "beyond its rate" in violation(soak)


def test_what_is_not_charged_is_found(soak: Soak, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is said to hold for everybody."""
    monkeypatch.setattr(check, "differences", lambda *_arguments: [])
    rule = soak.host.wanted.rules["steady"]._replace(rate=10**10, places=frozenset({"/*", "/*/*"}))
    soak.host = soak.host._replace(wanted=soak.host.wanted._replace(rules={"steady": rule}))
    assert "were charged" in violation(soak)


def test_counters_that_go_back_are_found(soak: Soak) -> None:
    with contextlib.closing(StateEntry("steady")) as entry:
        entry.write(dropped_bytes=1 << 40)  # what is dropped until it looks again is less
        soak.look()
        entry.write(dropped_bytes=0)
    assert "went from" in violation(soak)
