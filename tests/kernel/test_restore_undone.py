# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks that store rules or make the stored ones, and are killed, refused or interrupted at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import stored
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, program, purge, rule, rules, snapshot
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import steps
from ansible_collections.speed_limiter.ebpf.tests.support.stored import WANTED, loaded, restore

MOST_STEPS = 400

pytestmark = pytest.mark.usefixtures("built_host")


def test_who_is_killed_leaves_the_rest_to_the_next() -> None:
    """Of the steps that load a program and make rules, which other tests have all of, some."""

    def begin() -> None:
        purge("all")
        rules(*WANTED)
        stored.power_off()

    begin()
    restore()
    wanted, wanted_rules = snapshot(), loaded()
    for step in steps(MOST_STEPS, 9):
        begin()
        end, text = run_with(Fault.KILLED, step, restore)
        info()
        assert restore()["problems"] == []
        assert snapshot() == wanted and loaded() == wanted_rules, f"killed before step {step}"
        if (end, text) == (End.DONE, UNTOUCHED):
            return
    pytest.fail(f"more than {MOST_STEPS} steps")


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "stored": lambda: rule(name="web", persistent=True),
    "made": lambda: rule(name="db", rate="1m", cgroup_paths="/db", persistent=True),
    "changed": lambda: rule(name="bare", rate="3m", cgroup_paths="/bare"),
    "forgotten": lambda: rule(name="bare", persistent=False),
    "removed": lambda: rule(name="bare", state="absent"),
    "replaced": lambda: rules({"name": "db", "rate": "1m", "persistent": True}, purge=True),
    "purged": purge,
}


def prepared() -> None:
    """One rule that is not stored, and two that are."""
    purge()
    rules({"name": "web", "rate": "1m", "cgroup_paths": "/service"}, *WANTED[1:])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_kill_each_file_is_as_before_or_as_wanted_and_the_same_task_does_the_rest(
    change: Callable[[], dict[str, Any]],
) -> None:
    program()
    prepared()
    before = snapshot().stored
    change()
    wanted, wanted_rules = snapshot(), loaded()
    for step in steps(MOST_STEPS):
        prepared()
        end, text = run_with(Fault.KILLED, step, change)
        found = {path: text for path, text in snapshot().stored.items() if not path.endswith(".new")}
        for path in {*found, *before, *wanted.stored}:
            assert found.get(path) in (before.get(path), wanted.stored.get(path)), f"{path}, step {step}"
        change()
        assert snapshot()._replace(remembered=wanted.remembered) == wanted, f"step {step}"
        assert loaded() == wanted_rules, f"step {step}"
        if (end, text) == (End.DONE, UNTOUCHED):
            return
    pytest.fail(f"more than {MOST_STEPS} steps")


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.INTERRUPTED])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_refused_or_interrupted_is_undone_in_files_too(
    change: Callable[[], dict[str, Any]], fault: Fault
) -> None:
    program()
    prepared()
    before, rules_before = snapshot(), loaded()
    change()
    wanted, wanted_rules = snapshot(), loaded()
    for step in steps(MOST_STEPS):
        prepared()
        end, text = run_with(fault, step, change)
        seen = snapshot().stored, loaded()
        assert seen in ((before.stored, rules_before), (wanted.stored, wanted_rules)), (
            f"{end} before step {step}: {text}"
        )
        if (end, text) == (End.DONE, UNTOUCHED):
            return
    pytest.fail(f"more than {MOST_STEPS} steps")
