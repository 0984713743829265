# SPDX-License-Identifier: GPL-3.0-or-later
"""Which goals a cell is measured by, and what misses them."""

from __future__ import annotations

from typing import Any

from ansible_collections.speed_limiter.ebpf.tests.vm.distance import aims


def cell(shaper: str, limit: float, rtt: float, **found: Any) -> dict[str, Any]:
    place = f"{limit:g}x1/{rtt:g}/cubic"
    fixed = {"shaper": shaper, "limit": limit * 1e6, "connections": 1, "congestion": "cubic", "rtt": rtt, "loss": 0}
    figures = {"rate": limit * 1e6, "round_trip": rtt, "retransmits": 0, "segments": 1000, "steady": 0.5, "jain": 1.0}
    return {**fixed, **figures, "changes": [], "place": place, **found}


def missed(*cells: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    """Of each goal: how many cells it has, and the places that miss it."""
    return {goal.name: (goal.cells, list(goal.misses)) for goal in aims.evaluate({"cells": list(cells)})}


def test_near_and_far_are_told_apart_by_the_way_and_not_by_the_queue() -> None:
    near = cell(aims.OURS, 1, 20, round_trip=69.0, rate=0.985e6, steady=None)
    far = cell(aims.OURS, 1, 100, rate=0.985e6)
    found = missed(near, far)
    assert found["error"] == (1, ["1x1/20/cubic"])
    assert found["far"] == (1, [])
    assert found["steady"] == (1, [])


def test_retransmits_are_compared_with_those_of_the_same_way_without_a_limit() -> None:
    few, many = (cell(aims.OURS, 1, 20, retransmits=number, round_trip=21.5) for number in (1, 3))
    free = cell(aims.NONE, 0, 20, retransmits=20, segments=10_000, round_trip=20.3)
    assert missed(few, free)["retransmits"] == (1, [])
    assert missed(many, free)["retransmits"] == (1, ["1x1/20/cubic"])
    assert "retransmits" not in missed(many)  # nothing to compare with


def test_loss_is_compared_with_the_same_way_too() -> None:
    free = cell(aims.NONE, 0, 20, loss=0.5, rate=10e6)
    assert missed(cell(aims.OURS, 50, 20, loss=0.5, rate=9.1e6), free)["loss"] == (1, [])
    assert missed(cell(aims.OURS, 50, 20, loss=0.5, rate=8.9e6), free)["loss"] == (1, ["50x1/20/cubic"])


def test_a_changed_rate_is_allowed_the_round_trips_of_the_way() -> None:
    late = {"rate": 5e6, "settled": 1.4}
    assert missed(cell(aims.OURS, 50, 50, changes=[late], round_trip=500.0))["change"] == (1, ["50x1/50/cubic"])
    assert missed(cell(aims.OURS, 50, 50, changes=[{**late, "settled": 1.1}]))["change"] == (1, [])


def test_what_is_measured_with_every_change_is_held_to_more() -> None:
    good = cell(aims.OURS, 10, 200, broken=0, excess=0, least=1.0)
    assert aims.violated(good) == aims.regressed(good) == ""
    for worse, words in (
        ({"rate": 9.6e6}, "only 96.00 %"),
        ({"rate": 8.9e6, "loss": 0.5}, "only 89.00 %"),
        ({"jain": 0.9}, "Jain's index 0.900"),
        ({"changes": [{"rate": 5e6, "reached": 0.1, "settled": 2.1}]}, "2.10 s until a changed rate held"),
        ({"changes": [{"rate": 5e6, "reached": 0.1, "settled": None}]}, "never until a changed rate held"),
    ):
        assert aims.violated({**good, **worse}) == ""
        assert words in aims.regressed({**good, **worse})
    assert aims.regressed({**good, "rate": 9.1e6, "loss": 0.5}) == ""
    assert "only 89.00 %" in aims.violated({**good, "rate": 8.9e6})
