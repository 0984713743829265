# SPDX-License-Identifier: GPL-3.0-or-later
"""Plots as SVG, without a library: axes, marks, lines and a legend, in light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

# Colours that the colour-blind can tell apart (after Okabe and Ito), lighter on dark paper. They are written out for
# each class: not every viewer of SVG knows CSS variables.
_LIGHT = {"paper": "#ffffff", "ink": "#24292f", "faint": "#6b7280", "grid": "#e3e6ea"}
_DARK = {"paper": "#0d1117", "ink": "#e6edf3", "faint": "#9aa4af", "grid": "#262c34"}
_LIGHT_COLOURS = ("#0060a8", "#d55e00", "#00855f", "#b0568c", "#7a7f87")
_DARK_COLOURS = ("#58b4f0", "#ff9a4d", "#35c598", "#e58fc0", "#9aa0a8")
_SHARED = """text { font: 12px "DejaVu Sans", Verdana, sans-serif }
text.title { font-size: 14px; font-weight: bold }
.line, .thick { fill: none; stroke-width: 1.5; stroke-linejoin: round }
.thick { stroke-width: 4; stroke-linecap: round }
.goal { stroke-dasharray: 4 3 }
"""


def _rules(shades: dict[str, str], colours: Sequence[str]) -> str:
    rules = [
        f"text {{ fill: {shades['ink']} }} text.faint {{ fill: {shades['faint']} }}",
        f".paper {{ fill: {shades['paper']} }} .band {{ fill: {shades['grid']} }}",
        f".grid {{ stroke: {shades['grid']} }} .goal {{ stroke: {shades['faint']} }}",
    ]
    for index, colour in enumerate(colours):
        rules.append(f".mark.c{index} {{ fill: {colour}; stroke: {shades['paper']} }}")
        rules.append(f".line.c{index}, .thick.c{index} {{ stroke: {colour} }}")
    return "\n".join(rules)


def _style() -> str:
    dark = _rules(_DARK, _DARK_COLOURS)
    return f"{_SHARED}{_rules(_LIGHT, _LIGHT_COLOURS)}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


class Scale(NamedTuple):
    """From values to pixels. `low` goes to `begin`, `high` to `end`; values outside are drawn at the edge."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)


def decades(scale: Scale) -> list[float]:
    """Powers of ten within a logarithmic scale."""
    first, last = math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
    return [10.0**power for power in range(first, last + 1)]


class Picture:
    """Elements are drawn in the order in which they are added."""

    def __init__(self, width: int, height: int, title: str, subtitle: str = "") -> None:
        self.width, self.height, self.title = width, height, title
        self.elements = [f'<rect class="paper" width="{width}" height="{height}"/>']
        self.text(16, 24, title, kind="title")
        self.text(16, 42, subtitle, kind="faint")

    def text(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "", turned: bool = False) -> None:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turn}>{escape(words)}</text>'
        )

    def rule(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.elements.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def box(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.elements.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" class="{kind}"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: int, kind: str = "line") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.elements.append(f'<polyline points="{path}" class="{kind} c{colour}"/>')

    def mark(self, x: float, y: float, colour: int, shape: str = "circle", size: float = 4.5, hint: str = "") -> None:
        """`hint` is shown while the pointer rests on it."""
        inside = f"<title>{escape(hint)}</title>" if hint else ""
        if shape == "circle":
            self.elements.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="mark c{colour}">{inside}</circle>'
            )
            return
        corners = _SHAPES[shape]
        path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
        self.elements.append(f'<polygon points="{path}" class="mark c{colour}">{inside}</polygon>')

    def x_axis(self, scale: Scale, top: float, bottom: float, ticks: Sequence[float], unit: str) -> None:
        for tick in ticks:
            x = scale.at(tick)
            self.rule(x, top, x, bottom, "grid")
            self.text(x, bottom + 16, f"{tick:g}", "middle", "faint")
        self.text((scale.begin + scale.end) / 2, bottom + 34, unit, "middle")

    def y_axis(self, scale: Scale, left: float, right: float, ticks: Sequence[float], unit: str) -> None:
        for tick in ticks:
            y = scale.at(tick)
            self.rule(left, y, right, y, "grid")
            self.text(left - 8, y + 4, f"{tick:g}", "end", "faint")
        self.text(18, (scale.begin + scale.end) / 2, unit, "middle", turned=True)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, int, str]]) -> None:
        """In one row: what it says, colour, shape ("line" for a line)."""
        for words, colour, shape in entries:
            if shape == "line":
                self.line([(x - 8, y - 4), (x + 8, y - 4)], colour, "thick")
            else:
                self.mark(x, y - 4, colour, shape)
            self.text(x + 13, y, words)
            x += 36 + 6.9 * len(words)

    def svg(self) -> str:
        body = "\n".join(self.elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-label="{escape(self.title)}">\n'
            f"<!-- SPDX-License-Identifier: GPL-3.0-or-later -->\n<style>{_style()}</style>\n{body}\n</svg>\n"
        )


_SHAPES = {
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "triangle": ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "left": ((-1.4, 0), (0.6, -1.1), (0.6, 1.1)),
    "right": ((1.4, 0), (-0.6, -1.1), (-0.6, 1.1)),
}
