# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a rule's limit is used, whether the rule is a bottleneck, and why not all of the limit is used.

One look is enough, since the data plane keeps what would otherwise need a second look (bpf/use.h).
"""

from __future__ import annotations

import typing as t

from . import pacing
from .layout import FairShare, State
from .policy import Limit

_SECOND_NS = 1_000_000_000

# A limit counts as used where this much of it passes. The next packet is counted in: the largest recent one, and at
# least two segments.
_USED_PERCENT = 95
_PACKET = 3000
# As in bpf/verdict.h: paced TCP whose lead exceeds this and two round trips is dropped.
_GUARD_LEAD_NS = 100_000_000
# A span must have lasted this long before its rate says anything.
_BEGUN_NS = 50_000_000
# From this round trip time on, connections hear of a share so late that this explains a second of unused limit.
_FAR_NS = 50_000_000
# Percent of the packets since the rule was made: with more drops than this, waits for TCP's timers matter.
_MANY_DROPPED = 1

NOT_PACED = "TCP is not paced here, and finds the limit by losing packets: pacing.reason says why"
ANOTHER_RULE = "another rule that holds for the same connections is tighter: its use.binds is true"
BEGUN = "connections began to wait within the last second, or the limit was raised then: all of it has been used since"
REFUSED = "more was sent than the limit allows, and packets are dropped until that is paid back"
FOREIGN = (
    "part of the limit is kept for traffic that cannot be paced (UDP, QUIC, TCP without socket storage), but less than "
    "that part gets through"
)
SOME_NOT_PACED = "some connections are not paced, and find their share by losing packets: pacing.reason says why"
SHARE = (
    "the waiting connections send as fast as they are told (pacing.fair_share), but that is less than the others leave "
    "them: if this lasts for seconds, report it"
)
FAR = "some connections have long round trips (pacing.longest_round_trip_us), and take a few of them to use a new share"
DROPPED = (
    "many packets were dropped since the rule was made: if counters.dropped_packets still grows, connections wait a "
    "fifth of a second or longer until TCP sends these again"
)
UNKNOWN = (
    "these figures do not show why: within the last second connections may have begun to wait, or the limit may have "
    "been raised; or the host is too busy to send in time. Look again"
)


class Use(t.NamedTuple):
    """Of one state: of a rule, or of a cgroup that has a budget of its own."""

    rate: int
    utilization: float | None
    binds: bool
    waiting_elsewhere: int
    reason: str | None
    binds_seconds: float | None = None  # for how long it has done so; None: it does not, or that is not known


def of_rule(
    ability: pacing.Ability, limit: Limit | None, seen: State, now: int, budgets: t.Iterable[State] = ()
) -> dict[str, t.Any]:
    """``use`` of a rule in a module's result. ``now`` is CLOCK_MONOTONIC in nanoseconds, read after ``seen`` and
    ``budgets``: those of cgroups that have their own.
    """
    parts = [of_state(ability, limit, state, now) for state in (seen, *budgets)]
    fullest = max(parts, key=lambda part: part.utilization or 0.0)
    return {
        "rate": sum(part.rate for part in parts),
        "utilization": fullest.utilization,
        "binds": any(part.binds for part in parts),
        "binds_seconds": max((part.binds_seconds for part in parts if part.binds_seconds is not None), default=None),
        "waiting_elsewhere": sum(part.waiting_elsewhere for part in parts),
        "reason": next((part.reason for part in parts if part.reason), None),
    }


def of_state(ability: pacing.Ability, limit: Limit | None, seen: State, now: int) -> Use:
    rate = measured_rate(seen, now)
    if limit is None or not limit.rate:  # 0: nothing of ours wrote that, and the program limits nothing by it
        return Use(rate, None, False, 0, None)
    fair = pacing.current(ability, limit, seen.fair, now)
    found = pacing.connections(fair)
    unused = not is_used(rate + max(fair.burst, _PACKET), limit.rate)
    withheld = _lately(seen.use.withheld_ns, now)
    reason = None
    if unused and found.waiting:
        reason = _why_unused(limit, seen, fair, found, rate, now)
    elif unused and withheld and (ability.state != "on" or found.unpaced):
        reason = SOME_NOT_PACED if ability.state == "on" else NOT_PACED
    elif unused and found.waiting_elsewhere:
        reason = ANOTHER_RULE
    binds = found.waiting > 0 or withheld or _lately(seen.use.delayed_ns, now)
    seconds = _binds_seconds(seen, now) if binds else None
    return Use(rate, round(rate / limit.rate, 3), binds, found.waiting_elsewhere, reason, seconds)


def _lately(then: int, now: int) -> bool:
    """Whether something was dropped or told to slow down, or waited, within the last second. What the bucket holds at
    the moment of a look does not tell: it is full again when whoever floods it has slept.
    """
    # Another CPU may have written after our look; what is further away is from another time namespace.
    return bool(then) and abs(now - then) < _SECOND_NS


def _binds_seconds(seen: State, now: int) -> float | None:
    return round(max(now - seen.use.since_ns, 0) / _SECOND_NS, 3) if seen.use.since_ns else None


def is_used(rate: int, limit: int) -> bool:
    """Whether so much of a limit counts as all of it."""
    return 100 * rate >= _USED_PERCENT * limit


def measured_rate(seen: State, now: int) -> int:
    """Bytes that passed in the last second: a window that slides over two spans, as if traffic in each were even.

    A span goes on until a packet comes a second or more after the first one. So all that it has counted passed in its
    first second.
    """
    elapsed = now - seen.use.start_ns
    if elapsed < 0:  # a packet on another CPU came after our look; or the time is from another time namespace
        return seen.use.rate
    passed = _passed(seen)
    if elapsed < _SECOND_NS:
        return passed + seen.use.rate * (_SECOND_NS - elapsed) // _SECOND_NS
    return passed * max(2 * _SECOND_NS - elapsed, 0) // _SECOND_NS


def _passed(seen: State) -> int:
    """Bytes in this span. Refunds of packets that were counted in the span before may exceed them."""
    return max(seen.counters.bytes - seen.use.bytes, 0)


def _tokens(limit: Limit, seen: State, now: int) -> int:
    """The tokens in the bucket now."""
    return min(seen.tokens + limit.rate * max(now - seen.refilled_ns, 0) // _SECOND_NS, limit.bucket)


def _why_unused(limit: Limit, seen: State, fair: FairShare, found: pacing.Connections, rate: int, now: int) -> str:
    """Why waiting connections do not use all of the limit: the first cause that the figures prove."""
    elapsed = now - seen.use.start_ns
    if _BEGUN_NS <= elapsed <= _SECOND_NS and 100 * _passed(seen) * _SECOND_NS >= _USED_PERCENT * limit.rate * elapsed:
        return BEGUN
    if fair.clock_ns - now > _GUARD_LEAD_NS + 2 * fair.lag_ns or _tokens(limit, seen, now) < 0:
        return REFUSED
    if 100 * fair.foreign_rate > (100 - _USED_PERCENT) * limit.rate:
        return FOREIGN
    if found.unpaced:
        return SOME_NOT_PACED
    if fair.share and found.waiting * fair.share <= rate:
        return SHARE
    if fair.lag_ns >= _FAR_NS:
        return FAR
    if 100 * seen.counters.dropped_packets > _MANY_DROPPED * seen.counters.packets:
        return DROPPED
    return UNKNOWN
