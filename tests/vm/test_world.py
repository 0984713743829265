# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cells of requests, pages and short connections guests measure, and what none of these may do."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.bench import plan_world
from ansible_collections.speed_limiter.ebpf.tests.vm import matrix
from ansible_collections.speed_limiter.ebpf.tests.vm.world import bounds, cells

LIMIT = 8_000_000


def cell(**found: Any) -> dict[str, Any]:
    return {"shaper": bounds.OURS, "limit": LIMIT, "used": LIMIT, "excess": LIMIT / 8, **found}


def page(taken: float, **found: Any) -> dict[str, Any]:
    return cell(took=1000 * taken, ideal=1000, **found)


def change(**found: Any) -> dict[str, Any]:
    return cell(seconds=4.0, steps=[{"rate": LIMIT, "rest": LIMIT, "silence": 2.0, **found}])


def test_a_quick_run_of_all_steps_leaves_it_out() -> None:
    assert matrix.usual_steps(quick=False) == list(matrix.STEPS)
    assert set(matrix.STEPS) - set(matrix.usual_steps(quick=True)) == {"playbook", "soak", "world"}


def test_every_kind_has_a_cell_that_needs_no_daemons() -> None:
    planned = cells.planned(quick=False)
    stores = {one.store for one in plan_world.measured(True)} - {"web", "databases"}
    assert {one.store for one in planned} == stores
    assert not [cells.name(one) for one in planned if "HTTP" in cells.name(one)]
    assert len({cells.name(one) for one in planned}) == len(planned)  # by which figures are kept


def test_cells_are_chosen_by_place_and_shaper() -> None:
    planned = cells.planned(quick=True)
    found = cells.chosen(planned, "^2 Mbit/s, 20 kept connections of 60 B htb$")
    assert [cells.place(one) for one in found] == ["2 Mbit/s, 20 kept connections of 60 B"]
    assert cells.chosen(planned, "") == planned


@pytest.mark.parametrize(
    "good",
    [
        cell(),
        cell(used=0.6 * LIMIT, drops=100.0, meets=False),  # a missed goal
        cell(tcp=0.3 * LIMIT, size=65000, fragments=0.0, seconds=2.0, warm_up=1.0),
        cell(made=300.0, per_second=500, failed=0),
        page(3.9),
        page(0.01, excess=LIMIT / 8 + 90_000),
        change(),
        change(silence=900.0, rest=0.6 * LIMIT),
        {**cell(used=0, excess=10**9), "shaper": "htb"},
    ],
)
def test_what_is_no_failure(good: dict[str, Any]) -> None:
    assert bounds.violated(good) == ""


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (cell(excess=LIMIT / 8 + 99_000), "1099 kB more than the rate, where 1098 kB are allowed"),
        (page(1.0, bucket=20_000, excess=LIMIT / 8), "1000 kB more than the rate, where 118 kB"),
        (cell(used=0.49 * LIMIT), "only 49.0 % of the limit"),
        (cell(failed=3), "3 connections or answers failed"),
        (cell(made=240.0, per_second=500), "only 240 of 500 new connections a second"),
        (cell(tcp=0.1 * LIMIT), "only 10.0 % of the limit for tcp"),
        (cell(honest=0.1 * LIMIT), "only 10.0 % of the limit for honest"),
        (page(4.1), "4.1 times as long as at the limit"),
        (change(rest=0.4 * LIMIT), "40.0 % of 8 Mbit/s a second after a change to it"),
        (change(rest=1.5 * LIMIT), "150.0 % of 8 Mbit/s"),
        (change(silence=1100.0), "silent for 1100 ms at 8 Mbit/s"),
    ],
)
def test_what_is_one(bad: dict[str, Any], words: str) -> None:
    assert words in bounds.violated(bad)


def test_headers_of_fragments_are_not_the_limiters() -> None:
    allowed = LIMIT / 8 + 1.5 * bounds.LARGEST_PACKET
    found = cell(fragments=0.0132, seconds=10.0, warm_up=2.0, tcp=LIMIT / 2, excess=allowed + 150_000)
    assert bounds.violated(found) == ""
    assert "are allowed" in bounds.violated({**found, "fragments": 0.0})
