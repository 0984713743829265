# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The places in the kernel: what user space remembers of the patterns by which the program finds cgroups. The program
reads the graph that is made of them (`graph.switch`).
"""

from __future__ import annotations

import typing as t

from ...core import catalog, layout
from ...core.places import Stored
from .maps import Maps


def read(maps: Maps) -> dict[int, Stored]:
    """By their numbers; none where an earlier version's maps have no places."""
    if maps.schema < catalog.PLACE.since:
        return {}
    found = {}
    for key, value in maps.entries(catalog.PLACE):
        rule, each, _reserved, pattern = layout.PLACE.unpack(value)
        text = pattern.rstrip(b"\0").decode(errors="surrogateescape")
        found[layout.INDEX.unpack(key)[0]] = Stored(rule, bool(each), text)
    return found


def of_members(maps: Maps, path_of: t.Callable[[int], str | None]) -> list[Stored]:
    """What earlier versions limited in place: the cgroups that are members of a rule beside its own, but for those that
    are gone.
    """
    found = ((rule, path_of(member)) for member, rule in maps.members().items() if member != rule)
    return [Stored(rule, False, path) for rule, path in found if path is not None]


def packed(place: Stored) -> bytes:
    return layout.PLACE.pack(place.rule, place.each, 0, place.pattern.encode(errors="surrogateescape"))


def write(maps: Maps, wanted: t.Iterable[Stored]) -> None:
    """Has these and no others. Patterns that nobody wants go first, others change where they are: of a run that is
    killed there is never less than what is in both sets. Raises LimiterError ``map_full``.
    """
    one, pending = maps.of(catalog.PLACE), {place.pattern: place for place in wanted}
    there = read(maps)
    for number, place in there.items():
        if place.pattern not in pending:
            one.delete(layout.INDEX.pack(number))
    kept = set()
    for number, place in there.items():
        new = pending.pop(place.pattern, None)
        if new is not None:
            kept.add(number)
            if new != place:
                one.update(layout.INDEX.pack(number), packed(new))
    free = (number for number in range(layout.MAX_PLACES + len(pending)) if number not in kept)
    for number, place in zip(free, pending.values()):
        one.update(layout.INDEX.pack(number), packed(place))
