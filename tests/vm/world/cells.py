# SPDX-License-Identifier: GPL-3.0-or-later
"""The worst cell of each kind of requests, pages and short connections, and how each is measured."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.speed_limiter.ebpf.bench import goals_world, plan_world, traffic
from ansible_collections.speed_limiter.ebpf.bench.plan_world import Measured

Stored = dict[str, Any]
# Of what was recorded, what nobody reads here.
_LEFT_OUT = {"spread", "what"}


def planned(quick: bool) -> list[Measured]:
    """Those that need no programs but the bench's own; quick: each for a shorter time."""
    times = plan_world.QUICK if quick else plan_world.FULL
    return [*plan_world.made(True, times), *plan_world.with_fq(times)]


def name(one: Measured) -> str:
    """What --cells searches: its place, and who limits."""
    return f"{place(one)} {one.cell.shaper}"


def place(one: Measured) -> str:
    """What it has in common with the same traffic under another shaper."""
    return str(one.cell.what.removeprefix(f"{one.cell.shaper}, "))


def chosen(all_of_them: list[Measured], only: str) -> list[Measured]:
    return [one for one in all_of_them if re.search(only, name(one))]


def measure(link: traffic.Link, one: Measured, before: list[Stored]) -> Stored:
    """Its figures, and whether they meet the goal of its kind, which may compare it with some of those before."""
    found = one.run(link, one.cell)
    goal = goals_world.of(one.store)
    judged = goal.judge(found, {one.store: [other for other in before if other["goal"] == goal.name]})
    kept = {key: value for key, value in found.items() if key not in _LEFT_OUT}
    return {**kept, "place": place(one), "goal": goal.name, "meets": judged.good, "figure": judged.figure}


def goals(measured: list[Measured]) -> dict[str, str]:
    """What each kind must reach, by the goal's name."""
    return {goal.name: goal.goal for goal in (goals_world.of(one.store) for one in measured)}
