# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a rule limits now, and why, in words and figures."""

from __future__ import annotations

import typing as t

from .layout import FairShare
from .policy import Limit

# From here on (34 Gbit/s) a rate does not fit into the 32 bits that a BPF program can set.
FASTEST_PACED = 0xFFFFFFFF

# After this time without a packet, an epoch's figures are out of date.
_STALE_EPOCHS, _STALE_NS = 4, 1_000_000_000

_ELSE = "the warning of speed_limit_program with state=reloaded says why"


NO_PROGRAM = "no program is loaded: nothing limits"
_ONLY_NEWER = "only Linux 6.12 and newer can pace them"
TOO_FAST = f"a connection may send more than a socket can be told, {FASTEST_PACED - 1} bytes per second at most"


class Ability(t.NamedTuple):
    """What this host can do about pacing."""

    state: str | None  # as Program.pacing; None: no program is loaded
    refusal: str | None  # why the kernel refuses it, where that can be seen
    adopts: bool  # the kernel can pace connections that were open before their rule (Linux 6.12)
    settles: bool = True  # open connections are settled after each change: settle_sockets is pinned
    refuses_settling: bool = False  # the kernel is new enough to settle (Linux 6.1), but refuses
    half_way: bool = False  # a task is switching pacing on or off, or was killed at it


def about(ability: Ability) -> dict[str, t.Any]:
    """``program.pacing`` of a module's result."""
    return {
        "state": ability.state,
        "reason": why_not(ability),
        "open_connections": ability.settles,
        "open_connections_reason": _why_not_open_ones(ability),
    }


def _why_not_open_ones(ability: Ability) -> str | None:
    """Which open connections do not follow a change at once although sockets are paced, and why; or None."""
    if ability.state != "on" or (ability.settles and ability.adopts):
        return None
    if ability.settles:
        return f"connections that are older than their rule are released at once, but not paced: {_ONLY_NEWER}"
    if ability.refuses_settling:
        return f"the kernel refuses settle_sockets: {_ELSE}"
    return "only Linux 6.1 and newer can go through all sockets"


def why_not(ability: Ability) -> str | None:
    """Why no TCP is paced on this host, or None."""
    if ability.state is None:
        return NO_PROGRAM
    if ability.half_way:
        return (
            "a task is switching pacing on or off, or was killed while it did: the next task for rules or the program "
            "completes that; until then connections may be too slow"
        )
    if ability.state == "off":
        return "pacing is switched off: speed_limit_program with pacing=true switches it on"
    if ability.state == "refused":
        return f"the kernel refuses to pace TCP: {ability.refusal or _ELSE}"
    return None


class Connections(t.NamedTuple):
    """Numbers of a rule's TCP connections."""

    active: int  # have sent data lately
    unpaced: int  # of these, do not pace themselves
    waiting: int  # of these, would send more and are held by this rule
    waiting_elsewhere: int  # of these, would send more and are held by another rule


def current(ability: Ability, limit: Limit | None, seen: FairShare, now: int) -> FairShare:
    """What a rule's controller knows; nothing if that is out of date or sockets are not paced."""
    fresh = now - seen.epoch_start_ns <= _STALE_EPOCHS * seen.period_ns + _STALE_NS
    return seen if fresh and ability.state == "on" and limit else FairShare()


def connections(fair: FairShare) -> Connections:
    """The numbers of this epoch; those of the last one if this one has just begun and knows less."""
    if fair.active >= fair.active_before:
        found = Connections(fair.active, fair.unpaced, fair.holders, fair.elsewhere)
    else:
        found = Connections(fair.active_before, fair.unpaced_before, fair.holders_before, fair.elsewhere_before)
    return Connections(*(min(found.active, number) for number in found))


def together(several: t.Iterable[FairShare]) -> Connections:
    return Connections(*map(sum, zip(*map(connections, several))))


def of_rule(
    ability: Ability, limit: Limit | None, seen: FairShare, now: int, budgets: t.Iterable[FairShare] = ()
) -> dict[str, t.Any]:
    """``pacing`` of a rule in a module's result. ``now`` is CLOCK_MONOTONIC in nanoseconds; ``budgets``: what is known
    of each cgroup that has its own, beside what they share.
    """
    current_ones = [current(ability, limit, fair, now) for fair in (seen, *budgets)]
    found = together(current_ones)
    share = min((fair.share for fair in current_ones if fair.share), default=0)
    mode, reason = _mode(ability, limit, share, found.unpaced)
    return {
        "mode": mode,
        "reason": reason,
        "active_connections": found.active,
        "unpaced_connections": found.unpaced,
        "waiting_connections": found.waiting,
        "fair_share": share or None,
        "longest_round_trip_us": max(fair.lag_ns for fair in current_ones) // 1000 or None,
    }


def _mode(ability: Ability, limit: Limit | None, share: int, unpaced: int) -> tuple[str, str | None]:
    if limit is None:
        return "none", "the rule is unfinished: run its task again"
    nowhere = why_not(ability)
    if nowhere is not None:
        return ("none" if ability.state is None else "token_bucket"), nowhere
    if (share or limit.rate) >= FASTEST_PACED:
        return "token_bucket", TOO_FAST
    if not unpaced:
        return "paced", None
    # Without figures, since they change all the time: a report groups hosts with the same reason.
    return "paced", f"some connections are not paced: {why_untold(ability)}; the token bucket limits these"


def why_untold(ability: Ability) -> str:
    """Why some connections were not told a rate on a host that paces."""
    if ability.adopts:
        return "they are new, or another program has taken the callbacks that pacing needs"
    refused = f"and the kernel refuses settle_sockets, which could pace these: {_ELSE}"
    why = refused if ability.refuses_settling else f"and {_ONLY_NEWER}"
    return f"they are new, or were open before their rule was made, {why}"
