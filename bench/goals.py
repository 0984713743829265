# SPDX-License-Identifier: GPL-3.0-or-later
"""What the figures must reach, what they reach, and the reasons that people found for what was not reached."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomllib

from . import goals_world
from .measure import megabits
from .shapers import HTB, OURS

REASONS = Path(__file__).resolve().parent / "reasons.toml"
OTHERS_PERCENT = 10  # of a CPU, above which the sender's own cannot be told
MBIT = 1_000_000
LUMP = 8 * 65536 * 1.5  # bits: a packet may leave a debt
GBIT = 1000 * MBIT
Stored = dict[str, Any]


class Miss(NamedTuple):
    """A measurement that does not reach the goal; `place` is what reasons are kept by."""

    place: str
    figure: str


class Goal(NamedTuple):
    name: str  # the table of reasons.toml
    goal: str
    measured: str
    misses: list[Miss]
    met: bool | None  # None: only reported

    @property
    def verdict(self) -> str:
        return "reported" if self.met is None else "met" if self.met else "NOT MET"


def place(stored: Stored) -> str:
    return f"{megabits(stored['limit'])}x{stored['connections']}/{stored['congestion']}"


def evaluate(results: Stored) -> list[Goal]:
    """One for each goal that something was measured of."""
    ours = [cell for cell in results.get("cells", []) if cell["shaper"] == OURS]
    found = [*_grid_goals(ours, results), *_extra_goals(results)] if ours else _extra_goals(results)
    return [*(goal for goal in found if goal is not None), *_world_goals(results)]


def _world_goals(results: Stored) -> Iterator[Goal]:
    for judge, cells in goals_world.judged(results):
        misses = [Miss(goals_world.place(cell.cell), cell.figure) for cell in cells if not cell.good]
        share = f"{len(cells) - len(misses)} of {len(cells)} cells"
        yield Goal(judge.name, judge.goal, share, misses, not misses)


def _of_cells(name: str, goal: str, measured: str, cells: Sequence[tuple[Stored, bool, str]]) -> Goal:
    misses = [Miss(place(cell), figure) for cell, good, figure in cells if not good]
    return Goal(name, goal, measured, misses, not misses)


def _share(cells: Sequence[tuple[Stored, bool, str]]) -> str:
    return f"{sum(good for _cell, good, _figure in cells)} of {len(cells)} cells"


def _grid_goals(ours: list[Stored], results: Stored) -> list[Goal | None]:
    errors = [100 * abs(cell["rate"] / cell["limit"] - 1) for cell in ours]
    median, bound = statistics.median(errors), 0.5
    exact = [
        (cell, error <= (4 if place(cell).startswith("1x64/") else 2), f"{error:.2f} %")
        for cell, error in zip(ours, errors)
    ]
    error = _of_cells(
        "error",
        f"error of the rate: median at most {bound} %, worst 2 % (1 Mbit/s x 64: 4 %)",
        f"median {median:.2f} %, worst {max(errors):.2f} %",
        exact,
    )._replace(met=median <= bound and all(good for _cell, good, _figure in exact))
    sent = [
        (
            cell,
            cell["retransmits"] <= max(1, cell["segments"] / 10_000) and not cell["timeouts"] and not cell["broken"],
            f"{cell['retransmits']} of {cell['segments']}, {cell['timeouts']} timeouts, {cell['broken']} given up",
        )
        for cell in ours
    ]
    fair = [
        (cell, cell["jain"] >= (0.97 if cell["connections"] == 64 else 0.99), f"{cell['jain']:.4f}")
        for cell in ours
        if cell["limit"] >= 10 * MBIT
    ]
    # The bucket is a second of the rate, and is full before the first packet.
    first = [
        (cell, cell["first_second"] <= 2.01 * cell["limit"] + LUMP, f"{cell['first_second'] / cell['limit']:.3f}")
        for cell in ours
    ]
    smooth = [
        (cell, cell["variation"] <= 0.05, f"{100 * cell['variation']:.1f} %")
        for cell in ours
        if cell["limit"] >= 100 * MBIT
    ]
    return [
        error,
        _of_cells(
            "retransmits",
            "retransmits at most max(1, 1 in 10,000 segments); no timeouts",
            f"{_share(sent)}; {sum(cell['retransmits'] for cell in ours)} retransmits and "
            f"{sum(cell['timeouts'] for cell in ours)} timeouts in all; "
            f"{sum(cell['broken'] for cell in ours)} connections given up by the kernel",
            sent,
        ),
        _worst("jain", "Jain's index at 10 Mbit/s and above: 0.99 (64 connections: 0.97)", "lowest", fair, min),
        _round_trips(ours, results),
        _worst(
            "first_second",
            "first second: at most the limit and the default bucket, a second of it",
            "highest",
            first,
            max,
        ),
        _worst("variation", "variation of 100 ms bins at 100 Mbit/s and above: at most 5 %", "highest", smooth, max),
    ]


def _worst(name: str, goal: str, word: str, cells: Sequence[tuple[Stored, bool, str]], pick: Any) -> Goal | None:
    if not cells:
        return None
    extreme = pick((figure for _cell, _good, figure in cells), key=lambda figure: float(figure.split()[0]))
    return _of_cells(name, goal, f"{_share(cells)}; {word} {extreme}", cells)


def _round_trips(ours: list[Stored], results: Stored) -> Goal | None:
    if not results.get("base"):
        return None
    base = results["base"][0]["p50"]
    cells = [
        (cell, cell["rtt"] <= base + (0.5 if cell["limit"] >= 100 * MBIT else 2), f"{cell['rtt']:.3f} ms")
        for cell in ours
        if cell["limit"] >= 10 * MBIT
    ]
    goal = "median round trip: at most base + 0.5 ms (10 Mbit/s: + 2 ms)"
    found = _worst("rtt", goal, "highest", cells, max)
    return found._replace(measured=f"{found.measured}; base {base:.3f} ms") if found else None


def _extra_goals(results: Stored) -> list[Goal | None]:
    pings = [
        (cell, cell["p99"] <= 1, f"{cell['p99']:.3f} ms")
        for cell in results.get("pings", [])
        if cell["shaper"] == OURS and cell["limit"] >= 100 * MBIT
    ]
    mixed = [
        (cell, cell["rate"] >= 99 * MBIT, f"{cell['rate'] / MBIT:.2f} Mbit/s")
        for cell in results.get("app_limited", [])
        if cell["shaper"] == OURS
    ]
    udp = [
        (
            {**cell, "congestion": f"udp{cell['factor']:g}"},
            cell["rate"] <= 1.005 * cell["limit"] and not cell["timeouts"],
            f"{100 * cell['rate'] / cell['limit']:.2f} % in all, TCP {100 * cell['tcp'] / cell['limit']:.1f} %, "
            f"{cell['timeouts']} timeouts",
        )
        for cell in results.get("udp", [])
        if cell["connections"]  # alone it may spend the bucket, too
        if cell["shaper"] == OURS
    ]
    return [
        _worst("ping", "a ping-pong in the rule beside 4 bulk connections: P99 at most 1 ms", "highest", pings, max),
        _worst("app_limited", "10 modest and 2 greedy connections: 99 of 100 Mbit/s", "lowest", mixed, min),
        _of_cells(
            "udp",
            "TCP x 4 beside UDP from two CPUs: at most 100.5 % in all, no TCP timeouts",
            "; ".join(f"UDP {cell['factor']:g}x: {figure}" for cell, _good, figure in udp),
            udp,
        )
        if udp
        else None,
        _cpu(results),
        _packets(results),
        *_unruled(results),
        _requests(results),
    ]


def _cpu(results: Stored) -> Goal | None:
    used = {
        shaper: [cell["sender"] for cell in results.get("cpu", []) if cell["shaper"] == shaper]
        for shaper in (OURS, HTB)
    }
    if not all(used.values()):
        return None
    ours, htb = (100 * statistics.median(used[shaper]) for shaper in (OURS, HTB))
    figure = f"{ours:.1f} % of a CPU, htb {htb:.1f} %"
    others = 100 * max(cell["others"] for cell in results["cpu"])
    if others > OTHERS_PERCENT:
        figure += f" (worth nothing: other programs took up to {others:.0f} %)"
    misses = [] if ours <= htb else [Miss("1000x16/cubic", figure)]
    return Goal("cpu", "sender's CPU at 1 Gbit/s x 16: at most htb's", figure, misses, not misses)


def _packets(results: Stored) -> Goal | None:
    rows = [row for found in results.get("packets", []) for row in found["rows"]]
    if not rows:
        return None
    costs = [
        (f"{row['kind']}, {'cold' if row['cold'] else 'hot'}, {row['rules']} rules", row["limited"] - row["least"], row)
        for row in rows
    ]
    misses = [Miss(what, f"{more:.0f} ns") for what, more, row in costs if not row["cold"] and more > 300]
    measured = "; ".join(f"{what}: {more:.0f} ns" for what, more, _row in costs)
    goal = "egress on a limited flow: at most 300 ns more than a program that returns 1, hot"
    return Goal("packets", goal, measured, misses, not misses)


def _unruled(results: Stored) -> Iterator[Goal]:
    """What rules cost cgroups that have none."""
    for found in results.get("unruled", []):
        _least, before, *rows = found["rows"]
        ours = {row["scene"]: row for row in rows}
        more = {what: row["hot"] - before["hot"] for what, row in ours.items()}
        misses = [Miss(what, f"{figure:+} ns") for what, figure in more.items() if figure > 5]
        measured = "; ".join(f"{what}: {figure:+} ns" for what, figure in more.items())
        goal = "a packet without a rule: at most 5 ns more than before there were patterns"
        yield Goal("unruled", goal, measured, misses, not misses)
        misses = [Miss(what, f"{row['first']} ns") for what, row in ours.items() if row["first"] > 1500]
        measured = "; ".join(f"{what}: {row['first']} ns" for what, row in ours.items())
        yield Goal("first", "the first packet of a new cgroup: at most 1.5 µs", measured, misses, not misses)
        share = max(row["first_median"] for row in ours.values()) * 1000 / 1e7
        measured = f"{share:.2f} %"
        misses = [] if share < 1 else [Miss("all", measured)]
        goal = "a host that makes 1,000 cgroups a second: less than 1 % of a CPU"
        yield Goal("cgroups", goal, measured, misses, not misses)


def _requests(results: Stored) -> Goal | None:
    if not results.get("requests"):
        return None
    found = results["requests"][0]
    low, high = found["interval"]
    measured = f"{found['change']:+.2f} % (95 % confidence: {low:+.2f} to {high:+.2f} %), {found['pairs']} pairs"
    return Goal("requests", "requests of unlimited cgroups against no program", measured, [], None)


def reason(goal: Goal, miss: Miss) -> str:
    """What a person wrote about it: for the very cell, for its rate and connections, or for the goal."""
    written = tomllib.loads(REASONS.read_text(encoding="utf-8")).get(goal.name, {})
    cell = re.sub(r"/.*", "", miss.place)
    return str(written.get(miss.place) or written.get(cell) or written.get("all") or "")
