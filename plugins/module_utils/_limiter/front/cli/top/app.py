# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `limiter top` shows and what keys do, without a terminal: lines out, names of keys in."""

from __future__ import annotations

import os
import textwrap
import time
import typing as t

from ....core.rates import short_rate
from ....core.watched import RuleSeen
from ....work.watch import Detail, Sample
from ..tables import columns_of, fitted, printable
from . import lines
from .lines import DIM, NORMAL, TITLE, Glyphs, Line, Row
from .rows import Rows

# No more of a core than that is used, however many rules there are: then it looks less often.
MOST_OF_CORE = 0.05

# How long the number of a rule's processes is believed, in seconds.
_PROCESSES = 5.0

KEYS = (
    ("q", "quit"),
    ("Enter", "connections"),
    ("s", "sort"),
    ("/", "filter"),
    ("p", "pause"),
    ("?", "help"),
)
HELP = (
    "Arrows, PgUp, PgDn, Home, End (or k, j): choose a rule",
    "Enter: its connections; Esc or q: back",
    "s: sort by use, rate, drops, waiting, limit, name; r: the other way round",
    "/: show only rules with this text in their names; an empty text: all",
    "p: pause; Space: look now; q: quit",
    "",
    "USE is of the limit; with each, of the cgroup that uses most of its own. ! says that the rule holds its senders "
    "back. DROPS are packets in a second. WAIT counts connections that would send more. LAST MIN has the highest use "
    "of each part of a minute.",
)


class Watched(t.Protocol):
    """A `work.watch.Watch`."""

    def sample(self) -> Sample: ...

    def processes(self, name: str) -> int | None: ...

    def detail(self, name: str) -> Detail: ...


class App:
    """``clock``: seconds that never jump; ``used``: seconds of the processor, with those of children."""

    def __init__(
        self,
        watch: Watched,
        interval: float,
        glyphs: Glyphs,
        clock: t.Callable[[], float] = time.monotonic,
        used: t.Callable[[], float] = lambda: time.process_time() + sum(os.times()[2:4]),
    ) -> None:
        self._watch, self.interval, self._glyphs, self._clock, self._used = watch, interval, glyphs, clock, used
        self.rows = Rows()
        self.done = self.paused = self._helps = False
        self._typing: str | None = None
        self._filter_before = ""
        self._of: str | None = None  # the rule whose connections are shown
        self._detail = Detail(None)
        self._notice = ""
        self._next = 0.0
        self._last = 0.0
        self._every = interval
        self._first = 0  # of the rules, or of the connections, that are shown
        self._page = 1
        self._processes: dict[str, tuple[float, int | None]] = {}

    # ---- time

    def wait(self) -> float | None:
        """Seconds until it is to be looked again; None: not until a key is pressed."""
        return None if self.paused else max(0.0, self._next - self._clock())

    def tick(self) -> bool:
        """Looks, if it is time. Whether it did."""
        now = self._clock()
        if self.paused or now < self._next:
            return False
        self._look(now)
        return True

    def _look(self, now: float) -> None:
        began = self._used()
        sample = self._watch.sample()
        self._notice = sample.notice
        if sample.rules is not None:
            self.rows.update(sample.rules, now)
        if self._of is not None:
            self._detail = self._watch.detail(self._of)
        cost = self._used() - began
        self._every = max(self.interval, cost / MOST_OF_CORE)
        self._last, self._next = now, now + self._every

    # ---- keys

    def key(self, name: str) -> None:
        """``name``: a letter, or one of UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END, ENTER, ESCAPE, BACKSPACE."""
        if self._typing is not None:
            self._type(name)
        elif self._helps:
            self._helps = False
        elif name == "?":
            self._helps = True
        elif name == "p":
            self.paused = not self.paused
        elif name == " ":
            self._look(self._clock())
        elif self._of is None:
            self._key_of_rules(name)
        else:
            self._key_of_connections(name)

    def _key_of_rules(self, name: str) -> None:
        step = self._step(name)
        if name == "q":
            self.done = True
        elif name == "s":
            self.rows.next_sort()
        elif name == "r":
            self.rows.reverse = not self.rows.reverse
            self.rows.arrange()
        elif name == "/":
            self._typing = self._filter_before = self.rows.filter
        elif name == "ESCAPE":
            self.rows.filter = ""
            self.rows.arrange()
        elif name == "ENTER" and self.rows.chosen is not None:
            self._of, self._first = self.rows.chosen, 0
            self._detail = self._watch.detail(self._of)
        elif step is not None:
            self.rows.choose(self.rows.place() + step)

    def _key_of_connections(self, name: str) -> None:
        step = self._step(name)
        if name in ("q", "ESCAPE", "BACKSPACE"):
            self._of, self._first, self._detail = None, 0, Detail(None)
        elif step is not None:
            self._first = max(0, self._first + step)

    def _step(self, name: str) -> int | None:
        return {
            "UP": -1,
            "k": -1,
            "DOWN": 1,
            "j": 1,
            "PAGE_UP": -self._page,
            "PAGE_DOWN": self._page,
            "HOME": -(10**9),
            "END": 10**9,
        }.get(name)

    def _type(self, name: str) -> None:
        text = self._typing or ""
        if name in ("ENTER", "ESCAPE"):
            if name == "ESCAPE":
                self.rows.filter = self._filter_before
            self._typing = None
        elif name == "BACKSPACE":
            self._typing = self.rows.filter = text[:-1]
        elif len(name) == 1 and name.isprintable():
            self._typing = self.rows.filter = text + name
        self.rows.arrange()

    # ---- lines

    def lines(self, width: int, height: int) -> list[Line]:
        """At most so many, each of at most so many columns; the last one is at the bottom."""
        if width < 1 or height < 1:
            return []
        if self._helps:
            body = [line for text in HELP for line in textwrap.wrap(text, width) or [""]]
            shown = [Line(text) for text in body[: max(height - 1, 1)]]
        elif self._of is not None:
            shown = self._connections(width, height - 1)
        else:
            shown = self._rules(width, height - 1)
        if height > 1:
            shown = shown[: height - 1]
            shown = [*shown, *[Line("")] * (height - 1 - len(shown)), self._bottom(width)]
        return [
            line if columns_of(line.text) <= width else line._replace(text=fitted(line.text, width, self._glyphs.more))
            for line in shown[:height]
        ]

    def _rules(self, width: int, height: int) -> list[Line]:
        self._page = max(height - 2, 1)
        place = self.rows.place()
        self._first = max(0, min(self._first, place, len(self.rows.shown) - self._page))
        self._first = max(self._first, place - self._page + 1)
        visible = self.rows.shown[self._first : self._first + self._page]
        table = lines.rules([self._row(rule) for rule in visible], self.rows.chosen, width, self._glyphs)
        if not visible:
            why = self._notice or ("no rule has this text in its name" if self.rows.filter else "there are no rules")
            table[1:] = [Line(text) for text in textwrap.wrap(why, width)]
        return [self._header(width), *table]

    def _row(self, rule: RuleSeen) -> Row:
        now = self._last

        def minute(count: int) -> list[float | None]:
            return self.rows.last_minute(rule.name, count, now)

        return Row(rule, minute, self._processes_of(rule.name))

    def _processes_of(self, name: str) -> int | None:
        now = self._clock()
        known = self._processes.get(name)
        if known is None or now - known[0] > _PROCESSES:
            known = self._processes[name] = now, self._watch.processes(name)
        return known[1]

    def _header(self, width: int) -> Line:
        found = self.rows.all
        binding = sum(rule.binds for rule in found)
        parts = [f"{len(found)} rule{'' if len(found) == 1 else 's'}"]
        parts += ["PAUSED"] if self.paused else []
        parts += [self._notice] if self._notice and found else []
        parts.append(f"{binding} hold{'s' if binding == 1 else ''} back")
        once = [rule.once for rule in found if rule.once is not None]
        if len(once) == len(found):
            parts.append(f"now {short_rate(int(sum(once)))}")
        parts += [f"with {self.rows.filter!r}: {len(self.rows.shown)}"] if self.rows.filter else []
        parts.append(f"by {self.rows.sort}{', reversed' if self.rows.reverse else ''}")
        parts.append(f"every {self._every:.3g} s")
        return lines.header(parts, width, self._glyphs.more)

    def _connections(self, width: int, height: int) -> list[Line]:
        facts = self._detail.facts
        if facts is None:
            gone = self._detail.notice or f"There is no rule {self._of} any more."
            return [Line(text) for text in textwrap.wrap(gone, width)]
        since = self.rows.binding_since(facts["name"])
        watched = None if since is None else self._last - since
        texts = [*lines.summary(facts, watched), *([self._detail.notice] if self._detail.notice else [])]
        above = [
            Line(part, NORMAL if place else TITLE)
            for place, text in enumerate(texts)
            for part in textwrap.wrap(printable(text), width)
        ]
        # Half of a low terminal stays for the connections.
        above = above[: max(1, height // 2)]
        title, *found = lines.connections(facts, width, self._glyphs)
        self._page = max(height - len(above) - 1, 1)
        self._first = max(0, min(self._first, len(found) - self._page))
        if not found:
            found = [Line("It has no TCP connections." if title.style == TITLE else "", DIM)]
        return [*above, title, *found[self._first : self._first + self._page]]

    def _bottom(self, width: int) -> Line:
        if self._typing is not None:
            return Line(f"/{self._typing}_")
        keys = KEYS if self._of is None else (("Esc", "back"), *KEYS[4:])
        return lines.header([f"{key} {what}" for key, what in keys], width, self._glyphs.more)._replace(style=DIM)
