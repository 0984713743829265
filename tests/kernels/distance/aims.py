# SPDX-License-Identifier: GPL-3.0-or-later
"""What the figures of one kernel must reach, what misses it, and the reasons that people found for that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import tomllib

REASONS = Path(__file__).resolve().parent / "reasons.toml"
# As bench/shapers.py calls them; it is not imported, since it needs a sandbox's modules and this does not.
OURS, HTB, TBF, NONE = "speed_limiter", "htb", "tbf", "no limit"
NEAR_RTT = 20  # milliseconds up to which an error of 1 % is allowed; beyond it 98 to 101 %
STEADY = 5.0  # seconds
JAIN = 0.97
OF_UNLIMITED, OF_LIMIT = 0.9, 0.97
CHANGE_SECONDS, CHANGE_RTTS = 1.0, 3
Stored = dict[str, Any]


class Goal(NamedTuple):
    """`name` is its table in reasons.toml; `misses`: what it came to, by the cell's place."""

    name: str
    text: str
    cells: int
    misses: dict[str, str]


def ours(found: Stored) -> list[Stored]:
    return [cell for cell in found["cells"] if cell["shaper"] == OURS]


def way(cell: Stored) -> tuple[Any, ...]:
    """What a cell has in common with the same connections without a limit."""
    return cell["connections"], cell["rtt"], cell["congestion"], cell["loss"]


def unlimited(found: Stored) -> dict[tuple[Any, ...], Stored]:
    return {way(cell): cell for cell in found["cells"] if cell["shaper"] == NONE}


def share(cell: Stored) -> float:
    """Per cent of the limit."""
    return 100 * float(cell["rate"]) / float(cell["limit"])


def evaluate(found: Stored) -> list[Goal]:
    """The goals that something was measured of."""
    free = unlimited(found)
    plain = [cell for cell in ours(found) if not cell["loss"] and not cell["changes"]]
    near = [cell for cell in plain if cell["rtt"] <= NEAR_RTT]
    far = [cell for cell in plain if cell["rtt"] > NEAR_RTT]
    lossy = [cell for cell in ours(found) if cell["loss"]]
    changed = [cell for cell in ours(found) if cell["changes"]]
    made = [
        _goal("error", "5 and 20 ms: error at most 1 %", near, _within(99, 101)),
        _goal(
            "retransmits",
            "5 and 20 ms: no retransmits that the same way has not without a limit",
            [cell for cell in near if way(cell) in free],
            lambda cell: _more(cell, free[way(cell)]),
        ),
        _goal("far", "100 and 200 ms: 98 to 101 % of the limit", far, _within(98, 101)),
        _goal(
            "jain",
            f"100 and 200 ms: Jain's index at least {JAIN}",
            [cell for cell in far if cell["connections"] > 1],
            lambda cell: "" if cell["jain"] >= JAIN else f"{cell['jain']:.3f}",
        ),
        _goal(
            "steady",
            f"100 and 200 ms: steady (each second within 10 % of the limit) at most {STEADY:g} s after the start",
            far,
            lambda cell: "" if cell["steady"] is not None and cell["steady"] <= STEADY else steady(cell),
        ),
        _goal(
            "loss",
            f"20 ms with 0.5 % loss: at least {100 * OF_UNLIMITED:.0f} % of what the same connections get without a "
            f"limit, or {100 * OF_LIMIT:.0f} % of the limit, whichever is less",
            [cell for cell in lossy if way(cell) in free],
            lambda cell: _lost(cell, free[way(cell)]),
        ),
        _goal(
            "change",
            "50 ms, 50 to 5 to 50 Mbit/s by a rule task: each half second within 10 % of the new limit after at most "
            "1 s and 3 round trips",
            changed,
            _late,
        ),
    ]
    return [goal for goal in made if goal.cells]


def _goal(name: str, text: str, measured: list[Stored], missed: Callable[[Stored], str]) -> Goal:
    return Goal(name, text, len(measured), {cell["place"]: wrong for cell in measured if (wrong := missed(cell))})


def _within(least: float, most: float) -> Callable[[Stored], str]:
    return lambda cell: "" if least <= share(cell) <= most else f"{share(cell):.2f} %"


def _more(cell: Stored, free: Stored) -> str:
    """Without a limit far more is sent, in less time, so what counts is how many of the segments are sent again."""

    def again(one: Stored) -> float:
        return float(one["retransmits"] / max(1, one["segments"]))

    if again(cell) <= again(free):
        return ""
    return f"{cell['retransmits']} of {cell['segments']}, without a limit {free['retransmits']} of {free['segments']}"


def _lost(cell: Stored, free: Stored) -> str:
    least = min(OF_UNLIMITED * free["rate"], OF_LIMIT * cell["limit"])
    if cell["rate"] >= least:
        return ""
    return f"{share(cell):.1f} % of the limit, of {100 * least / cell['limit']:.1f} %"


def _late(cell: Stored) -> str:
    allowed = CHANGE_SECONDS + CHANGE_RTTS * cell["rtt"] / 1000
    late = [one for one in cell["changes"] if one["settled"] is None or one["settled"] > allowed]
    return "; ".join(f"{one['rate'] / 1e6:g} Mbit/s: {seconds(one['settled'])}" for one in late)


def steady(cell: Stored) -> str:
    """Since when, and how far off the second was that deviated most when it should have been."""
    worst = f" (one second {100 * cell['worst']:+.0f} %)" if cell.get("worst") is not None else ""
    return seconds(cell["steady"]) + worst


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def reasons() -> Callable[[str, str], str]:
    """What people wrote about a miss: by goal and place, for the very cell, for part of its name, or for the goal."""
    written = tomllib.loads(REASONS.read_text(encoding="utf-8"))

    def reason(goal: str, place: str) -> str:
        for key, text in written.get(goal, {}).items():
            if key == "all" or re.search(key, place):
                return str(text)
        return ""

    return reason


def lines(found: Stored) -> Iterator[str]:
    """For who watches: each goal in a line."""
    for goal in evaluate(found):
        yield f"{goal.text}: {goal.cells - len(goal.misses)} of {goal.cells} cells"
