# SPDX-License-Identifier: GPL-3.0-or-later
"""An earlier version's maps are taken over by a task that is killed, refused or interrupted before any of its steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import settle
from ansible_collections.speed_limiter.ebpf.tests.support import earlier, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.earlier import RATE, schema
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import ADOPTS, APART, steps

MOST_STEPS = 200


@pytest.fixture(scope="module")
def then(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> earlier.Version:
    return earlier.compiled(request.param, tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def moved(then: earlier.Version) -> Iterator[limiter.Sender]:
    with earlier.moved(then) as sender:
        yield sender


# The earlier schema, what happens, whether sockets were paced, and how many times rarer than other tasks' steps.
FAULTS = {
    "killed": (2, Fault.KILLED, False, 1),
    "refused": (2, Fault.REFUSED, False, 2),
    "interrupted": (2, Fault.INTERRUPTED, False, 2),
    "killed while what sockets were told goes": (2, Fault.KILLED, True, 2),
    "killed, from schema 3": (3, Fault.KILLED, True, 1),
    "refused, from schema 3": (3, Fault.REFUSED, True, 2),
    "killed, from schema 4": (4, Fault.KILLED, True, 2),
}


@pytest.mark.parametrize(("then", "fault", "pacing", "rarer"), FAULTS.values(), ids=list(FAULTS), indirect=["then"])
def test_whatever_happens_before_any_of_its_steps_nothing_is_lost(
    moved: limiter.Sender, then: earlier.Version, fault: Fault, pacing: bool, rarer: int
) -> None:
    def work() -> dict[str, Any]:
        # Sockets of all processes of this machine would be steps.
        with mock.patch.object(settle, "release_one_by_one", return_value=settle.Released([], "")):
            return limiter.rule(name="web", rate=str(RATE))

    work()  # builds the object
    undone = completed = 0
    for step in steps(MOST_STEPS, APART * rarer):
        limiter.purge("all")
        earlier.limit_by(then, moved, pacing)
        assert moved.charged() == moved.charged("tcp") == {"web"}
        counted = limiter.counters()["web"]
        end, text = run_with(fault, step, work)
        where = f"{fault.value} before step {step}: {end.value} {text}"
        undone += schema() == then.schema
        completed += schema() == layout.SCHEMA
        # Where the links have changed and nothing is carried over yet, what is told stands still until it is.
        moved.charged()
        assert limiter.info(gather=["rules"])["rules"][0]["counters"]["packets"] >= counted.packets, where
        work()
        assert schema() == layout.SCHEMA, where
        assert not set(os.listdir(pins.PIN_DIR)) & set(catalog.PASSING), where
        assert moved.charged("tcp") == {"web"}, where
        after = limiter.counters()["web"]
        assert (after.packets, after.dropped_packets) == (counted.packets + 2, counted.dropped_packets), where
        if ADOPTS and fault is not Fault.REFUSED:  # a kernel that refuses to pace once is not asked again
            assert moved.is_paced() == pacing, where
        if (end, text) == (End.DONE, UNTOUCHED):
            assert APART > 1 or (undone and completed)
            return
    pytest.fail(f"more than {MOST_STEPS} steps")
