# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the report."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from .measure import megabits
from .shapers import DROP, HTB, NONE, OURS, TBF, describe

Stored = dict[str, Any]
MBIT = 1_000_000
_ORDER = {OURS: 0, HTB: 1, TBF: 2, DROP: 3, NONE: 4}


def _row(*fields: str) -> str:
    return "| " + " | ".join(fields) + " |"


def _head(*fields: str) -> str:
    return _row(*fields) + "\n" + _row(*("---" for _field in fields))


def _name(cell: Stored) -> str:
    return f"{cell['shaper']}, {cell['congestion']}" if cell["shaper"] == OURS else str(cell["shaper"])


def _columns(cells: list[Stored]) -> list[str]:
    ordered = sorted(cells, key=lambda cell: _ORDER[cell["shaper"]])
    return list(dict.fromkeys(_name(cell) for cell in ordered))


def _lost(cell: Stored) -> str:
    timeouts = f" + {cell['timeouts']}" if cell["timeouts"] else ""
    return f"{cell['retransmits']}{timeouts}" + (f" ({cell['broken']})" if cell["broken"] else "")


_GRID: tuple[tuple[str, str, Callable[[Stored], str]], ...] = (
    (
        "Rate",
        "In per cent of the limit. htb and tbf count Ethernet headers as well, so 99 is exact for them.",
        lambda cell: f"{100 * cell['rate'] / cell['limit']:.2f}",
    ),
    (
        "Round trip",
        "Median over all connections, by the bytes that saw it, in milliseconds.",
        lambda cell: f"{cell['rtt']:.3g}",
    ),
    (
        "Retransmits",
        "After a plus sign: retransmission timeouts; in brackets: connections that the kernel gave up (ETIMEDOUT).",
        _lost,
    ),
    ("Fairness", "Jain's index of what each connection got.", lambda cell: f"{cell['jain']:.3f}"),
    (
        "Variation",
        "Coefficient of variation of 100 ms bins, in per cent.",
        lambda cell: f"{100 * cell['variation']:.1f}",
    ),
    (
        "First second",
        "What arrived in it, over the limit. This collection and the drop bucket begin with a bucket of one second.",
        lambda cell: f"{cell['first_second'] / cell['limit']:.2f}",
    ),
)


def grid(results: Stored) -> Iterator[str]:
    """A table for each figure: a row for each limit and number of connections, a column for each shaper."""
    cells = [cell for cell in results.get("cells", []) if cell["shaper"] != NONE]
    if not cells:
        return
    columns = _columns(cells)
    places = sorted({(cell["limit"], cell["connections"]) for cell in cells})
    found = {(cell["limit"], cell["connections"], _name(cell)): cell for cell in cells}
    for title, note, figure in _GRID:
        yield f"## {title}\n\n{note}\n"
        yield _head("Mbit/s x connections", *columns)
        for limit, connections in places:
            shown = [found.get((limit, connections, column)) for column in columns]
            yield _row(f"{megabits(limit)} x {connections}", *(figure(cell) if cell else "" for cell in shown))
        yield ""
    unlimited = [cell for cell in results["cells"] if cell["shaper"] == NONE]
    if unlimited:
        yield "## No limit\n"
        yield _head("connections", "Mbit/s", "round trip, ms", "retransmits", "Jain's index")
        for cell in unlimited:
            rate, rtt = f"{cell['rate'] / MBIT:.0f}", f"{cell['rtt']:.3g}"
            yield _row(str(cell["connections"]), rate, rtt, str(cell["retransmits"]), f"{cell['jain']:.3f}")
        yield ""


def extras(results: Stored) -> Iterator[str]:
    yield from _section(
        results,
        "pings",
        "A ping-pong connection in the rule of 4 bulk connections",
        ("P50, ms", "P99, ms", "round trips"),
        lambda cell: (f"{cell['p50']:.3f}", f"{cell['p99']:.3f}", str(cell["count"])),
    )
    yield from _section(
        results,
        "app_limited",
        "10 connections that want 1 Mbit/s in all, and 2 greedy ones",
        ("in all, Mbit/s", "the modest, Mbit/s"),
        lambda cell: (f"{cell['rate'] / MBIT:.2f}", f"{cell['modest'] / MBIT:.3f}"),
    )
    yield from _section(
        results,
        "udp",
        "TCP beside UDP from two CPUs",
        ("TCP connections", "UDP offers", "in all, % of the limit", "TCP, % of the limit", "TCP timeouts"),
        lambda cell: (
            str(cell["connections"]),
            f"{cell['factor']:g} x the limit",
            f"{100 * cell['rate'] / cell['limit']:.2f}",
            f"{100 * cell['tcp'] / cell['limit']:.1f}",
            str(cell["timeouts"]),
        ),
    )
    yield from _section(
        results,
        "paths",
        "Other packets",
        ("connections", "packets", "% of the limit", "round trip, ms", "retransmits", "Jain's index"),
        lambda cell: (
            str(cell["connections"]),
            {"9000": "MTU 9000", "loopback": "loopback, MTU 65536", "offloads": "MTU 1500, offloads on"}[cell["path"]],
            f"{100 * cell['rate'] / cell['limit']:.2f}",
            f"{cell['rtt']:.3g}",
            str(cell["retransmits"]),
            f"{cell['jain']:.3f}",
        ),
    )
    yield from _cpu(results)
    yield from _programs(results)


def _section(
    results: Stored, store: str, title: str, heads: tuple[str, ...], fields: Callable[[Stored], tuple[str, ...]]
) -> Iterator[str]:
    cells = results.get(store, [])
    if not cells:
        return
    yield f"## {title}\n"
    yield _head("by", "limit, Mbit/s", *heads)
    for cell in cells:
        yield _row(f"{cell['shaper']}, {cell['congestion']}", megabits(cell["limit"]), *fields(cell))
    yield ""


def _cpu(results: Stored) -> Iterator[str]:
    cells = results.get("cpu", [])
    if not cells:
        return
    yield "## CPU at 1 Gbit/s x 16\n"
    if cells[0]["apart"]:
        yield "Sender and receiver on a CPU each, with the kernel's half of their work; all that a CPU does counts.\n"
    yield _head("by", "sender's CPU, %", "both, %", "rate, % of the limit", "runs (median)")
    for shaper in dict.fromkeys(cell["shaper"] for cell in cells):
        runs = [cell for cell in cells if cell["shaper"] == shaper]
        sender, machine, rate = (statistics.median(run[name] for run in runs) for name in ("sender", "machine", "rate"))
        share = f"{100 * rate / runs[0]['limit']:.2f}"
        yield _row(shaper, f"{100 * sender:.1f}", f"{100 * machine:.1f}", share, str(len(runs)))
    yield ""


def _programs(results: Stored) -> Iterator[str]:
    yield "## Cost\n"
    for cell in results.get("programs", []):
        flow = f"{megabits(cell['limit'])} Mbit/s x {cell['connections']}"
        yield f"In a flow of {flow}, by the kernel's run-time statistics:\n"
        yield _head("program", "ns a call", "calls a second")
        for name, found in cell["found"].items():
            yield _row(name, f"{found['ns']:.0f}", f"{found['per_second']:.0f}")
        yield ""
    for found in results.get("requests", []):
        low, high = found["interval"]
        yield (
            f"One-byte requests and answers of a cgroup without a rule: {found['per_second']:.0f} a second without any "
            f"program, {found['change']:+.2f} % with ours (95 % confidence: {low:+.2f} to {high:+.2f} %; "
            f"{found['pairs']} pairs, in turns).\n"
        )
    for found in results.get("packets", []):
        yield "Small packets over loopback, nanoseconds a packet (and how much more than a program that returns 1):\n"
        yield _head("packets", "rules", "caches", "returns 1", "without a rule", "under a rule", "rounds (median)")
        for row in found["rows"]:
            least = row["least"]
            more = [f"{row[name]:.0f} ({row[name] - least:+.0f})" for name in ("unlimited", "limited")]
            caches = "cold" if row["cold"] else "hot"
            yield _row(row["kind"], str(row["rules"]), caches, f"{least:.0f}", *more, str(row["rounds"]))
        yield ""
    for found in results.get("unruled", []):
        yield (
            "One packet of a cgroup without a rule, nanoseconds: one more; the first one after a change of rules; and "
            f"the first one of each of {found['cgroups']} new cgroups. Patterns are next to the cgroup:\n"
        )
        columns = ("hot", "anew", "first", "first_median")
        yield _head("", "one more (least)", "after a change (least)", "first (least)", "first (median)")
        for row in found["rows"]:
            yield _row(row["scene"], *(str(row[column]) for column in columns))
        yield ""
    for found in results.get("sockets", []):
        yield "What a process without a rule makes in a second:\n"
        yield _head("", "no program", "returns 1", "ours", "")
        for row in found["rows"]:
            none, least, ours = row["made"]
            yield _row(row["what"], f"{none:.0f}", f"{least:.0f}", f"{ours:.0f}", f"{100 * (ours / none - 1):+.1f} %")
        yield ""


def method(results: Stored) -> Iterator[str]:
    """How it is measured: method.md, with this run's settings."""
    leaf = "a plain queue of 1,000 packets below it, as this kernel has no fq_codel"
    if results["machine"].get("fq_codel"):
        leaf = "fq_codel below it"
    text = (Path(__file__).resolve().parent / "method.md").read_text(encoding="utf-8").partition("-->\n")[2]
    yield text.format(htb=describe(HTB, 100 * MBIT), tbf=describe(TBF, 100 * MBIT), leaf=leaf).rstrip()
