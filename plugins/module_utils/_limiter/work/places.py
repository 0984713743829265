# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The places of a host's rules: told to the program, and completed after a run that was killed.

The place map is the truth, and the graph follows from it. A program that may not look into the kernel's memory finds no
names. Then the cgroups that are there now become members by their ids, which every rule task brings up to date.
"""

from __future__ import annotations

import contextlib
import functools
import typing as t

from ..core import catalog
from ..core import places as core
from ..core.errors import LimiterError
from ..core.leaves import own_rule
from ..core.patterns import Node, parse, rules_on
from ..core.places import Place, Places, Stored
from ..host.bpf import graph
from ..host.bpf import places as kernel
from .host import Host

BLIND = (
    "the kernel forbids BPF to look into its memory (lockdown), so cgroups are not found by their names: the rules "
    "hold for the cgroups that were there at the last rule task, without budgets of their own, and not for those that "
    "are made later, as by a restart, until the next rule task"
)
_MOST_NAMED = 3  # cgroups that a rule does not reach


def read(host: Host) -> list[Stored]:
    """All places, also of rules that are gone."""
    if host.maps is None:
        return []
    if host.maps.schema < catalog.PLACE.since:
        return kernel.of_members(host.maps, host.path_of)
    return list(kernel.read(host.maps).values())


def by_rule(host: Host) -> dict[str, list[Stored]]:
    """The places of each rule that has some, by its name."""
    return _by_rule(host, read(host))


def _by_rule(host: Host, stored: t.Sequence[Stored]) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = {}
    names = host.cgroups.rules_by_id() if stored else {}
    for place in stored:
        if place.rule in names:
            found.setdefault(names[place.rule], []).append(place)
    return found


def of_host(host: Host) -> dict[str, Place]:
    return _named(by_rule(host))


def _named(found: t.Mapping[str, t.Sequence[Stored]]) -> dict[str, Place]:
    return {place.pattern: Place(name, place.each) for name, places in found.items() for place in places}


def cgroups_of(host: Host, patterns: t.Iterable[str]) -> set[str]:
    """The cgroups that these patterns name now."""
    return {cgroup for pattern in patterns for cgroup in host.cgroups.matching(parse("cgroup_paths", pattern))}


def graph_of_host(host: Host) -> list[Node]:
    """Compiled anew: that takes long."""
    return core.graph_of(of_host(host))


def holding(host: Host) -> t.Callable[[str], list[str]]:
    """Tells which rules limit a cgroup in place, the outermost first: as the program that is loaded finds them, or as
    one would.
    """
    if is_blind(host):
        names, members = host.cgroups.rules_by_id(), _in_place(host)
        ids = {member: names[rule] for member, rule in members.items() if rule in names}

        def by_id(cgroup: str) -> list[str]:
            numbers = (host.cgroups.identifier(path) for path in way_up(cgroup)) if ids else ()
            return [ids[number] for number in numbers if number in ids]

        return by_id
    in_place = of_host(host)
    compiled = functools.cache(functools.partial(core.graph_of, in_place))  # long where there are many, and few need it
    return lambda cgroup: [name for name in rules_on(compiled(), cgroup) if name] if in_place else []


def way_up(cgroup: str) -> list[str]:
    """The root, all cgroups above this one, and itself."""
    names = cgroup.strip("/").split("/") if cgroup != "/" else []
    return ["/", *(f"/{'/'.join(names[:count])}" for count in range(1, len(names) + 1))]


def unlimited(host: Host) -> dict[str, list[str]]:
    """What rules are to limit in place, and the program does not find: in words, for each rule."""
    if not is_blind(host):
        return {}
    found, there = by_rule(host), _in_place(host)
    missed: dict[str, list[str]] = {name: [] for name in found}
    for member, (name, cgroup) in _by_id(host, _named(found)).items():
        if member not in there:
            missed[name].append(cgroup)
    return {name: [BLIND, *_named_as_missed(cgroups)] for name, cgroups in missed.items()}


def _named_as_missed(cgroups: list[str]) -> list[str]:
    named = [f"it does not reach {cgroup} until the next rule task" for cgroup in sorted(cgroups)[:_MOST_NAMED]]
    more = len(cgroups) - _MOST_NAMED
    return [*named, *([f"it does not reach {more} more cgroups"] if more > 0 else [])]


def about(host: Host) -> dict[str, t.Any]:
    """``program.in_place`` of a module's result."""
    if host.is_earlier and host.opened_maps.schema < catalog.PLACE.since:
        return {"found_by": "id", "reason": "the program is of an earlier version, which finds no names"}
    return {"found_by": "id", "reason": BLIND} if is_blind(host) else {"found_by": "name", "reason": None}


def put(host: Host, places: Places, made: t.Sequence[Node]) -> None:
    """Have these places and no others; ``made``: their graph. Packets are under the old ones or the new ones.

    Raises LimiterError ``no_rule``, ``map_full``.
    """
    if host.opened_maps.schema < catalog.PLACE.since:
        _follow_ids(host, places, by_id=True)
        return
    ids = {name: host.rule_id(name) for name in {place.rule for place in places.values()}}
    stored = [Stored(ids[place.rule], place.each, pattern) for pattern, place in places.items()]
    kernel.write(host.opened_maps, stored)
    _show(host, stored, places, made, ids)


def complete(host: Host) -> None:
    """What a run that was killed has left: a graph of other places, places of rules that are gone, and the members by
    which an earlier version limited in place.
    """
    if host.maps is None or host.is_earlier:
        return
    stored = read(host)
    found = _by_rule(host, stored)
    places, alive = _named(found), sum(map(len, found.values()))
    now = host.maps.graph()
    blind = is_blind(host)
    root = host.cgroups.identifier("/")
    as_wanted = (now.source, bool(now.node)) == (core.fingerprint(stored), bool(stored) and not blind)
    if as_wanted and (now.root == root or not stored) and alive == len(stored):
        _follow_ids(host, places, blind)
        return
    # A killed run may have left a part of each of two sets, of which no graph can be made: the old one stays.
    with contextlib.suppress(LimiterError):
        put(host, places, core.graph_of(places))


def _show(
    host: Host, stored: t.Sequence[Stored], places: Places, made: t.Sequence[Node], ids: t.Mapping[str, int]
) -> None:
    blind = is_blind(host)
    each = {place.rule for place in places.values() if place.each}
    root = host.cgroups.identifier("/") or 0
    graph.switch(host.opened_maps, root, () if blind else made, ids, each, core.fingerprint(stored))
    _follow_ids(host, places, blind)


def _follow_ids(host: Host, places: Places, by_id: bool) -> None:
    """Members by id where the program finds no names, and only there."""
    maps, there = host.opened_maps, _in_place(host)
    if not there and not by_id:
        return
    wanted: dict[int, int] = {}
    if by_id:
        wanted = {member: host.rule_id(rule) for member, (rule, _cgroup) in _by_id(host, places).items()}
    for member, owner in wanted.items():
        if there.get(member) != owner:
            maps.add_member(member, owner)
    for member in there.keys() - wanted.keys():
        maps.remove_member(member)
    if wanted != there:
        maps.bump_generation()


def _in_place(host: Host) -> dict[int, int]:
    """The cgroups that are limited in place by their ids, and the ids of their rules."""
    return {member: rule for member, rule in host.opened_maps.members().items() if member != rule}


def _by_id(host: Host, places: Places) -> dict[int, tuple[str, str]]:
    """The cgroups that places name now, by their ids: the rule of each, and its path."""
    found: dict[int, tuple[str, str]] = {}
    made = core.graph_of(places)
    for cgroup in cgroups_of(host, places):
        if cgroup in host.leaves.rules or own_rule(cgroup) is not None:
            continue  # it is a member already
        rule, member = rules_on(made, cgroup)[-1], host.cgroups.identifier(cgroup)
        if rule is not None and member is not None:
            found[member] = rule, cgroup
    return found


def is_blind(host: Host) -> bool:
    """Whether the program that is loaded finds no cgroups by their names."""
    return host.maps is not None and not host.is_earlier and bool(host.maps.control().blind)
