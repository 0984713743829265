# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All rules of a host, looked at again and again, for little. Touches nothing, and remembers only what it has seen."""

from __future__ import annotations

import os
import time
import typing as t

from ..core import catalog, measured, schemas
from ..core.errors import LimiterError
from ..core.model import Rule
from ..core.pacing import NO_PROGRAM, Ability
from ..core.policy import InPlace
from ..core.watched import RuleSeen, States
from ..host import apart, clock
from ..host.bpf import pins
from . import places
from .host import Host, RunCommand
from .pacing import ability
from .use import EARLIER, Watched, look, names_of_states, paths_of

# What changes seldom is looked at this often: the program, leaves, places.
_SELDOM = 10.0
_MOST_CONNECTIONS = 200
_FIRST = 0.25  # seconds from the first look at connections to the second one, which knows their rates


class Sample(t.NamedTuple):
    rules: list[RuleSeen] | None  # None: they could not be looked at this time
    notice: str = ""  # why this is not all


class Detail(t.NamedTuple):
    """One rule."""

    facts: measured.Facts | None  # as ``use`` of speed_limit_info; None: there is no such rule
    notice: str = ""


class Watch:
    """Raises LimiterError as `Host.open`."""

    def __init__(self, run_command: RunCommand) -> None:
        self._host = Host.open(run_command, any_version=True)
        self._states = States()
        self._looked_at = time.monotonic()
        self._pins = _pins()
        self._can: Ability | None = None
        self._in_place: dict[str, list[str]] | None = None
        self._detail: _OfRule | None = None

    def sample(self) -> Sample:
        """What the rules did since the last one. What fails is told, and may succeed the next time."""
        try:
            self._renew(time.monotonic())
            maps = self._host.maps
            if maps is None:
                other = self._host.other_maps
                return Sample([], "another version of this collection limits here" if other else NO_PROGRAM)
            names, limits = self._host.cgroups.rules_by_id(), maps.limits()
            entries = list(maps.entries(catalog.STATE))
            schema = maps.schema
            rules = self._states.advance(
                entries,
                clock.now(),
                limits,
                names,
                self.ability,
                lambda raw: schemas.unpack_state(schema, raw),
            )
            return Sample(rules, NO_PROGRAM if self.ability.state is None else "")
        except LimiterError as error:
            return Sample(None, str(error))

    def _renew(self, now: float) -> None:
        """Opens anew what may have been replaced: an upgrade puts other maps in the place of these."""
        found = _pins()
        if found == self._pins and now - self._looked_at < _SELDOM:
            return
        for maps in (self._host.maps, self._host.other_maps):
            if maps is not None:
                maps.close()
        self._host.maps = self._host.other_maps = None
        self._host.refresh()
        self._pins, self._looked_at, self._can, self._in_place, self._detail = found, now, None, None, None

    @property
    def ability(self) -> Ability:
        if self._can is None:
            self._can = ability(self._host, self._host.attachments.current())
        return self._can

    def processes(self, name: str) -> int | None:
        """How many a rule holds for: those that it took, and those of the cgroups that it limits in place."""
        try:
            if self._in_place is None:
                by_rule = places.by_rule(self._host)
                self._in_place = {rule: [place.pattern for place in found] for rule, found in by_rule.items()}
            cgroups = places.cgroups_of(self._host, self._in_place.get(name, ()))
            pids = {pid for cgroup in cgroups for pid in self._host.cgroups.pids(cgroup)}
            return len(pids.union(self._host.leaves.pids(name)))
        except (LimiterError, OSError):
            return None

    def detail(self, name: str) -> Detail:
        """One rule and its connections, since the last time that it was asked for."""
        apart.begin()
        try:
            if self._host.maps is None:
                return Detail(None)
            number = {name: rule for rule, name in self._host.cgroups.rules_by_id().items()}.get(name)
            if number is None:
                self._detail = None
                return Detail(None)
            if self._detail is None or self._detail.number != number:
                self._detail = _OfRule(self._host, name, number)
            return self._detail.look(self.ability)
        except LimiterError as error:
            return Detail(None, str(error))


class _OfRule:
    """One rule, looked at again and again."""

    def __init__(self, host: Host, name: str, number: int) -> None:
        self._host, self._name, self.number = host, name, number
        self._watched = None if host.is_earlier else Watched(host, _MOST_CONNECTIONS)
        self._in_place = InPlace(each=any(place.each for place in places.by_rule(host).get(name, ())))
        self._before = self._look()
        time.sleep(_FIRST)

    def _look(self) -> measured.Look:
        seen = look(self._host, [self._rule()])
        if self._watched:
            self._watched.look({self.number, *seen.budgets.get(self.number, {})})
        return seen

    def _rule(self) -> Rule:
        limit = self._host.opened_maps.limit(self.number)
        return Rule(self._name, self.number, limit, (), (), self._in_place)

    def look(self, can: Ability) -> Detail:
        before, after = self._before, self._look()
        self._before, own = after, after.budgets.get(self.number, {})
        found = self._watched.of([self.number, *own]) if self._watched else measured.Connections()
        names = names_of_states(self._host.cgroups.rules_by_id(), after)
        paths = paths_of(self._host, own.values())
        facts = measured.of_rule(self._rule(), can, before, after, found, names, paths, _MOST_CONNECTIONS)
        return Detail(facts, "; ".join(self._watched.problems()) if self._watched else EARLIER)


def _pins() -> tuple[int, ...]:
    """What tells the pinned maps from others in their place."""
    found = []
    for row in (catalog.CONTROL, catalog.STATE, catalog.CONFIG):
        try:
            found.append(os.stat(pins.path(row.name)).st_ino)
        except OSError:
            found.append(0)
    return tuple(found)
