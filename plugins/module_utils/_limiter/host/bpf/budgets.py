# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The budgets of cgroups that do not share their rule's (``each``): the program makes and removes them (budget.h)."""

from __future__ import annotations

import typing as t

from ...core import catalog, layout
from ...core.layout import State
from ...core.reasons import Counters
from .maps import Maps

# Times that all budgets are read until none was removed meanwhile. On a host that makes hundreds of cgroups a second
# the last reading may count a few budgets twice, or not at all.
_ROUNDS = 4

# What a budget's controller knew is forgotten after this time without a packet (bpf/budget.h).
_RESTED_NS = 20_000_000_000


class Counted(t.NamedTuple):
    """What a rule has counted, with all its budgets."""

    counters: Counters = Counters()
    active: int = 0  # budgets that there are now
    shared_packets: int = 0

    def about(self) -> dict[str, int]:
        """``budgets`` of a rule in a module's result."""
        return {"active": self.active, "shared_packets": self.shared_packets}


def of_rule(own: State | None) -> Counted:
    """Of a rule without budgets."""
    return Counted() if own is None else Counted(own.counters, 0, own.shared_packets)


def counted(maps: Maps) -> dict[int, Counted]:
    """Of the rules that have budgets now, by their ids. May raise KernelError."""
    if not _any(maps):
        return {}
    owners: t.Mapping[int, State | None] = {}
    for _round in range(_ROUNDS):
        found = _all(maps)
        before, owners = owners, {rule: maps.state(rule) for rule in found}
        # A budget that is removed is added to its rule's own state.
        if {rule: own and own.swept for rule, own in before.items()} == {
            rule: own and own.swept for rule, own in owners.items()
        }:
            break
    return {
        rule: own._replace(counters=sum(budgets, own.counters), active=len(budgets))
        for rule, budgets in found.items()
        for own in [of_rule(owners[rule])]
    }


def busy(maps: Maps, now: int) -> dict[int, dict[int, State]]:
    """Those that have a say in what their rule does now, by the rules' ids and their keys. ``now`` is
    CLOCK_MONOTONIC in nanoseconds. May raise KernelError.
    """
    found: dict[int, dict[int, State]] = {}
    if not _any(maps):
        return found
    for key, value in maps.entries(catalog.STATE):
        charged, rule = layout.STATE_CHARGED.unpack(value)
        if rule not in (0, layout.NO_RULE) and now - charged < _RESTED_NS:
            found.setdefault(rule, {})[layout.ID.unpack(key)[0]] = layout.unpack_state(value)
    return found


def remove(maps: Maps, rules: t.Container[int]) -> None:
    """Removes the budgets of rules that are gone. May raise KernelError."""
    if not _any(maps):
        return
    states = maps.of(catalog.STATE)
    for key, value in states.entries():
        if layout.STATE_LIMIT.unpack(value)[0] in rules:
            states.delete(key)


def _any(maps: Maps) -> bool:
    """Whether there may be some, for which all states are read: most hosts have none. The first one took slot 0."""
    if maps.schema < catalog.SLOT.since:
        return False
    return bool((maps.of(catalog.SLOT).lookup(layout.INDEX.pack(0)) or b"").strip(b"\0"))


def _all(maps: Maps) -> dict[int, list[Counters]]:
    found: dict[int, list[Counters]] = {}
    for _key, value in maps.entries(catalog.STATE):
        rule = layout.STATE_LIMIT.unpack(value)[0]
        if rule not in (0, layout.NO_RULE):
            found.setdefault(rule, []).append(layout.unpack_state(value).counters)
    return found
