# SPDX-License-Identifier: GPL-3.0-or-later
"""The section of docs/kernels.md about requests, pages and short connections."""

from __future__ import annotations

from collections.abc import Iterator

from .bounds import FQ, OURS, Stored

BUSY = 0.95  # of its time a processor has worked: what it could not do is no fault of who limits
METHOD = """## Requests, pages, short connections

The worst cell of each kind that [benchmarks.md](benchmarks.md) measures without other programs: two network
namespaces, a veth pair, 10 s after 2 s; and beside some of them htb (with fq_codel), or this with fq on the device, in
the same guest; and QUIC by aioquic. Guests and their clocks are as they are [over distance](#over-distance); a figure
is *busy* where the processor had less than a twentieth of its time left. What misses its goal is **bold**, and
[limits.md](limits.md#short-connections-and-small-buckets) says why. The step fails only where more arrives than the
rate times the time, the bucket and one and a half packets of 64 KiB, where less than half of the limit is used, or at
another bound of `tests/vm/world/bounds.py`.

    .venv/bin/python tests/vm/run --steps object,world [--cells 'beside 500 a second'] [sid:7.2]

"""


def section(results: dict[str, Stored]) -> str:
    """How many reach their goals, and the figures of each, from what each kernel found by its name."""
    measured = {name: found for name, found in results.items() if found.get("cells")}
    if not measured:
        return METHOD
    # Those of which something was measured, in that order.
    titles = {
        cell["goal"]: found["goals"][cell["goal"]].partition(": ")
        for found in measured.values()
        for cell in found["cells"]
    }
    counts = [
        [title, *(_count(found, goal) for found in measured.values())] for goal, (title, *_rest) in titles.items()
    ]
    parts = [METHOD, _table(["cells that reach the goal", *measured], counts)]
    for goal, (title, _colon, wanted) in titles.items():
        table = _table(["", "by", *measured], list(_rows(measured, goal)))
        parts.append(f"### {title[0].upper()}{title[1:]}\n\nThe goal: {wanted}.\n\n{table}")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _of(found: Stored, goal: str) -> list[Stored]:
    return [cell for cell in found["cells"] if cell["goal"] == goal]


def _count(found: Stored, goal: str) -> str:
    met = [bool(cell["meets"]) for cell in _of(found, goal) if cell["shaper"] in (OURS, FQ)]
    text = f"{sum(met)} of {len(met)}"
    return text if all(met) else f"**{text}**"


def _rows(measured: dict[str, Stored], goal: str) -> Iterator[list[str]]:
    """What is compared below each other, ours first."""
    figures: dict[str, dict[str, dict[str, str]]] = {}
    for name, found in measured.items():
        for cell in _of(found, goal):
            figures.setdefault(cell["place"], {}).setdefault(cell["shaper"], {})[name] = _figure(cell)
    for place, by_shaper in figures.items():
        for number, shaper in enumerate(sorted(by_shaper, key=lambda shaper: (shaper not in (OURS, FQ), shaper))):
            yield ["" if number else place, shaper, *(by_shaper[shaper].get(name, "") for name in measured)]


def _figure(cell: Stored) -> str:
    text = str(cell["figure"])
    if cell["shaper"] in (OURS, FQ) and not cell["meets"]:
        text = f"**{text}**"
    return f"{text} (busy)" if cell.get("busy", 0) > BUSY else text
