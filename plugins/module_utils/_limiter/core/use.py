# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a rule's limit is used, whether the rule is what holds its senders back, and why not all of it is used.

One look has to do: the data plane keeps what a second look would be needed for (bpf/use.h).
"""

from __future__ import annotations

import typing as t

from . import pacing
from .layout import FairShare, State
from .policy import Limit

_SECOND_NS = 1_000_000_000

# A limit is used where this much of it passes; what is missing may be the packet that comes next: the largest lately,
# two segments at least.
_USED_PERCENT = 95
_PACKET = 3000
# As in bpf/verdict.h: a bucket that holds less than this part of a second, or half of itself, slows unpaced TCP down.
_NOTICE_SHARE = 16
# TCP that is slowed down so comes and goes about that level: a bucket that stays below this one is what limits.
_LOW_SHARE = 4
# As in bpf/fair_share.h: TCP that is further ahead of its rate, and two round trips, is refused.
_GUARD_DEBT_NS = 100_000_000
# What has just begun must have been seen for so long before its rate says anything.
_BEGUN_NS = 50_000_000
# From this round trip on a share is heard so late that it explains a second in which it was not used.
_FAR_NS = 50_000_000
# Of the packets that passed since the rule was made, so many in a hundred were dropped: TCP's timers are a part of it.
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


def of_rule(ability: pacing.Ability, limit: Limit | None, seen: State, now: int) -> dict[str, t.Any]:
    """``use`` of a rule in a module's result; ``now`` is CLOCK_MONOTONIC in nanoseconds, read after ``seen``."""
    rate = measured_rate(seen, now)
    if limit is None:
        return {"rate": rate, "utilization": None, "binds": False, "waiting_elsewhere": 0, "reason": None}
    fair = pacing.current(ability, limit, seen.fair, now)
    found = pacing.connections(fair)
    unused = 100 * (rate + max(fair.burst, _PACKET)) < _USED_PERCENT * limit.rate
    tokens = _tokens(limit, seen, now)
    scarce = tokens < min(limit.rate // _NOTICE_SHARE, limit.bucket // 2)
    loses = unused and scarce and (ability.state != "on" or found.unpaced > 0)
    spent = not unused and tokens < min(limit.rate // _LOW_SHARE, limit.bucket // 2)
    reason = None
    if unused and found.waiting:
        reason = _why_unused(limit, seen, fair, found, rate, now)
    elif loses:
        reason = SOME_NOT_PACED if ability.state == "on" else NOT_PACED
    elif unused and found.waiting_elsewhere:
        reason = ANOTHER_RULE
    return {
        "rate": rate,
        "utilization": round(rate / limit.rate, 3),
        "binds": found.waiting > 0 or loses or spent,
        "waiting_elsewhere": found.waiting_elsewhere,
        "reason": reason,
    }


def measured_rate(seen: State, now: int) -> int:
    """What passed in the last second, in bytes: the window slides over two spans, each as if it were even.

    A span goes on until a packet comes a second or more after its first one: all that it has counted passed in its
    first second.
    """
    elapsed = now - seen.use.start_ns
    if elapsed < 0:  # another CPU's packet, later than our look; or another time namespace
        return seen.use.rate
    passed = _passed(seen)
    if elapsed < _SECOND_NS:
        return passed + seen.use.rate * (_SECOND_NS - elapsed) // _SECOND_NS
    return passed * max(2 * _SECOND_NS - elapsed, 0) // _SECOND_NS


def _passed(seen: State) -> int:
    """Bytes in this span. What another rule refused is taken back, even if it was counted before."""
    return max(seen.counters.bytes - seen.use.bytes, 0)


def _tokens(limit: Limit, seen: State, now: int) -> int:
    """In the bucket now."""
    return min(seen.tokens + limit.rate * max(now - seen.refilled_ns, 0) // _SECOND_NS, limit.bucket)


def _why_unused(limit: Limit, seen: State, fair: FairShare, found: pacing.Connections, rate: int, now: int) -> str:
    """The first that these figures prove of what keeps waiting connections from using all of the limit."""
    elapsed = now - seen.use.start_ns
    if _BEGUN_NS <= elapsed <= _SECOND_NS and 100 * _passed(seen) * _SECOND_NS >= _USED_PERCENT * limit.rate * elapsed:
        return BEGUN
    if fair.clock_ns - now > _GUARD_DEBT_NS + 2 * fair.lag_ns or _tokens(limit, seen, now) < 0:
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
