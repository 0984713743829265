# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How rules are used, by two looks that are a second apart. Touches nothing, and remembers nothing."""

from __future__ import annotations

import functools
import time
import typing as t

from ..core import catalog, layout, measured
from ..core.connections import Sent, Summary
from ..core.measured import Connections, Facts, Look, Measured
from ..core.model import Rule
from ..core.pacing import Ability
from ..host import clock
from ..host.bpf import budgets
from ..host.groups import processes
from ..host.sockets import connections
from . import places
from .facts import counter
from .host import Host

SECONDS = 1.0

# Connections that are measured of each rule, for one that is asked for: which are the fastest is known only then.
_SPARE = 3

EARLIER = "connections are not looked at, since an earlier version of this collection limits here"


class Use(t.NamedTuple):
    rules: list[Facts]
    problems: list[str]  # why some of their connections are not known


def look(host: Host, rules: t.Iterable[Rule], chosen: t.Container[int] | None = None) -> Look:
    """``chosen``: only these budgets count, and those of these cgroups. May raise KernelError."""
    maps = host.opened_maps
    ids = [rule.cgroup_id for rule in rules if rule.cgroup_id]
    read = maps.states(len(ids))
    states = {number: state for number in ids for state in [read(number)] if state}
    busy = {
        rule: {key: one for key, one in several.items() if chosen is None or key in chosen or one.cgroup in chosen}
        for rule, several in budgets.busy(maps, clock.now()).items()
    }
    count = counter(host, len(states), states.get)
    counters = {number: count(number).counters for number in states}
    return Look(clock.now(), states, busy, counters)


class Watched:
    """The connections of some rules, looked at again and again: what each sends is known from the second look on."""

    def __init__(self, host: Host, most: int, process: int | None = None) -> None:
        """``process``: only its connections are told."""
        self._host, self._most, self._process = host, most, process
        self._holders: t.Mapping[int, connections.Holder] = {}
        self._sent: dict[int, Sent] = {}
        self._rates: dict[int, int] = {}
        self.found = connections.Look()
        self.held_up: set[int] = set()
        self._commands: dict[int, str] | None = None

    def look(self, wanted: t.Container[int] | None) -> None:
        """``wanted``: states; None: all."""
        host = self._host
        pacing_map = host.opened_maps.of(catalog.PACING).fd
        most = self._most * _SPARE
        self.found = connections.look(
            pacing_map, _states_of(host), wanted, most, _pids_of(host), self._holders, self._process
        )
        self._holders, self._commands = self.found.holders, None
        said, self.held_up = connections.measure(self._holders.values())
        rates = {inode: sent.rate_since(self._sent[inode]) for inode, sent in said.items() if inode in self._sent}
        self._rates = {inode: rate for inode, rate in rates.items() if rate is not None}
        self._sent = said

    def problems(self) -> list[str]:
        """Why some connections, or their rates, are not known."""
        problems = list(self.found.problems)
        if self.held_up:
            number = len(self.held_up)
            problems.append(f"what {number} connections send is not known: somebody keeps their sockets locked")
        return problems

    def of(self, states: t.Iterable[int]) -> Connections:
        """Those that are charged to any of these states, the fastest first."""
        numbers = [state for state in states if state in self.found.summaries]
        summary = sum((self.found.summaries[state] for state in numbers), Summary())
        several = {
            (one.namespace, one.local_address, one.local_port, one.address, one.port): one
            for state in numbers
            for one in self.found.kept.get(state, ())
        }
        rates = self._rates
        first = sorted(several.values(), key=lambda one: (rates.get(one.inode, -1), one.share), reverse=True)
        chosen = first[: self._most]
        pids = {one.inode: self._holders[one.inode].process for one in chosen if one.inode in self._holders}
        if pids and self._commands is None:
            self._commands = processes.commands({holder.process for holder in self._holders.values()})
        commands = self._commands or {}
        return Connections(
            summary,
            [
                Measured(one, rates.get(one.inode), self._sent.get(one.inode), pid, commands.get(pid or 0))
                for one in chosen
                for pid in [pids.get(one.inode)]
            ],
            self.found.at_ns,
        )


def _states_of(host: Host) -> connections.StatesOf:
    """What is charged that has not been charged yet, by the cgroup that its socket was made in."""
    ids = {name: number for number, name in host.cgroups.rules_by_id().items()}
    in_place, leaves = places.holding(host), host.leaves

    @functools.cache
    def states_of(cgroup: int) -> tuple[int, ...]:
        path = host.path_of(cgroup) if cgroup else None
        if path is None:
            return ()
        names = [leaves.rule_of(path), *in_place(path)]
        return tuple({ids[name] for name in names if name in ids})

    return states_of


def _pids_of(host: Host) -> t.Callable[[t.Iterable[int]], t.Iterable[int]]:
    def pids_of(cgroups: t.Iterable[int]) -> t.Iterable[int]:
        paths = [host.path_of(cgroup) if cgroup else None for cgroup in cgroups]
        if None in paths:  # it is gone, or the kernel does not tell
            return processes.all_pids()
        return dict.fromkeys(pid for path in paths if path for pid in host.cgroups.pids(path))

    return pids_of


def gather(host: Host, rules: t.Sequence[Rule], can: Ability, most: int) -> Use:
    """What these rules do in the second that follows, with ``most`` connections of each, and as many budgets."""
    maps = host.maps
    if maps is None or not rules:
        return Use([], [])
    return measure(host, rules, can, most, Watched(host, most) if maps.schema == layout.SCHEMA else None).use


class Second(t.NamedTuple):
    before: Look
    after: Look
    use: Use
    states: set[int]  # of these rules


def measure(
    host: Host,
    rules: t.Sequence[Rule],
    can: Ability,
    most: int,
    watched: Watched | None,
    chosen: t.Container[int] | None = None,
) -> Second:
    """As `gather`. ``chosen``: as in `look`."""
    before = look(host, rules, chosen)
    states = {rule.cgroup_id for rule in rules if rule.cgroup_id}
    states |= {key for rule in list(states) for key in before.budgets.get(rule, ())}
    if watched:
        watched.look(states)
    time.sleep(max(0.0, SECONDS - (clock.now() - before.at_ns) / 1e9))
    after = look(host, rules, chosen)
    if watched:
        watched.look(states)
    told, problems = _told(host, rules, can, most, before, after, watched)
    return Second(before, after, Use(told, problems), states)


def _told(
    host: Host,
    rules: t.Sequence[Rule],
    can: Ability,
    most: int,
    before: Look,
    after: Look,
    watched: Watched | None,
) -> tuple[list[Facts], list[str]]:
    names = host.cgroups.rules_by_id()
    of_states = names_of_states(names, after)
    facts = []
    for rule in rules:
        own = after.budgets.get(rule.cgroup_id or 0, {})
        found = watched.of([rule.cgroup_id or 0, *own]) if watched else Connections()
        paths = paths_of(host, own.values())
        told = measured.of_rule(rule, can, before, after, found, of_states, paths, most)
        if told:
            facts.append(told)
    if watched is None:
        return facts, [EARLIER]
    return facts, watched.problems()


def paths_of(host: Host, several: t.Iterable[layout.State]) -> dict[int, str]:
    """Of the cgroups of budgets that are still there, by their ids."""
    return {one.cgroup: path for one in several for path in [host.path_of(one.cgroup)] if path}


def names_of_states(names: t.Mapping[int, str], seen: Look) -> dict[int, str]:
    """Of the rule of each state."""
    owned = {key: names[rule] for rule, several in seen.budgets.items() if rule in names for key in several}
    return {**owned, **names}
