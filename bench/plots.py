# SPDX-License-Identifier: GPL-3.0-or-later
"""The four pictures of the report."""

from __future__ import annotations

import math
from typing import Any

from .measure import megabits
from .shapers import DROP, HTB, NONE, OURS, TBF
from .svg import Picture, Scale, decades

Stored = dict[str, Any]
COLOURS = {OURS: 0, HTB: 1, TBF: 2, DROP: 3, NONE: 4}
# This collection is drawn with each congestion control, its peers with cubic.
SHAPES = {"cubic": "circle", "bbr": "diamond", "reno": "triangle"}
WIDTH, LEFT, RIGHT = 860, 64, 840
MBIT = 1_000_000


def all_plots(results: Stored) -> dict[str, str]:
    """File name and SVG of each picture that there are figures for."""
    drawn = {
        "rate.svg": rate_over_time(results),
        "ratio.svg": ratio_per_cell(results),
        "rtt.svg": round_trips(results),
        "ping.svg": ping_pong(results),
    }
    return {name: picture.svg() for name, picture in drawn.items() if picture}


def _cells(results: Stored) -> list[Stored]:
    return [cell for cell in results.get("cells", []) if cell["shaper"] != NONE]


def _places(cells: list[Stored]) -> list[tuple[int, int]]:
    return sorted({(cell["limit"], cell["connections"]) for cell in cells})


def _legend(cells: list[Stored]) -> list[tuple[str, int, str]]:
    """Who is in the picture, this collection first, each congestion control of it with its mark."""
    seen = {(cell["shaper"], cell["congestion"]) for cell in cells}
    entries = []
    for shaper, colour in COLOURS.items():
        for congestion, shape in SHAPES.items():
            if (shaper, congestion) in seen:
                words = f"{shaper}, {congestion}" if shaper == OURS else shaper
                entries.append((words, colour, shape))
    return entries


def _named(cell: Stored) -> str:
    return f"{cell['shaper']}, {cell['congestion']}"


def _beside(cell: Stored, cells: list[Stored]) -> float:
    """Where it is drawn within its row or column, so that equal figures stay apart: -0.3 to 0.3."""
    names = [words for words, _colour, _shape in _legend(cells)]
    place = names.index(_named(cell) if cell["shaper"] == OURS else cell["shaper"])
    return 0.6 * (place / (len(names) - 1) - 0.5) if len(names) > 1 else 0.0


def rate_over_time(results: Stored) -> Picture | None:
    """Where all of them were measured with the same limit and as many connections: a panel for each shaper."""
    cells = [cell for cell in _cells(results) if cell["congestion"] == "cubic"]
    for limit, connections in ((100 * MBIT, 16), (100 * MBIT, 4), (10 * MBIT, 16)):
        shown = [cell for cell in cells if (cell["limit"], cell["connections"]) == (limit, connections)]
        if len(shown) > 1:
            break
    else:
        return None
    height, top = 108, 56
    picture = Picture(
        WIDTH,
        top + height * len(shown) + 54,
        f"Rate over time: limit {megabits(limit)} Mbit/s, {connections} connections, cubic",
        "What arrived in each 100 ms, in per cent of the limit, from the first connection on; above 200 % is cut off",
    )
    span = max(len(cell["bins"]) for cell in shown) / 10
    x = Scale(0, span, LEFT, RIGHT)
    step = 1 if span <= 14 else 5
    for index, cell in enumerate(sorted(shown, key=lambda cell: COLOURS[cell["shaper"]])):
        y1, y2 = top + index * height + 24, top + (index + 1) * height - 4
        y = Scale(0, 200, y2, y1)
        last = index == len(shown) - 1
        ticks = [step * number for number in range(int(span / step) + 1)]
        for tick in ticks:
            picture.rule(x.at(tick), y1, x.at(tick), y2, "grid")
        if last:
            picture.x_axis(x, y2, y2, ticks, "seconds")
        picture.y_axis(y, LEFT, RIGHT, (0, 100, 200), "")
        points = [
            (x.at(number / 10 + at), y.at(100 * rate / limit))
            for number, rate in enumerate(cell["bins"])
            for at in (0, 0.1)
        ]
        picture.line(points, COLOURS[cell["shaper"]])
        picture.legend(LEFT + 10, y1 - 6, [(_named(cell), COLOURS[cell["shaper"]], "line")])
    picture.text(18, top + height * len(shown) / 2, "% of the limit", "middle", turned=True)
    return picture


def ratio_per_cell(results: Stored) -> Picture | None:
    """A row for each limit and number of connections."""
    cells = _cells(results)
    places = _places(cells)
    if not places:
        return None
    row, top, left = 34, 84, 130
    bottom = top + row * len(places)
    picture = Picture(
        WIDTH,
        bottom + 50,
        "How close to the limit",
        "IP bytes that arrived, in per cent of the limit. htb and tbf count Ethernet headers too: 99 is exact for them",
    )
    picture.legend(left, 66, _legend(cells))
    low, high = 90, 110
    x = Scale(low, high, left, RIGHT)
    picture.box(x.at(99.5), top, x.at(100.5), bottom, "band")
    picture.x_axis(x, top, bottom, range(low, high + 1, 2), "% of the limit; the band is the goal's ± 0.5 %")
    for index, (limit, connections) in enumerate(places):
        y = top + row * (index + 0.5)
        picture.text(left - 10, y + 4, f"{megabits(limit)} Mbit/s × {connections}", "end")
        if index:
            picture.rule(left, y - row / 2, RIGHT, y - row / 2, "grid")
        for cell in _drawn(cells, limit, connections):
            ratio = 100 * cell["rate"] / limit
            shape = SHAPES[cell["congestion"]]
            if not low <= ratio <= high:
                shape = "left" if ratio < low else "right"
            hint = f"{_named(cell)}: {ratio:.2f} %"
            picture.mark(x.at(ratio), y + row * _beside(cell, cells), COLOURS[cell["shaper"]], shape, 4, hint)
    return picture


def _drawn(cells: list[Stored], limit: int, connections: int) -> list[Stored]:
    """In the order of drawing: this collection on top."""
    here = [cell for cell in cells if (cell["limit"], cell["connections"]) == (limit, connections)]
    return sorted(here, key=lambda cell: -COLOURS[cell["shaper"]])


def round_trips(results: Stored) -> Picture | None:
    cells = _cells(results)
    places = _places(cells)
    if not places or not results.get("base"):
        return None
    top, bottom = 84, 384
    picture = Picture(
        WIDTH,
        bottom + 66,
        "Round trip under a limit",
        "Median of TCP's smoothed round-trip time as its bytes saw it, over all connections; logarithmic",
    )
    picture.legend(LEFT + 8, 66, _legend(cells))
    base = results["base"][0]["p50"]
    values = [cell["rtt"] for cell in cells if cell["rtt"] > 0]
    y = Scale(
        10 ** math.floor(math.log10(min(base, *values))), 10 ** math.ceil(math.log10(max(values))), bottom, top, True
    )
    picture.y_axis(y, LEFT, RIGHT, decades(y), "milliseconds")
    width = (RIGHT - LEFT) / len(places)
    for index, (limit, connections) in enumerate(places):
        x = LEFT + width * (index + 0.5)
        picture.text(x, bottom + 16, f"× {connections}", "middle", "faint")
        for cell in _drawn(cells, limit, connections):
            hint = f"{_named(cell)}: {cell['rtt']:.3f} ms"
            shift = width * _beside(cell, cells)
            picture.mark(x + shift, y.at(cell["rtt"]), COLOURS[cell["shaper"]], SHAPES[cell["congestion"]], hint=hint)
        if index and places[index - 1][0] != limit:
            picture.rule(LEFT + width * index, top, LEFT + width * index, bottom + 40, "grid")
    for limit in sorted({limit for limit, _connections in places}):
        group = [index for index, place in enumerate(places) if place[0] == limit]
        middle = LEFT + width * (group[0] + len(group) / 2)
        picture.text(middle, bottom + 36, f"{megabits(limit)} Mbit/s", "middle")
    picture.text((LEFT + RIGHT) / 2, bottom + 56, "limit × connections", "middle", "faint")
    picture.rule(LEFT, y.at(base), RIGHT, y.at(base), "goal")
    picture.text(RIGHT, y.at(base) + 15, f"idle: {base:.3f} ms", "end", "faint")
    return picture


def ping_pong(results: Stored) -> Picture | None:
    """From the median to the 99th percentile."""
    pings = results.get("pings", [])
    if not pings or not results.get("base"):
        return None
    row, top, left = 24, 66, 250
    rows = sorted(pings, key=lambda ping: (ping["limit"], COLOURS[ping["shaper"]]))
    bottom = top + row * len(rows)
    picture = Picture(
        WIDTH,
        bottom + 50,
        "A ping-pong connection in the same rule as 4 bulk connections",
        "Round trip of one byte, from the median (mark) to the 99th percentile (end of the bar); logarithmic",
    )
    base = results["base"][0]["p50"]
    highest = max(ping["p99"] for ping in rows)
    x = Scale(10 ** math.floor(math.log10(base)), 10 ** math.ceil(math.log10(highest)), left, RIGHT, True)
    picture.x_axis(x, top, bottom, decades(x), "milliseconds")
    for index, ping in enumerate(rows):
        y, colour = top + row * (index + 0.5), COLOURS[ping["shaper"]]
        words = f"{ping['shaper']}, {ping['congestion']}, {megabits(ping['limit'])} Mbit/s"
        picture.text(left - 12, y + 4, words, "end")
        picture.line([(x.at(ping["p50"]), y), (x.at(ping["p99"]), y)], colour, "thick")
        picture.mark(x.at(ping["p50"]), y, colour, hint=f"P50 {ping['p50']:.3f} ms, P99 {ping['p99']:.3f} ms")
        if index and rows[index - 1]["limit"] != ping["limit"]:
            picture.rule(16, y - row / 2, RIGHT, y - row / 2, "grid")
    picture.rule(x.at(base), top, x.at(base), bottom, "goal")
    picture.text(x.at(base) + 6, top - 4, f"idle: {base:.3f} ms", "start", "faint")
    return picture
