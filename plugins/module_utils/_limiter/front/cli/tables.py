# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables for a terminal, and text that cannot change how one behaves."""

from __future__ import annotations

import os
import typing as t
import unicodedata

GAP = 2
LEAST = 8  # columns, to which a column that may be cut is cut at most


def is_unicode() -> bool:
    """Whether the terminal shows UTF-8: Python writes it in the locale C, too."""
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    return "utf" in locale.lower()


class Column(t.NamedTuple):
    title: str
    right: bool = False
    cut: bool = False  # it gives way where the table is too wide


def printable(text: str) -> str:
    """The text without what a terminal takes as commands; lines stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in text)


def table(columns: t.Sequence[Column], rows: t.Iterable[t.Sequence[str]], width: int | None, more: str) -> list[str]:
    """The lines, with a header. ``width``: they have at most so many columns where the columns that may be cut allow
    it; None: as many as are needed. ``more`` ends what was cut.
    """
    cells = [
        [column.title for column in columns],
        *([printable(cell).replace("\n", " ") for cell in row] for row in rows),
    ]
    widths = [max(map(columns_of, column)) for column in zip(*cells)]
    while width is not None and sum(widths) + GAP * (len(widths) - 1) > width:
        widest = max((size, index) for index, size in enumerate(widths) if columns[index].cut)
        if widest[0] <= LEAST:
            break
        widths[widest[1]] -= 1
    cut = [
        [_fitted(cell, size, column.right, more) for cell in one]
        for one, size, column in zip(zip(*cells), widths, columns)
    ]
    return [(" " * GAP).join(row).rstrip() for row in zip(*cut)]


def fitted(text: str, size: int, more: str = "", right: bool = False) -> str:
    """The text in exactly so many columns."""
    size = max(size, 0)
    return _fitted(printable(text).replace("\n", " "), size, right, more if size > len(more) else "")


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_width(one) for one in text)


def _width(one: str) -> int:
    if unicodedata.combining(one):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def _fitted(text: str, size: int, right: bool, more: str) -> str:
    """Cut, or filled, to a number of columns."""
    width = columns_of(text)
    if width > size:
        while width + len(more) > size:
            text = text[:-1]
            width = columns_of(text)
        text, width = text + more, width + len(more)
    space = " " * (size - width)
    return space + text if right else text + space
