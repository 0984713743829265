# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of requests, pages and short connections."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from . import asking
from .kinds.churn import CLIENT, SERVER
from .measure import megabits
from .plots import COLOURS, LEFT, MBIT, RIGHT, WIDTH
from .shapers import NONE, OURS
from .svg import Picture, Scale, decades

Stored = dict[str, Any]
WORDS = {
    "churn.svg": "Use of the limit against new connections a second, for every shaper",
    "pages.svg": "Time of a page against its ideal, for every shaper",
    "waits.svg": "How long answers take, by percentile, for every shaper",
}


def all_plots(results: Stored) -> dict[str, str]:
    drawn = {"churn.svg": churn(results), "pages.svg": page_times(results), "waits.svg": waits(results)}
    return {name: picture.svg() for name, picture in drawn.items() if picture}


def _by_shaper(cells: list[Stored]) -> dict[str, list[Stored]]:
    """This collection last: it is drawn on top."""
    order = sorted(COLOURS, key=lambda shaper: -COLOURS[shaper])
    grouped = {shaper: [cell for cell in cells if cell["shaper"] == shaper] for shaper in order}
    return {shaper: group for shaper, group in grouped.items() if group}


def _legend(picture: Picture, x: float, y: float, cells: list[Stored], shape: str) -> None:
    shapers = [shaper for shaper in COLOURS if shaper in _by_shaper(cells)]
    picture.legend(x, y, [(shaper, COLOURS[shaper], shape) for shaper in shapers])


# ---- connections that come and go

_ROWS = (
    (100 * MBIT, CLIENT, 0, "the limited end opens connections that carry nothing"),
    (20 * MBIT, SERVER, 100, "the limited end is asked for 100 bytes on each"),
)


def churn(results: Stored) -> Picture | None:
    """A panel for each row that was measured in full; the limit's use, and bulk's part of it below as a thin line."""
    shown = []
    for limit, where, size, words in _ROWS:
        row = (limit, where, size, 1, "cubic")
        names = ("limit", "where", "size", "bulk", "congestion")
        cells = [cell for cell in results.get("churn", []) if tuple(cell[name] for name in names) == row]
        if cells:
            shown.append((f"{megabits(limit)} Mbit/s; {words}", cells))
    if not shown:
        return None
    numbers = sorted({cell["per_second"] for _words, cells in shown for cell in cells})
    height, top = 210, 76
    picture = Picture(
        WIDTH,
        top + height * len(shown) + 46,
        "A bulk connection beside others that come and go",
        "IP bytes that arrived, in per cent of the limit. htb and tbf count Ethernet headers too: 99 is exact for them",
    )
    _legend(picture, LEFT + 10, 66, [cell for _words, cells in shown for cell in cells], "circle")
    x = Scale(0, max(1, len(numbers) - 1), LEFT + 30, RIGHT - 30)
    for index, (words, cells) in enumerate(shown):
        y1, y2 = top + index * height + 26, top + (index + 1) * height - 22
        y = Scale(0, 110, y2, y1)
        picture.text(LEFT, y1 - 6, words, kind="faint")
        picture.y_axis(y, LEFT, RIGHT, (0, 25, 50, 75, 100), "% of the limit")
        for place, number in enumerate(numbers):
            picture.rule(x.at(place), y1, x.at(place), y2, "grid")
            picture.text(x.at(place), y2 + 16, str(number), "middle", "faint")
        for shaper, group in _by_shaper(cells).items():
            group.sort(key=lambda cell: cell["per_second"])
            points = [
                (x.at(numbers.index(cell["per_second"])), y.at(100 * cell["used"] / cell["limit"])) for cell in group
            ]
            picture.line(points, COLOURS[shaper])
            for (at, height_of), cell in zip(points, group):
                hint = f"{shaper}, {cell['per_second']} a second: {100 * cell['used'] / cell['limit']:.1f} %"
                picture.mark(at, height_of, COLOURS[shaper], hint=hint)
    picture.text((LEFT + RIGHT) / 2, top + height * len(shown) + 22, "new connections a second", "middle")
    return picture


# ---- pages


def page_times(results: Stored) -> Picture | None:
    """A row for each way to load it, first with the small bucket; logarithmic."""
    cells = [cell for cell in results.get("pages", []) if cell["shaper"] != NONE]
    if not cells:
        return None

    def row_of(cell: Stored) -> tuple[bool, str]:
        how = "HTTP/2 over TLS"
        if "kept" in cell:
            kind = "kept" if cell["kept"] else "new"
            how = f"{cell['connections']} {kind} connection{'s' if cell['connections'] > 1 else ''}"
        return cell["bucket"] is None, how

    rows = sorted(dict.fromkeys(map(row_of, cells)), key=lambda row: row[0])
    row_height, top, left = 30, 92, 190
    bottom = top + row_height * len(rows)
    picture = Picture(
        WIDTH,
        bottom + 50,
        f"A page of 100 x 10 kB from an idle limit of {megabits(cells[0]['limit'])} Mbit/s",
        "Time over ideal: its bytes at the limit; logarithmic. With a bucket of a second all of it may pass at once",
    )
    _legend(picture, left, 66, cells, "circle")
    order = [shaper for shaper in COLOURS if shaper in _by_shaper(cells)]
    times = [cell["took"] / cell["ideal"] for cell in cells]
    low, high = (10 ** edge(math.log10(value)) for edge, value in ((math.floor, min(times)), (math.ceil, max(times))))
    x = Scale(low, max(high, 10), left, RIGHT, True)
    picture.x_axis(x, top, bottom, decades(x), "time over ideal; dashed: the goal")
    for index, row in enumerate(rows):
        y = top + row_height * (index + 0.5)
        picture.text(left - 12, y + 4, row[1], "end")
        goal = x.at(0.5 if row[0] else 1.1)
        picture.rule(goal, y - row_height / 2, goal, y + row_height / 2, "goal")
        if index and rows[index - 1][0] != row[0]:
            picture.rule(16, y - row_height / 2, RIGHT, y - row_height / 2, "grid")
        if not index or rows[index - 1][0] != row[0]:
            words = "default bucket" if row[0] else "bucket of 20 ms"
            picture.text(RIGHT, y - row_height / 2 - 4 + (row_height if index else 0) * 0.5, words, "end", "faint")
        for shaper, group in _by_shaper([cell for cell in cells if row_of(cell) == row]).items():
            part = group[-1]["took"] / group[-1]["ideal"]
            # So that equal figures stay apart.
            apart = 0.25 * row_height * (order.index(shaper) - (len(order) - 1) / 2)
            picture.mark(x.at(part), y + apart, COLOURS[shaper], size=4, hint=f"{shaper}: {part:.2f}")
    return picture


# ---- how long answers take


class _Cells(NamedTuple):
    """Of these, without a limit too."""

    limit: int
    workers: int
    size: int

    def has(self, cell: Stored) -> bool:
        return cell["limit"] in (0, self.limit) and (cell["workers"], cell["size"]) == (self.workers, self.size)


_PANELS: tuple[tuple[str, str, _Cells], ...] = (
    (
        "loops",
        "20 kept connections, answers of 60 B, 2 Mbit/s",
        _Cells(2 * MBIT, 20, 60),
    ),
    (
        "loops",
        "20 kept connections, answers of 1,000 B, 2 Mbit/s",
        _Cells(2 * MBIT, 20, 1000),
    ),
    (
        "requests_new",
        "8 workers, a connection for each request, 10 kB, 20 Mbit/s",
        _Cells(20 * MBIT, 8, 10_000),
    ),
)


def waits(results: Stored) -> Picture | None:
    """Percentiles at equal distances, so that the rare ones are seen; logarithmic."""
    shown = [(words, [cell for cell in results.get(store, []) if chosen.has(cell)]) for store, words, chosen in _PANELS]
    shown = [(words, cells) for words, cells in shown if any(cell["limit"] for cell in cells)]
    if not shown:
        return None
    height, top = 200, 76
    picture = Picture(
        WIDTH,
        top + height * len(shown) + 46,
        "How long an answer takes",
        "By percentile of all answers; logarithmic. Dashed: a cycle, in which each has one answer at the limit",
    )
    _legend(picture, LEFT + 10, 66, [cell for _words, cells in shown for cell in cells], "line")
    x = Scale(0, len(asking.PERCENTILES) - 1, LEFT + 20, RIGHT - 20)
    for index, (words, cells) in enumerate(shown):
        y1, y2 = top + index * height + 26, top + (index + 1) * height - 22
        values = [value for cell in cells for value in cell["spread"] if value > 0]
        y = Scale(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))), y2, y1, True)
        picture.text(LEFT, y1 - 6, words, kind="faint")
        picture.y_axis(y, LEFT, RIGHT, decades(y), "milliseconds")
        for place, percentile in enumerate(asking.PERCENTILES):
            picture.rule(x.at(place), y1, x.at(place), y2, "grid")
            picture.text(x.at(place), y2 + 16, f"{percentile:g}", "middle", "faint")
        cycle = max(cell["cycle"] for cell in cells if cell["limit"])
        picture.rule(LEFT, y.at(cycle), RIGHT, y.at(cycle), "goal")
        for shaper, group in _by_shaper(cells).items():
            points = [(x.at(place), y.at(max(value, y.low))) for place, value in enumerate(group[-1]["spread"])]
            picture.line(points, COLOURS[shaper], "thick" if shaper == OURS else "line")
    picture.text((LEFT + RIGHT) / 2, top + height * len(shown) + 22, "percentile", "middle")
    return picture
