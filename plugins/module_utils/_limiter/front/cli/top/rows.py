# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `limiter top` keeps of the rules: their last minute, which of them are shown, and in what order."""

from __future__ import annotations

import collections
import typing as t

from ....core.watched import RuleSeen

MINUTE = 60.0

# What rules are sorted by, and whether the largest come first.
SORTS: dict[str, tuple[t.Callable[[RuleSeen], t.Any], bool]] = {
    "use": (lambda rule: (rule.utilization, rule.rate), True),
    "rate": (lambda rule: rule.rate, True),
    "drops": (lambda rule: (rule.drops, rule.utilization), True),
    "waiting": (lambda rule: (rule.waiting, rule.utilization), True),
    "limit": (lambda rule: rule.limit or 0, True),
    "name": (lambda rule: "", False),
}


class Past(t.NamedTuple):
    """How much of its limit a rule used, at one time."""

    at: float  # seconds of CLOCK_MONOTONIC
    used: float


class Rows:
    """The rules as they were last seen, and one of them that is chosen: by its name, wherever it goes."""

    def __init__(self) -> None:
        self.sort, self.reverse, self.filter = "use", False, ""
        self.chosen: str | None = None
        self.all: list[RuleSeen] = []
        self.shown: list[RuleSeen] = []
        self._past: dict[str, collections.deque[Past]] = {}
        self._since: dict[str, float] = {}

    def update(self, rules: t.Sequence[RuleSeen], now: float) -> None:
        past = {}
        for rule in rules:
            line = past[rule.name] = self._past.get(rule.name) or collections.deque()
            line.append(Past(now, rule.utilization))
            while now - line[0].at > MINUTE:
                line.popleft()
        self._past = past  # what is gone is forgotten
        self._since = {rule.name: self._since.get(rule.name, now) for rule in rules if rule.binds}
        self.all = list(rules)
        self.arrange()

    def arrange(self) -> None:
        """Anew, after a change of the order or the filter. Who was chosen stays it, or is who is in that place now."""
        place = self.place()
        key, largest_first = SORTS[self.sort]
        wanted = self.filter.lower()
        found = sorted((rule for rule in self.all if wanted in rule.name.lower()), key=lambda rule: rule.name)
        found.sort(key=key, reverse=largest_first)
        self.shown = found[::-1] if self.reverse else found
        if self.chosen is None or all(rule.name != self.chosen for rule in self.shown):
            self.choose(place)

    def place(self) -> int:
        """Of the chosen rule among those that are shown."""
        return next((place for place, rule in enumerate(self.shown) if rule.name == self.chosen), 0)

    def choose(self, place: int) -> None:
        last = len(self.shown) - 1
        self.chosen = self.shown[max(0, min(place, last))].name if self.shown else None

    def next_sort(self) -> None:
        names = list(SORTS)
        self.sort = names[(names.index(self.sort) + 1) % len(names)]
        self.arrange()

    def binding_since(self, name: str) -> float | None:
        """From when on this was seen to hold back without a break, in seconds of CLOCK_MONOTONIC."""
        return self._since.get(name)

    def last_minute(self, name: str, count: int, now: float) -> list[float | None]:
        """The highest part of its limit that was used in each of so many parts of the last minute, the oldest first;
        None: nothing is known of it.
        """
        found: list[float | None] = [None] * count
        for past in self._past.get(name, ()):
            part = count - 1 - int((now - past.at) * count / MINUTE)
            if 0 <= part < count:
                found[part] = max(found[part] or 0.0, past.used)
        return found
