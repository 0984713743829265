# SPDX-License-Identifier: GPL-3.0-or-later
"""The section of docs/kernels.md about distance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import aims
from .aims import HTB, NONE, OURS, TBF, Stored

SHOWN = (OURS, HTB, TBF)
METHOD = """## Over distance

TCP through three network namespaces in a row; netem in the middle one delays half of the round trip each way. Counted
is what arrives, in IP bytes, in 15 s that begin 5 s after the start (with losses and one connection of cubic, in 120 s,
since it is chance how many it meets in 15; without a limit and without losses, where only retransmits are asked for, in
3 s). Beside it, in the same guest, htb (with fq_codel) and tbf on the sender's interface; they count Ethernet headers,
too, so 99 % is exact for them. Guests have `mitigations=off`. One without KVM has the clock of the instructions that it
executes, which a busy machine does not disturb, and with it a single processor: what several do at once is not in these
figures, but in the step *tests*, and in [benchmarks.md](benchmarks.md).

"""


def section(results: dict[str, dict[str, Any]]) -> str:
    """Goals, what misses them, and tables, from each kernel's figures by its name."""
    measured = {name: found for name, found in results.items() if found.get("cells")}
    parts = [METHOD]
    for name, found in results.items():
        if found.get("wrong"):
            parts.append(f"{name}: **{found['wrong']}**\n")
    if measured:
        parts += [_goals(measured), _misses(measured)]
    for name, found in measured.items():
        parts.append(f"### {name}: what arrived, of each limit\n")
        parts += [table for table in (_grid(found), _lossy(found), _changed(found)) if table]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _goals(measured: dict[str, Stored]) -> str:
    """A row for each goal: how many of its cells reach it on each kernel."""
    texts: dict[str, str] = {}
    met: dict[tuple[str, str], str] = {}
    for name, found in measured.items():
        for goal in aims.evaluate(found):
            texts[goal.name] = goal.text
            count = f"{goal.cells - len(goal.misses)} of {goal.cells}"
            met[goal.name, name] = f"**{count}**" if goal.misses else count
    rows = [[text, *(met.get((goal, name), "") for name in measured)] for goal, text in texts.items()]
    return _table(["cells that reach the goal", *measured], rows)


def _misses(measured: dict[str, Stored]) -> str:
    reason = aims.reasons()
    missed: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in measured.items():
        for goal in aims.evaluate(found):
            for place, figures in goal.misses.items():
                beside = ", ".join(f"{shaper} {figures[shaper]}" for shaper in (HTB, TBF) if shaper in figures)
                missed.setdefault((goal.name, place), {})[name] = f"{figures[OURS]} ({beside or 'alone'})"
    if not missed:
        return "Every cell reaches every goal.\n"
    rows = [
        [goal, place, *(figures.get(name, "") for name in measured), reason(goal, place) or "not found yet"]
        for (goal, place), figures in sorted(missed.items())
    ]
    return (
        "What does not (limit in Mbit/s x connections / round trip in ms / congestion control), and what the others "
        "came to there:\n\n" + _table(["goal", "cell", *measured, "reason"], rows)
    )


def _by_place(found: Stored, wanted: Callable[[Stored], bool]) -> Iterator[tuple[Stored, dict[str, Stored]]]:
    """A cell of each place, and all of the place by shaper, in the order of their measurement."""
    places: dict[str, dict[str, Stored]] = {}
    for cell in found["cells"]:
        if cell["limit"] and wanted(cell):
            places.setdefault(cell["place"], {})[cell["shaper"]] = cell
    for cells in places.values():
        yield list(cells.values())[0], cells


def _each(cells: dict[str, Stored], figure: Callable[[Stored], str]) -> str:
    """A figure of ours, and of htb and tbf beside it."""
    return " / ".join(figure(cells[shaper]) if shaper in cells else "–" for shaper in SHOWN)


def _retransmits(cells: dict[str, Stored], free: Stored | None) -> str:
    without = f" ({free['retransmits']})" if free else ""
    return _each(cells, lambda cell: str(cell["retransmits"])) + without


def _grid(found: Stored) -> str:
    free = aims.unlimited(found)
    rows = [
        [
            cell["place"],
            _each(cells, lambda one: f"{aims.share(one):.2f}"),
            _retransmits(cells, free.get(aims.way(cell))),
            _each(cells, lambda one: f"{one['jain']:.3f}") if cell["connections"] > 1 else "",
            _each(cells, lambda one: aims.seconds(one["steady"])),
            _each(cells, lambda one: f"{one['round_trip']:.0f}"),
        ]
        for cell, cells in _by_place(found, lambda cell: not cell["loss"] and not cell["changes"])
    ]
    head = ["this collection / htb / tbf", "% of the limit", "retransmits (no limit)", "Jain's index", "steady after"]
    return _table([*head, "round trip, ms"], rows) if rows else ""


def _lossy(found: Stored) -> str:
    free = aims.unlimited(found)
    rows = []
    for cell, cells in _by_place(found, lambda cell: bool(cell["loss"])):
        without = free.get(aims.way(cell))
        rows.append(
            [
                cell["place"],
                _each(cells, lambda one: f"{aims.share(one):.2f}"),
                f"{100 * without['rate'] / cell['limit']:.1f}" if without else "",
                _each(cells, lambda one: f"{one['jain']:.3f}") if cell["connections"] > 1 else "",
            ]
        )
    head = ["0.5 % loss; this collection / htb / tbf", "% of the limit", f"{NONE}, the same", "Jain's index"]
    return _table(head, rows) if rows else ""


def _changed(found: Stored) -> str:
    rows = []
    for cell, cells in _by_place(found, lambda cell: bool(cell["changes"])):
        for index, change in enumerate(cell["changes"]):
            rate = f"{change['rate'] / 1e6:g} Mbit/s"
            columns = [
                _each(cells, lambda one, i=index, key=key: aims.seconds(one["changes"][i][key]))  # type: ignore[misc]
                for key in ("reached", "settled")
            ]
            rows.append([cell["place"], rate, *columns])
    head = ["rate changed; this collection / htb / tbf", "to", "near it after", "near it for good after"]
    return _table(head, rows) if rows else ""
