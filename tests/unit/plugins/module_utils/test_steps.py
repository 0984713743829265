# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before which of its steps a task is spoiled by the tests."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import running_kernel


@pytest.mark.parametrize("apart", [1, 4, 5, 7, 9, 11])
def test_every_step_has_its_turn_and_a_short_task_is_spoiled_all_the_same(
    apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_kernel, "EVERY_STEP", False)
    runs = [running_kernel.steps(40, apart, first) for first in range(1000)]
    assert {step for run in runs for step in run} == set(range(40))
    assert all(run[0] < 3 for run in runs)
    assert all(len(run) <= 40 // apart + 2 for run in runs)


def test_all_steps_are_tried_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_kernel, "EVERY_STEP", True)
    assert running_kernel.steps(12, 5) == list(range(12))
