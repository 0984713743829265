# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of requests, pages and short connections: a row for each cell, a column for each shaper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from measure import megabits
from shapers import HTB, NONE, OURS, TBF

Stored = dict[str, Any]
_SHAPERS = (OURS, HTB, TBF, NONE)


class Table(NamedTuple):
    store: str
    title: str
    note: str
    figure: Callable[[Stored], str]


def _part(cell: Stored, name: str) -> str:
    """Of the limit; without one, in Mbit/s."""
    return f"{cell[name] / cell['limit']:.3f}" if cell["limit"] else f"{cell[name] / 1e6:.0f} Mbit/s"


def _churn(cell: Stored) -> str:
    left = f" of {1 - cell['wanted'] / cell['limit']:.3f}" if cell["limit"] else ""
    return f"{_part(cell, 'used')}; {_part(cell, 'bulk_rate')}{left}; {cell['drops']:.2f}"


def _waits(cell: Stored) -> str:
    return f"{_part(cell, 'used')}; {cell['p50']:.1f}, {cell['p90']:.1f}, {cell['p99']:.1f}, {cell['longest']:.0f}"


def _loops(cell: Stored) -> str:
    return f"{_waits(cell)}; {cell['jain']:.3f}; {cell['drops']:.2f}"


def _page(cell: Stored) -> str:
    return f"{cell['took'] / cell['ideal']:.2f}" if cell["limit"] else f"{cell['took']:.0f} ms"


def _nested(cell: Stored) -> str:
    return f"{_part(cell, 'used')}; {_part(cell, 'bulk_rate')}"


def _datagrams(cell: Stored) -> str:
    return f"{_part(cell, 'tcp')}; {_part(cell, 'used')}"


def _changes(cell: Stored) -> str:
    return " / ".join(
        f"{megabits(step['rate'])}: {step['silence']:.0f} ms, {step['first'] / step['rate']:.2f}, "
        f"{step['then'] / step['rate']:.2f}, {step['rest'] / step['rate']:.3f}"
        for step in cell["steps"]
    )


def _database(cell: Stored) -> str:
    little = f"; {cell['little']['p50']:.1f}, {cell['little']['p99']:.1f}" if cell["little"] else ""
    return f"{_part(cell, 'used')}; {cell['per_second']:.0f}; {cell['p50']:.1f}, {cell['p99']:.1f}{little}"


def _attack(cell: Stored) -> str:
    other = (cell["used"] - cell["honest"]) / cell["limit"]
    return f"{_part(cell, 'honest')}; {other:.3f}"


_TABLES = (
    Table(
        "churn",
        "Bulk connections beside those that come and go",
        "Used, of the limit; what bulk got, of what the others leave; drops of 1,000 packets. Of htb and tbf the queue is "
        "so long that it drops nothing of this.",
        _churn,
    ),
    Table(
        "loops",
        "Requests and answers on kept connections",
        "Each asks again as soon as it has its answer (IP bytes). Used; 50th, 90th, 99th percentile and longest, in "
        "milliseconds; Jain's index; drops of 1,000 packets.",
        _loops,
    ),
    Table(
        "requests_new",
        "A connection for each request",
        "The same; the answer without headers.",
        _loops,
    ),
    Table(
        "web",
        "A connection for each request: ab and nginx",
        "Used; 50th, 90th, 99th percentile and longest, in milliseconds.",
        _waits,
    ),
    Table(
        "pages",
        "Pages",
        "The time that a page takes from an idle limit, as a part of its bytes over the limit. htb and tbf with a burst of "
        "the same size.",
        _page,
    ),
    Table(
        "databases",
        "Databases",
        "Used; answers a second; their 50th and 99th percentile, and those of a small request that someone else makes every "
        "5 ms in the same rule, in milliseconds.",
        _database,
    ),
    Table("nested", "Limits above each other", "Used, of the smallest; what bulk got.", _nested),
    Table("datagrams", "TCP beside datagrams", "What TCP got; all.", _datagrams),
    Table(
        "changes",
        "Limits that change",
        "For each new limit: the longest silence from half a second on; what arrived in the first 0.3 s, in the next 0.5 s, "
        "and after the first second, as a part of the new limit.",
        _changes,
    ),
    Table("userspace", "QUIC and uTP", "Used.", lambda cell: _part(cell, "used")),
    Table("attacks", "Who wants more than others", "What the honest connection got; the other.", _attack),
)


def sections(results: Stored) -> Iterator[str]:
    if not any(results.get(table.store) for table in _TABLES):
        return
    yield "## Requests, pages, short connections\n"
    for table in _TABLES:
        if cells := results.get(table.store):
            yield f"### {table.title}\n\n{table.note}\n"
            yield from _rows(cells, table.figure)
            yield ""


def _place(cell: Stored) -> str:
    return str(cell["what"]).removeprefix(f"{cell['shaper']}, ")


def _rows(cells: Sequence[Stored], figure: Callable[[Stored], str]) -> Iterator[str]:
    shapers = [shaper for shaper in _SHAPERS if any(cell["shaper"] == shaper for cell in cells)]
    found = {(_place(cell), cell["shaper"]): figure(cell) for cell in cells}
    yield "| | " + " | ".join(shapers) + " |\n| --- |" + " --- |" * len(shapers)
    for where in dict.fromkeys(_place(cell) for cell in cells):
        yield f"| {where} | " + " | ".join(found.get((where, shaper), "") for shaper in shapers) + " |"
