# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of requests, pages and short connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .shapers import HTB, NONE, OURS, TBF

Stored = dict[str, Any]
_SHAPERS = (OURS, HTB, TBF, NONE)


class Table(NamedTuple):
    store: str
    title: str
    note: str
    heads: tuple[str, ...]
    fields: Callable[[Stored], tuple[str, ...]]


def _part(cell: Stored, name: str) -> str:
    """In per cent of the limit; without one, in Mbit/s."""
    return f"{100 * cell[name] / cell['limit']:.1f}" if cell["limit"] else f"{cell[name] / 1e6:.0f} Mbit/s"


def _churn(cell: Stored) -> tuple[str, ...]:
    left = f"{100 * (1 - cell['wanted'] / cell['limit']):.1f}" if cell["limit"] else ""
    return (_part(cell, "used"), _part(cell, "bulk_rate"), left, f"{cell['p99']:.1f}", f"{cell['drops']:.2f}")


def _waits(cell: Stored) -> tuple[str, ...]:
    waits = (f"{cell[name]:.1f}" for name in ("p50", "p90", "p99", "longest"))
    cycle = f"{cell['cycle']:.1f}" if cell["limit"] else ""
    return (_part(cell, "used"), cycle, *waits, f"{cell['drops']:.2f}")


def _loops(cell: Stored) -> tuple[str, ...]:
    return (*_waits(cell), f"{cell['jain']:.3f}")


def _page(cell: Stored) -> tuple[str, ...]:
    part = f"{cell['took'] / cell['ideal']:.2f}" if cell["limit"] else ""
    return (part, ", ".join(f"{taken:.0f}" for taken in cell["taken"]))


def _changes(cell: Stored) -> tuple[str, ...]:
    steps = cell["steps"]
    columns = [[f"{step['silence']:.0f}" for step in steps]]
    columns += [[f"{100 * step[name] / step['rate']:.0f}" for step in steps] for name in ("first", "then", "rest")]
    return tuple(", then ".join(column) for column in columns)


def _database(cell: Stored) -> tuple[str, ...]:
    little = [f"{cell['little'][name]:.1f}" if cell["little"] else "" for name in ("p50", "p99")]
    return (_part(cell, "used"), *(f"{cell[name]:.1f}" for name in ("per_second", "p50", "p99")), *little)


def _nested(cell: Stored) -> tuple[str, ...]:
    return (_part(cell, "used"), _part(cell, "bulk_rate"), f"{cell['drops']:.2f}")


def _datagrams(cell: Stored) -> tuple[str, ...]:
    return (_part(cell, "tcp"), _part(cell, "used"))


def _used(cell: Stored) -> tuple[str, ...]:
    return (_part(cell, "used"), f"{cell['drops']:.2f}")


def _attack(cell: Stored) -> tuple[str, ...]:
    return (_part(cell, "honest"), f"{100 * (cell['used'] - cell['honest']) / cell['limit']:.1f}")


_USED, _DROPS = "used, %", "drops in 1,000"
_WAITS = (_USED, "cycle, ms", "P50", "P90", "P99", "longest, ms", _DROPS)
_TABLES = (
    Table(
        "churn",
        "Bulk connections beside those that come and go",
        "What all use of the limit, what bulk gets of it, and what the others leave; and how long one of these takes, "
        "from its first packet to its answer (without one: until it is connected).",
        (_USED, "bulk, %", "left for it, %", "the others' P99, ms", _DROPS),
        _churn,
    ),
    Table(
        "loops",
        "Requests and answers on kept connections",
        "Each asks again as soon as it has its answer (IP bytes). A cycle: what an answer for each takes at the limit.",
        (*_WAITS, "Jain's index"),
        _loops,
    ),
    Table(
        "requests_new",
        "A connection for each request",
        "The same, from the first packet of the connection on; bytes of the answer without headers.",
        (*_WAITS, "Jain's index"),
        _loops,
    ),
    Table(
        "web",
        "A connection for each request: ab and nginx",
        "The same, with real programs.",
        _WAITS,
        _waits,
    ),
    Table(
        "pages",
        "Pages",
        "The time that a page takes from an idle limit, as a part of its bytes over the limit. htb and tbf have a "
        "burst as large as the bucket.",
        ("time over ideal", "ms, each time"),
        _page,
    ),
    Table(
        "databases",
        "Databases",
        "Small: a request of someone else in the same rule, every 5 ms.",
        (_USED, "answers a second", "P50, ms", "P99, ms", "small: P50, ms", "small: P99, ms"),
        _database,
    ),
    Table("nested", "Limits above each other", "Of the smallest.", (_USED, "bulk, %", _DROPS), _nested),
    Table("datagrams", "TCP beside datagrams", "Of the limit.", ("TCP, %", "in all, %"), _datagrams),
    Table(
        "changes",
        "Limits that change",
        "After each change: the longest silence from half a second on; what arrives, in per cent of the new limit.",
        ("silence, ms", "first 0.3 s, %", "next 0.5 s, %", "after 1 s, %"),
        _changes,
    ),
    Table("userspace", "QUIC and uTP", "Of the limit.", (_USED, _DROPS), _used),
    Table("attacks", "Who wants more than others", "Of the limit.", ("honest, %", "the other, %"), _attack),
)


def sections(results: Stored) -> Iterator[str]:
    if not any(results.get(table.store) for table in _TABLES):
        return
    yield "## Requests, pages, short connections\n"
    for table in _TABLES:
        if cells := results.get(table.store):
            yield f"### {table.title}\n\n{table.note}\n"
            yield from _rows(table, cells)
            yield ""


def _rows(table: Table, cells: Sequence[Stored]) -> Iterator[str]:
    """What is compared below each other."""
    yield "| | by | " + " | ".join(table.heads) + " |\n| --- |" + " --- |" * (1 + len(table.heads))
    by_place: dict[str, list[Stored]] = {}
    for cell in cells:
        by_place.setdefault(str(cell["what"]).removeprefix(f"{cell['shaper']}, "), []).append(cell)
    for where, group in by_place.items():
        for number, cell in enumerate(sorted(group, key=lambda cell: _SHAPERS.index(cell["shaper"]))):
            yield f"| {'' if number else where} | {cell['shaper']} | " + " | ".join(table.fields(cell)) + " |"
