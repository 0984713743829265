# SPDX-License-Identifier: GPL-3.0-or-later
"""A terminal's screen as a picture (SVG), in which it is still text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from xml.sax.saxutils import escape

import pyte
from pyte.screens import Char

WIDTH, HEIGHT, FONT, MARGIN = 8, 18, 13, 12  # of a character, and around all, in pixels
NO_BREAK = "\u00a0"  # browsers make one of several other spaces
PAPER, INK = "#1d2129", "#d8dee9"
# REUSE-IgnoreStart
LICENCE = "<!-- SPDX-License-Identifier: GPL-3.0-or-later -->"  # of the picture
# REUSE-IgnoreEnd
COLOURS = {
    "black": "#4c566a",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": INK,
    "default": INK,
}


def svg(screen: pyte.Screen, title: str, drawn_by: str = "") -> str:
    """Of the lines up to the last one that is not empty."""
    rows = [number for number, line in enumerate(screen.display) if line.strip()]
    height = (max(rows, default=0) + 1) * HEIGHT + 2 * MARGIN
    width = screen.columns * WIDTH + 2 * MARGIN
    pieces = "".join(piece for row in rows for piece in _line(screen, row))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"\n'
        f'  font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{FONT}">\n'
        f"{LICENCE}\n<title>{escape(title)}</title>\n<desc>{escape(drawn_by)}</desc>\n"
        f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>\n{pieces}</svg>\n'
    )


def _line(screen: pyte.Screen, row: int) -> Iterator[str]:
    """Each part that is drawn in one way; its length is given, so that columns are kept with any font."""
    characters = [screen.buffer[row][column] for column in range(screen.columns)]
    column = 0
    for (ink, paper, bold), group in groupby(characters, _style):
        text = "".join(one.data for one in group)
        left, length, top = MARGIN + column * WIDTH, len(text) * WIDTH, MARGIN + row * HEIGHT
        column += len(text)
        if paper != PAPER:
            yield f'<rect x="{left}" y="{top}" width="{length}" height="{HEIGHT}" fill="{paper}"/>\n'
        if text := text.rstrip():
            length = len(text) * WIDTH
            weight = ' font-weight="bold"' if bold else ""
            yield (
                f'<text x="{left}" y="{top + FONT}" textLength="{length}" lengthAdjust="spacingAndGlyphs" '
                f'fill="{ink}"{weight}>{escape(text).replace(" ", NO_BREAK)}</text>\n'
            )


def _style(one: Char) -> tuple[str, str, bool]:
    ink, paper = COLOURS.get(one.fg, INK), PAPER if one.bg == "default" else COLOURS.get(one.bg, PAPER)
    return (paper, ink, one.bold) if one.reverse else (ink, paper, one.bold)
