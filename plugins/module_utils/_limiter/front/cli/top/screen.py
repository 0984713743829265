# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`limiter top` in a terminal, by curses; and once, where there is none."""

from __future__ import annotations

import gc
import locale
import os
import select
import sys
import time
import typing as t

from ....work.watch import Watch
from ..tables import is_unicode, printable
from . import lines
from .app import App
from .lines import ASCII, BUSY, CHOSEN, DIM, HOLDS, NORMAL, TITLE, UNICODE, Glyphs

NO_TERMINAL = "there is no terminal"
_ESCAPE_MS = 50  # after Esc, for the rest of what a key sends; ssh may split it
_NAMES = {"\n": "ENTER", "\r": "ENTER", "\x1b": "ESCAPE", "\x7f": "BACKSPACE", "\b": "BACKSPACE"}


def glyphs() -> Glyphs:
    """What the terminal can show."""
    return UNICODE if is_unicode() else ASCII


def once(watch: Watch, seconds: float) -> list[str]:
    """The table, after so many seconds."""
    width = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout and sys.stdout.isatty() else None
    watch.sample()
    time.sleep(seconds)
    found = watch.sample()
    if not found.rules:
        return [found.notice or "There are no rules."]
    names = sorted(found.rules, key=lambda rule: (-rule.utilization, -rule.rate, rule.name))
    rows = [lines.Row(rule, lambda count: [], watch.processes(rule.name)) for rule in names]
    most = max([len(rule.name) for rule in names], default=0)
    table = lines.rules(rows, None, width or most + 90, ASCII if width is None else glyphs(), minute=False)
    return [*([found.notice] if found.notice else []), *(line.text.strip() for line in table)]


def cannot_live() -> str | None:
    """Why there is nothing to be drawn on; None: there is."""
    if sys.stdin is None or sys.stdout is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return NO_TERMINAL
    try:
        import curses
    except ImportError:
        return f"{sys.executable} has no curses (on SUSE it is the package python3-curses)"
    try:
        curses.setupterm()
    except curses.error:
        return f"the terminal {os.environ.get('TERM', '')!r} is not known here"
    return None if curses.tigetstr("cup") else f"the terminal {os.environ.get('TERM', '')!r} has no cursor"


def live(watch: Watch, interval: float) -> None:
    """Until q or Ctrl-C is pressed, or the terminal is gone."""
    import curses

    gc.enable()  # the starter switches it off for commands that end soon
    locale.setlocale(locale.LC_ALL, "")
    if hasattr(curses, "set_escdelay"):
        curses.set_escdelay(_ESCAPE_MS)
    try:
        curses.wrapper(_run, App(watch, interval, glyphs()))
    except KeyboardInterrupt as interrupt:
        if getattr(interrupt, "number", 2) != 2:  # SIGTERM, SIGHUP
            raise
    except curses.error:
        if not _is_gone():  # then it cannot be given back
            raise


def _run(screen: t.Any, app: App) -> None:
    import curses

    try:
        curses.curs_set(0)
    except curses.error:
        pass  # the terminal cannot hide it
    styles = _styles()
    while not app.done:
        app.tick()
        _draw(screen, app, styles)
        seconds = app.wait()
        screen.timeout(-1 if seconds is None else int(seconds * 1000) + 1)
        name = _key(screen)
        if name:
            app.key(name)
        elif _is_gone():
            return


def _is_gone() -> bool:
    """Whether somebody has closed the terminal. Where SIGHUP is ignored, as by nohup, nothing else says so."""
    stdin = select.poll()
    stdin.register(0, 0)
    return bool(stdin.poll(0))


def _styles() -> dict[str, int]:
    """Without colours, too, each differs from the others, or a character beside it says the same."""
    import curses

    styles = {NORMAL: 0, TITLE: curses.A_BOLD, CHOSEN: curses.A_REVERSE, HOLDS: curses.A_BOLD, BUSY: 0, DIM: 0}
    if not curses.has_colors() or os.environ.get("NO_COLOR"):
        return styles
    curses.use_default_colors()
    for number, (style, colour) in enumerate(((HOLDS, curses.COLOR_RED), (BUSY, curses.COLOR_YELLOW)), 1):
        curses.init_pair(number, colour, -1)
        styles[style] |= curses.color_pair(number)
    styles[DIM] = curses.A_DIM
    return styles


def _draw(screen: t.Any, app: App, styles: t.Mapping[str, int]) -> None:
    import curses

    height, width = screen.getmaxyx()
    screen.erase()
    for place, line in enumerate(app.lines(width, height)):
        try:
            screen.addstr(place, 0, printable(line.text), styles[line.style])
        except curses.error:
            pass  # the cursor cannot go on behind the last column of the last line
    screen.refresh()


def _key(screen: t.Any) -> str | None:
    """The name of the key that was pressed, if one was."""
    import curses

    named = {
        curses.KEY_UP: "UP",
        curses.KEY_DOWN: "DOWN",
        curses.KEY_PPAGE: "PAGE_UP",
        curses.KEY_NPAGE: "PAGE_DOWN",
        curses.KEY_HOME: "HOME",
        curses.KEY_END: "END",
        curses.KEY_ENTER: "ENTER",
        curses.KEY_BACKSPACE: "BACKSPACE",
    }
    try:
        found = screen.get_wch()
    except curses.error:  # nothing was pressed
        return None
    if isinstance(found, int):
        return named.get(found)
    return _NAMES.get(found, str(found))
