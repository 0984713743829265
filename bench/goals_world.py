# SPDX-License-Identifier: GPL-3.0-or-later
"""What requests, pages and short connections must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .kinds import attacks
from .shapers import FQ, HTB, OURS, TBF

Stored = dict[str, Any]
USED, DROPS = 0.98, 1.0  # of the limit; of 1,000 packets
HORIZON = 170  # milliseconds that TCP may wait in fq: bpf/departure.h, and the way itself
MBIT = 1_000_000
_PACKET = 8 * 1500


class Judged(NamedTuple):
    """One cell, and whether it reaches the goal."""

    cell: Stored
    good: bool
    figure: str


class Judge(NamedTuple):
    name: str  # the table of reasons.toml
    stores: tuple[str, ...]
    goal: str
    judge: Callable[[Stored, Stored], Judged]


def _used(cell: Stored) -> float:
    return float(cell["used"] / cell["limit"])


def _churn(cell: Stored, _results: Stored) -> Judged:
    left = 1 - cell["wanted"] / cell["limit"]
    bulk = cell["bulk_rate"] / cell["limit"]
    good = _used(cell) >= USED and abs(bulk - left) <= 0.03 and cell["drops"] < DROPS
    return Judged(cell, good, f"used {_used(cell):.3f}, bulk {bulk:.3f} of {left:.3f}, {_drops(cell)}")


def _drops(cell: Stored) -> str:
    return f"{cell['drops']:.2f} of 1,000 dropped"


def _loops(cell: Stored, _results: Stored) -> Judged:
    most = 1.5 * cell["cycle"] + 5
    good = _used(cell) >= USED and cell["p99"] <= most and cell["drops"] < DROPS and cell["jain"] >= 0.98
    figure = f"used {_used(cell):.3f}, p99 {cell['p99']:.1f} of {most:.1f} ms, Jain {cell['jain']:.3f}, {_drops(cell)}"
    return Judged(cell, good, figure)


def _new(cell: Stored, results: Stored) -> Judged:
    cycle = cell["cycle"]
    half, most = 1.3 * cycle, 2 * cycle + (730 if 200 <= cycle <= 600 else 230)
    if cell["shaper"] == FQ:
        behind_htb = [
            0.8 * other["p99"] for other in _same(cell, results.get("requests_new", [])) if other["shaper"] == HTB
        ]
        most = max([1.2 * cycle, *behind_htb])
    good = _used(cell) >= USED and cell["p50"] <= half and cell["p99"] <= most
    figure = f"used {_used(cell):.3f}, p50 {cell['p50']:.1f} of {half:.1f} ms, p99 {cell['p99']:.0f} of {most:.0f} ms"
    if cell["shaper"] == FQ:
        good = good and not cell["waited"]
        figure += f", {cell['waited']} timeouts"
    return Judged(cell, good, figure)


def _same(cell: Stored, others: Iterable[Stored]) -> list[Stored]:
    """Those that measured the same traffic under whatever shaper."""
    names = cell.keys() & {"limit", "kind", "connections", "workers", "size", "kept", "rtt"}
    return [other for other in others if all(other.get(name) == cell[name] for name in names)]


def _page(cell: Stored, _results: Stored) -> Judged:
    most, taken = 0.5 if cell["bucket"] is None else 1.1, cell["took"] / cell["ideal"]
    return Judged(cell, taken <= most, f"{taken:.2f} of {most:.2f}")


def _database(cell: Stored, _results: Stored) -> Judged:
    little = cell["little"]
    good = _used(cell) >= USED and (not little or little["p99"] <= 10)
    beside = f", the small request's p99 {little['p99']:.1f} ms" if little else ""
    return Judged(cell, good, f"used {_used(cell):.3f}{beside}")


def _nested(cell: Stored, _results: Stored) -> Judged:
    return Judged(cell, _used(cell) >= USED, f"used {_used(cell):.3f}")


def _datagrams(cell: Stored, _results: Stored) -> Judged:
    tcp, most = cell["tcp"] / cell["limit"], 1.005 + cell["fragments"]
    good = tcp >= 0.45 and _used(cell) <= most
    figure = f"TCP {tcp:.3f}, in all {_used(cell):.3f} of {most:.3f}"
    if cell["shaper"] == FQ:
        good = good and cell["rtt"] <= HORIZON
        figure += f", round trip {cell['rtt']:.0f} of {HORIZON} ms"
    return Judged(cell, good, figure)


def _changes(cell: Stored, _results: Stored) -> Judged:
    good, figures = True, []
    for step in cell["steps"]:
        most, then = max(100.0, 2000 * _PACKET / step["rate"]), step["then"] / step["rate"]
        good = good and step["silence"] <= most
        figures.append(f"silent for {step['silence']:.0f} of {most:.0f} ms")
        if step["rate"] > step["before"]:
            good = good and 0.9 <= then <= 1.1
            figures.append(f"{then:.2f} of the raised limit from 0.3 s on")
    return Judged(cell, good, ", ".join(figures))


def _user_space(cell: Stored, results: Stored) -> Judged:
    peers = {other["shaper"]: other for other in _same(cell, results.get("userspace", []))}
    tbf = _used(peers[TBF]) if TBF in peers else 1.0
    good = _used(cell) >= min(0.97, tbf)
    if cell["shaper"] == FQ:
        good = good and cell["drops"] <= peers.get(HTB, cell)["drops"]
    beside = f", tbf {tbf:.3f}" if TBF in peers else ""
    return Judged(cell, good, f"used {_used(cell):.3f}{beside}, {_drops(cell)}")


def _attack(cell: Stored, _results: Stored) -> Judged:
    least = 0.9 / (attacks.CONNECTIONS + 1) if cell["kind"] == attacks.MANY else 0.45
    honest = cell["honest"] / cell["limit"]
    return Judged(cell, honest >= least, f"honest {honest:.3f} of {least:.3f}")


_JUDGES = (
    Judge(
        "churn",
        ("churn",),
        "bulk beside connections that come and go: used at least 98 %; bulk gets what the others leave, within 3 %; "
        "fewer than 1 packet in 1,000 dropped",
        _churn,
    ),
    Judge(
        "loops",
        ("loops",),
        "closed loops on kept connections: used at least 98 %, P99 at most 1.5 cycles + 5 ms, drops below 1 in 1,000, "
        "Jain's index 0.98",
        _loops,
    ),
    Judge(
        "requests_new",
        ("requests_new", "web"),
        "a connection for each request: used at least 98 %, P50 at most 1.3 cycles, P99 at most 2 cycles + 230 ms "
        "(cycles of 200 to 600 ms: + 730 ms); with fq 1.2 cycles or .8 of what htb takes, and no timeouts",
        _new,
    ),
    Judge(
        "pages",
        ("pages",),
        "page of 100 x 10 kB from an idle limit: at most 1.1 x the ideal with a bucket of 20 ms, 0.5 x by default",
        _page,
    ),
    Judge(
        "databases",
        ("databases",),
        "PostgreSQL and Redis: used at least 98 %; a small request beside pgbench and COPY: P99 at most 10 ms",
        _database,
    ),
    Judge("nested", ("nested",), "limits above each other: used at least 98 % of the smallest", _nested),
    Judge(
        "datagrams",
        ("datagrams",),
        "TCP beside datagrams: TCP at least 45 %, in all at most 100.5 % and what the headers of fragments add; "
        "with fq a round trip of at most 170 ms",
        _datagrams,
    ),
    Judge(
        "changes",
        ("changes",),
        "limits that change: no silence above 100 ms or two packets' time; a raised one within 10 % after 0.3 s",
        _changes,
    ),
    Judge(
        "userspace",
        ("userspace",),
        "QUIC and uTP: used at least 97 %, or what tbf gives; with fq no more lost than behind htb",
        _user_space,
    ),
    Judge(
        "attacks",
        ("attacks",),
        "an honest connection beside someone who wants more: at least 45 %, or 90 % of its part of 65 connections",
        _attack,
    ),
)


def of(store: str) -> Judge:
    """The goal of a list of results."""
    return next(judge for judge in _JUDGES if store in judge.stores)


def judged(results: Stored) -> Iterator[tuple[Judge, Sequence[Judged]]]:
    """Of each goal, what was measured of this collection."""
    for judge in _JUDGES:
        cells = [cell for store in judge.stores for cell in results.get(store, []) if cell["shaper"] == OURS]
        if cells:
            yield judge, [judge.judge(cell, results) for cell in cells]


def place(cell: Stored) -> str:
    """By which reasons are kept."""
    return str(cell["what"].removeprefix(f"{OURS}, "))
