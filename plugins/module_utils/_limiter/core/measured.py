# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``use`` of speed_limit_info: what happened to each rule in one second, between two looks."""

from __future__ import annotations

import typing as t

from . import connections, pacing, use
from .connections import Seen, Sent, Summary
from .layout import State
from .model import Rule
from .reasons import Counters

_SECOND_NS = 1_000_000_000

Facts = dict[str, t.Any]


class Look(t.NamedTuple):
    """At rules, by their ids."""

    at_ns: int  # CLOCK_MONOTONIC, after all else was read
    states: t.Mapping[int, State]
    budgets: t.Mapping[int, t.Mapping[int, State]]  # by their keys: those of cgroups that sent lately
    counters: t.Mapping[int, Counters]  # with those of all budgets


class Measured(t.NamedTuple):
    """A connection of which is known what it sends."""

    seen: Seen
    rate: int | None  # bytes per second; None: not known
    sent: Sent | None
    pid: int | None
    command: str | None


class Connections(t.NamedTuple):
    """Those of one rule."""

    summary: Summary | None = None  # None: they could not be looked at
    most: t.Sequence[Measured] = ()
    at_ns: int = 0  # CLOCK_MONOTONIC, when they were looked at


Names = t.Mapping[int, str]  # of the rule of each state


def of_rule(
    rule: Rule,
    can: pacing.Ability,
    before: Look,
    after: Look,
    found: Connections,
    names: Names,
    paths: Names,
    most: int,
) -> Facts | None:
    """None where the rule was removed, or made anew. ``names``: of the rules of states; ``paths``: of the cgroups of
    budgets by their ids, those that are still there.
    """
    number = rule.cgroup_id or 0
    if number not in before.states or number not in after.states:
        return None
    own, budgets = after.states[number], after.budgets.get(number, {})
    told = use.of_rule(can, rule.limit, own, after.at_ns, budgets.values())
    paced = pacing.of_rule(can, rule.limit, own.fair, after.at_ns, [state.fair for state in budgets.values()])
    seconds = (after.at_ns - before.at_ns) / _SECOND_NS
    counted = after.counters[number] - before.counters[number]
    rate = int(counted.bytes / seconds)
    told["binds"] = told["binds"] or counted.dropped_packets > 0
    limit = rule.limit.rate if rule.limit else None
    if limit and not rule.in_place.each:
        told["utilization"] = round(rate / limit, 3)
        # The programs' own window may be an earlier second.
        if use.is_used(rate, limit):
            told["reason"] = None
    return {
        "name": rule.name,
        "limit": limit,
        **told,
        "rate": rate,
        "seconds": round(seconds, 3),
        "counters": counted.about(),
        "mode": paced["mode"],
        "active_connections": paced["active_connections"],
        "waiting_connections": paced["waiting_connections"],
        "unpaced_connections": paced["unpaced_connections"],
        "open_connections": found.summary.open if found.summary else None,
        "unpaced": None if found.summary is None else _unpaced(found.summary, can),
        "binding_rule": _binding(rule.name, told["binds"], found.summary, names),
        "connections": None if found.summary is None else of_connections(found, names)[:most],
        "budgets": _budgets(rule, can, budgets, after.at_ns, paths, most) if rule.in_place.each else None,
    }


def _unpaced(summary: Summary, can: pacing.Ability) -> list[Facts]:
    """Which connections do not pace themselves: how many for each reason."""
    counted: dict[str, int] = {}
    for why, count in summary.unpaced.items():
        reason = connections.why_unpaced(why, can)
        counted[reason] = counted.get(reason, 0) + count
    return [{"reason": reason, "connections": count} for reason, count in sorted(counted.items())]


def _binding(name: str, binds: bool, summary: Summary | None, names: Names) -> str | None:
    """The rule that holds this one's senders back: itself, or the one that most of its connections wait for."""
    if binds:
        return name
    waits: dict[str, int] = {}
    for state, count in (summary or Summary()).bottlenecks.items():
        if names.get(state):
            waits[names[state]] = waits.get(names[state], 0) + count
    return max(waits, key=lambda other: (waits[other], other)) if waits else None


def of_connections(found: Connections, names: Names) -> list[Facts]:
    """The fastest first."""
    ordered = sorted(found.most, key=lambda one: (-1 if one.rate is None else one.rate, one.seen.share), reverse=True)
    return [
        {
            "address": one.seen.address,
            "port": one.seen.port,
            "local_address": one.seen.local_address,
            "local_port": one.seen.local_port,
            "pid": one.pid,
            "command": one.command,
            "rate": one.rate,
            "share": one.seen.share or None,
            "round_trip_us": (one.sent.round_trip_us if one.sent else one.seen.round_trip_us) or None,
            "waits": one.seen.waits(found.at_ns),
            "binding_rule": names.get(one.seen.bottleneck) if one.seen.waits(found.at_ns) else None,
            "paced": one.seen.unpaced() is None,
        }
        for one in ordered
    ]


def _budgets(
    rule: Rule, can: pacing.Ability, budgets: t.Mapping[int, State], now: int, paths: Names, most: int
) -> list[Facts]:
    """The cgroups that use most of their own limit."""
    told = {key: use.of_state(can, rule.limit, state, now) for key, state in budgets.items() if state.cgroup in paths}
    first = sorted(told, key=lambda key: (-told[key].rate, paths[budgets[key].cgroup]))[:most]
    return [
        {
            "cgroup": paths[budgets[key].cgroup],
            "rate": told[key].rate,
            "utilization": told[key].utilization,
            "binds": told[key].binds,
            "waiting_connections": pacing.together([pacing.current(can, rule.limit, budgets[key].fair, now)]).waiting,
        }
        for key in first
    ]
