# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: docs/benchmarks.md, its plots, and the few lines that are printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import goals, plots, plots_world, tables, tables_world

Stored = dict[str, Any]
_PICTURES = {
    **plots_world.WORDS,
    "rate.svg": "What arrived in each 100 ms, for every shaper",
    "ratio.svg": "Rate of each cell in per cent of its limit, for every shaper",
    "rtt.svg": "Round trip of each cell, for every shaper, on a logarithmic scale",
    "ping.svg": "Ping-pong beside bulk connections: median and 99th percentile",
}


def write(results: Stored, directory: Path) -> str:
    """Writes all of the report into a directory; what is worth printing."""
    place = directory / "benchmarks"
    place.mkdir(parents=True, exist_ok=True)
    drawn = {**plots.all_plots(results), **plots_world.all_plots(results)}
    for name, svg in drawn.items():
        (place / name).write_text(svg, encoding="utf-8")
    found = goals.evaluate(results)
    (directory / "benchmarks.md").write_text("\n".join(_document(results, found, list(drawn))) + "\n", encoding="utf-8")
    lines = [f"{goal.verdict:<8}  {goal.goal}: {goal.measured}" for goal in found]
    return "\n".join([*lines, "", f"{directory}/benchmarks.md is written, after {results['machine']['took']} minutes"])


def _document(results: Stored, found: list[goals.Goal], pictures: list[str]) -> Iterator[str]:
    machine = results["machine"]
    yield "<!-- SPDX-License-Identifier: GPL-3.0-or-later -->"
    yield "<!-- Written by bench/run and bench/report; reasons are kept in bench/reasons.toml. -->"
    yield "# Benchmarks\n"
    yield f"`{machine['command']}`, {machine['date']}, commit {machine['commit']}, took {machine['took']} minutes.\n"
    for again in results.get("again", []):
        yield f"Measured again, at commit {again['commit']}: what matches `{again['only']}`.\n"
    virtual = ", virtual" if machine["virtual"] else ""
    yield f"{machine['kernel']}; {machine['cpu']}{virtual}, {machine['memory']}; load before: {machine['load']}.\n"
    for missing in results["missing"]:
        yield f"Not measured, since this kernel lacks it: {missing}.\n"
    for failed in results["failed"]:
        yield f"Failed: {failed}.\n"
    yield "## Goals\n"
    yield "| goal | measured | |\n| --- | --- | --- |"
    for goal in found:
        yield f"| {goal.goal} | {goal.measured} | {goal.verdict.replace('NOT MET', '**not met**')} |"
    yield ""
    yield from _misses(found)
    for name in pictures:
        yield f"![{_PICTURES[name]}](benchmarks/{name})\n"
    yield from tables.grid(results)
    yield from tables.extras(results)
    yield from tables_world.sections(results)
    yield from tables.method(results)


def _misses(found: list[goals.Goal]) -> Iterator[str]:
    """Every cell that does not reach its goal, with the reason that someone wrote down."""
    missed = [goal for goal in found if goal.misses]
    if not missed:
        return
    yield "What does not reach them (in the grid: limit in Mbit/s x connections / congestion control):\n"
    yield "| goal | cell | measured | reason |\n| --- | --- | --- | --- |"
    for goal in missed:
        for miss in goal.misses:
            yield f"| {goal.name} | {miss.place} | {miss.figure} | {goals.reason(goal, miss) or 'not found yet'} |"
    yield ""
