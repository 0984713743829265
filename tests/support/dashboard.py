# SPDX-License-Identifier: GPL-3.0-or-later
"""The panels of docs/metrics/dashboard.json as a picture (SVG): what their queries answer, in the places, units and
colours that the JSON gives them. It is not Grafana that draws, so only what the JSON says is as it would be there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from . import gallery

(SOURCE,), _COMMAND = gallery.SOURCES["dashboard.svg"]
COLUMN, ROW, GAP = 50, 36, 8  # of the grid, in pixels
PAPER, PANEL, INK, FAINT, GRID = "#111217", "#181b1f", "#d8d9da", "#8e8e98", "#2c3235"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0")
THRESHOLDS = {"blue": "#1f60c4", "green": "#37872d", "red": "#c4162a"}
# REUSE-IgnoreStart
LICENCE = "<!-- SPDX-License-Identifier: GPL-3.0-or-later -->"  # of the picture
# REUSE-IgnoreEnd
LETTER, LINE, HEAD = 6.9, 15, 30  # width of a letter, height of a line, of a panel's title
NUMBERS = 160  # the width of the columns with the last and the largest value

# What a query answers: for each series its labels, and seconds and values.
Series = tuple[dict[str, str], list[tuple[float, float]]]
Ask = Callable[[str], Sequence[Series]]


class Drawn(NamedTuple):
    name: str
    colour: str
    points: list[tuple[float, float]]
    dashed: bool


def svg(ask: Ask, begin: float, end: float) -> str:
    """``ask``: what Prometheus answers to an expression, in which `$instance` and the like still stand."""
    text = SOURCE.read_text(encoding="utf-8")
    dashboard = json.loads(text)
    panels = dashboard["panels"]
    width = 24 * COLUMN + GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * ROW + GAP
    body = "\n".join(_panel(panel, ask, begin, end) for panel in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"\n'
        f'  font-family="DejaVu Sans, Verdana, sans-serif" font-size="11">\n{LICENCE}\n'
        f"<title>{escape(dashboard['title'])}</title>\n<desc>{gallery.drawn_by('dashboard.svg')}</desc>\n"
        f'<rect width="100%" height="100%" fill="{PAPER}"/>\n{body}\n</svg>\n'
    )


def _panel(panel: dict[str, Any], ask: Ask, begin: float, end: float) -> str:
    place = panel["gridPos"]
    left, top = place["x"] * COLUMN + GAP, place["y"] * ROW + GAP
    width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
    inside = (
        _stat(panel, ask, width, height) if panel["type"] == "stat" else _lines(panel, ask, width, height, begin, end)
    )
    return f'<g transform="translate({left} {top})">\n{inside}\n</g>'


def _frame(title: str, width: int, height: int, paper: str) -> str:
    return (
        f'<rect width="{width}" height="{height}" rx="2" fill="{paper}"/>\n'
        f'<text x="10" y="19" fill="{INK}" font-weight="bold">{escape(_fitted(title, width - 12))}</text>'
    )


def _stat(panel: dict[str, Any], ask: Ask, width: int, height: int) -> str:
    answered = [points[-1][1] for target in panel["targets"] for _labels, points in ask(target["expr"]) if points]
    colour, text = PANEL, "No data"
    if answered:
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        reached = [step for step in steps if step["value"] is None or answered[0] >= step["value"]]
        colour, text = THRESHOLDS[reached[-1]["color"]], _value(answered[0], "none")
    number = (
        f'<text x="{width / 2}" y="{height / 2 + 24}" fill="#fff" font-size="34" text-anchor="middle">{text}</text>'
    )
    return f"{_frame(panel['title'], width, height, colour)}\n{number}"


def _lines(panel: dict[str, Any], ask: Ask, width: int, height: int, begin: float, end: float) -> str:
    found = _series(panel, ask)
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults["unit"], defaults["custom"]
    if "stacking" in custom:
        found = _stacked(found)
    names = max([len(one.name) for one in found], default=0)
    legend = min(width * 0.5, names * LETTER + NUMBERS + 48)
    left, right, top, bottom = 62, width - legend, HEAD, height - 24
    most = _round_up(max([value for one in found for _at, value in one.points], default=0.0) or 1.0)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return left + (point[0] - begin) / (end - begin) * (right - left), bottom - point[1] / most * (bottom - top)

    pieces = [_frame(panel["title"], width, height, PANEL)]
    for part in range(5):
        y = bottom - part / 4 * (bottom - top)
        pieces.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        pieces.append(_text(left - 6, y + 4, _value(most * part / 4, unit), FAINT, "end"))
    for part in range(4):
        x = left + part / 3 * (right - left)
        anchor = ("start", "middle", "middle", "end")[part]
        pieces.append(_text(x, height - 8, f"{(end - begin) * part / 3:.0f} s", FAINT, anchor))
    for one in reversed(found):  # of those that are stacked, the highest first: the others are in front of it
        points = [at(point) for point in one.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if points and custom.get("fillOpacity") and not one.dashed:
            area = f"{points[0][0]:.1f},{bottom} {path} {points[-1][0]:.1f},{bottom}"
            pieces.append(
                f'<polygon points="{area}" fill="{one.colour}" fill-opacity="{custom["fillOpacity"] / 100}"/>'
            )
        dash = ' stroke-dasharray="6 4"' if one.dashed else ""
        pieces.append(f'<polyline points="{path}" fill="none" stroke="{one.colour}" stroke-width="1.3"{dash}/>')
    return "\n".join([*pieces, *_legend(panel, found, unit, right + 14, width - 10, height)])


def _series(panel: dict[str, Any], ask: Ask) -> list[Drawn]:
    dashed = [
        re.compile(override["matcher"]["options"].strip("/"))
        for override in panel["fieldConfig"].get("overrides", ())
        if any(one["id"] == "custom.lineStyle" for one in override["properties"])
    ]
    found = [
        (_name(target["legendFormat"], labels), points)
        for target in panel["targets"]
        for labels, points in ask(target["expr"])
    ]
    return [
        Drawn(name, COLOURS[number % len(COLOURS)], points, any(one.search(name) for one in dashed))
        for number, (name, points) in enumerate(found)
    ]


def _name(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), form)


def _stacked(found: Sequence[Drawn]) -> list[Drawn]:
    below: dict[float, float] = {}
    stacked = []
    for one in found:
        points = [(at, below.get(at, 0.0) + value) for at, value in one.points]
        below.update(points)
        stacked.append(one._replace(points=points))
    return stacked


def _legend(
    panel: dict[str, Any], found: Sequence[Drawn], unit: str, left: float, right: float, height: int
) -> list[str]:
    """A table, as the panels ask for: the last value of each, and the largest one."""
    plain = {one.name: one for one in found}
    pieces = [_text(right - 76, HEAD + 4, "Last", COLOURS[2], "end"), _text(right, HEAD + 4, "Max", COLOURS[2], "end")]
    before: dict[float, float] = {}
    for number, one in enumerate(plain.values()):
        y = HEAD + 4 + (number + 1) * LINE
        if y > height - 6:
            break
        own = one.points
        if "stacking" in panel["fieldConfig"]["defaults"]["custom"]:
            own = [(at, value - before.get(at, 0.0)) for at, value in one.points]
            before.update(one.points)
        pieces.append(f'<rect x="{left:.1f}" y="{y - 6}" width="12" height="4" rx="2" fill="{one.colour}"/>')
        pieces.append(_text(left + 17, y, _fitted(one.name, right - NUMBERS - left - 17), INK))
        for x, value in (
            (right - 76, own[-1][1] if own else 0.0),
            (right, max([value for _at, value in own], default=0.0)),
        ):
            pieces.append(_text(x, y, _value(value, unit), INK, "end"))
    return pieces


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _fitted(text: str, width: float) -> str:
    room = max(int(width / LETTER), 4)
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if power * step >= value * 0.9999)


def _value(value: float, unit: str) -> str:
    """In the units of Grafana that the dashboard uses."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %" if value < 9.995 else f"{100 * value:.0f} %"
    scales = {
        "bps": ((1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s"), (1, "b/s")),
        "pps": ((1e3, "kp/s"), (1, "p/s")),
        "s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "none": ((1, ""),),
    }[unit]
    scale, name = next((one for one in scales if abs(value) >= one[0]), scales[-1])
    number = value / scale
    return (
        f"{number:.0f} {name}".strip() if number >= 99.95 or number == int(number) else f"{number:.3g} {name}".strip()
    )
