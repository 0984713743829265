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
LARGEST_PACKET = 65536
# Per cent of the limit: with less, what makes up for the distance does not work at all.
LEAST = 90
# What is measured with every change: per cent of the limit, with losses, and seconds until a changed rate holds.
LEAST_QUICK, LEAST_QUICK_LOSSY, LATEST = 97, 90, 2.0
Stored = dict[str, Any]


class Goal(NamedTuple):
    """`name` is its table in reasons.toml; `misses`: where ours misses it, and what each shaper came to there."""

    name: str
    text: str
    cells: int
    misses: dict[str, dict[str, str]]


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
    others: dict[str, list[Stored]] = {}
    for cell in found["cells"]:
        others.setdefault(cell["place"], []).append(cell)

    def goal(
        name: str,
        text: str,
        measured: list[Stored],
        reaches: Callable[[Stored], bool],
        figure: Callable[[Stored], str],
    ) -> Goal:
        missing = [cell["place"] for cell in measured if not reaches(cell)]
        figures = {place: {cell["shaper"]: figure(cell) for cell in others[place]} for place in missing}
        return Goal(name, text, len(measured), figures)

    made = [
        goal("error", "5 and 20 ms: error at most 1 %", near, lambda cell: 99 <= share(cell) <= 101, _share),
        goal(
            "retransmits",
            "5 and 20 ms: no retransmits that the same way has not without a limit",
            [cell for cell in near if way(cell) in free],
            lambda cell: _again(cell) <= _again(free[way(cell)]),
            lambda cell: f"{cell['retransmits']} of {cell['segments']} segments",
        ),
        goal("far", "100 and 200 ms: 98 to 101 % of the limit", far, lambda cell: 98 <= share(cell) <= 101, _share),
        goal(
            "jain",
            f"100 and 200 ms: Jain's index at least {JAIN}",
            [cell for cell in far if cell["connections"] > 1],
            lambda cell: bool(cell["jain"] >= JAIN),
            lambda cell: f"{cell['jain']:.3f}",
        ),
        goal(
            "steady",
            f"100 and 200 ms: steady (each second within 10 % of the limit) at most {STEADY:g} s after the start",
            far,
            lambda cell: cell["steady"] is not None and cell["steady"] <= STEADY,
            steady,
        ),
        goal(
            "loss",
            f"20 ms with 0.5 % loss: at least {100 * OF_UNLIMITED:.0f} % of what the same connections get without a "
            f"limit, or {100 * OF_LIMIT:.0f} % of the limit, whichever is less",
            [cell for cell in lossy if way(cell) in free],
            lambda cell: bool(cell["rate"] >= min(OF_UNLIMITED * free[way(cell)]["rate"], OF_LIMIT * cell["limit"])),
            _share,
        ),
        goal(
            "change",
            "50 ms, 50 to 5 to 50 Mbit/s by a rule task: each half second within 10 % of the new limit after at most "
            "1 s and 3 round trips",
            changed,
            lambda cell: not any(_late(cell, change) for change in cell["changes"]),
            lambda cell: "; ".join(
                f"{one['rate'] / 1e6:g} Mbit/s: {seconds(one['settled'])}" for one in cell["changes"]
            ),
        ),
    ]
    return [one for one in made if one.cells]


def _share(cell: Stored) -> str:
    return f"{share(cell):.2f} %"


def _again(cell: Stored) -> float:
    """Without a limit far more is sent, in less time, so what counts is how many of the segments are sent again."""
    return float(cell["retransmits"] / max(1, cell["segments"]))


def _late(cell: Stored, change: Stored) -> bool:
    return change["settled"] is None or change["settled"] > CHANGE_SECONDS + CHANGE_RTTS * cell["rtt"] / 1000


def steady(cell: Stored) -> str:
    """Since when, and how far off the second was that deviated most when it should have been."""
    worst = f" (one second {100 * cell['worst']:+.0f} %)" if cell.get("worst") is not None else ""
    return seconds(cell["steady"]) + worst


def violated(cell: Stored) -> str:
    """What no cell of ours may ever do, whatever its figures: how it did it, or nothing."""
    if cell["shaper"] != OURS:
        return ""
    if cell["broken"]:
        return f"{cell['broken']} connections given up by the kernel"
    # The default bucket is one second of the rate.
    allowed = cell["limit"] / 8 + 1.5 * LARGEST_PACKET
    if cell["excess"] > allowed:
        return f"{cell['excess'] / 1e3:.0f} kB more than the rate, where {allowed / 1e3:.0f} kB are allowed"
    if not cell["least"]:
        return "a connection that got nothing at all"
    if not cell["loss"] and not cell["changes"] and share(cell) < LEAST:
        return f"only {_share(cell)} of the limit"
    if any(change["reached"] is None for change in cell["changes"]):
        return "never near a rate that was changed"
    return ""


def regressed(cell: Stored) -> str:
    """What the few cells that are measured with every change do not do either: bounds a little wider than what each of
    them has come to on every kernel.
    """
    if cell["shaper"] != OURS:
        return ""
    if cell["changes"]:
        late = [change for change in cell["changes"] if change["settled"] is None or change["settled"] > LATEST]
        return f"{seconds(late[0]['settled'])} until a changed rate held" if late else ""
    if share(cell) < (LEAST_QUICK_LOSSY if cell["loss"] else LEAST_QUICK):
        return f"only {_share(cell)} of the limit"
    return f"Jain's index {cell['jain']:.3f}" if cell["jain"] < JAIN else ""


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def reasons() -> Callable[[str, str], str]:
    """What people wrote about a miss: by goal and place."""
    written = tomllib.loads(REASONS.read_text(encoding="utf-8"))

    def reason(goal: str, place: str) -> str:
        for key, text in written.get(goal, {}).items():
            if re.search(key, place):
                return str(text)
        return ""

    return reason


def lines(found: Stored) -> Iterator[str]:
    """For who watches: each goal in a line."""
    for goal in evaluate(found):
        yield f"{goal.text}: {goal.cells - len(goal.misses)} of {goal.cells} cells"
