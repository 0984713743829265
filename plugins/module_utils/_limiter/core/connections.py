# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections under rules: what the programs and the kernel know of each, and what that means.

A connection is charged to *states*: a rule's, by the rule's id, or a cgroup's budget, by the budget's key.
"""

from __future__ import annotations

import struct
import typing as t

from . import pacing
from .layout import MAX_NESTED, PACING, PACING_FIELDS, UNPACED

_SECOND_NS = 1_000_000_000
# At the least share two segments leave every four seconds.
_BURST = 3000
_OFFER_NONE = UNPACED >> 1  # as in bpf/connection.h: no rule has told it anything
_HELD = 2  # FAIR_SHARE_HELD of bpf/demand.h
_RULES, _MARKS = PACING_FIELDS.index("rules[0]"), PACING_FIELDS.index("marks[0].epoch")
_SHARE, _SET, _OWN, _SENT, _TIGHTEST, _ROUND_TRIP = map(
    PACING_FIELDS.index, ("share", "set", "own", "sent_ns", "tightest", "round_trip_us")
)

# Why a connection does not pace itself.
SILENT, UNTOLD, FAST = "silent", "untold", "fast"

# Of struct tcp_info (linux/tcp.h).
TCP_INFO_SIZE = 208
_OPTIONS = 5
_TIMESTAMPS = 1


class Seen(t.NamedTuple):
    """A connection, as it is seen without locking its socket."""

    inode: int  # 0: no descriptor leads to it
    namespace: int  # the network namespace
    local_address: str
    local_port: int
    address: str
    port: int
    cgroup: int  # the id of the one that its socket was made in; 0: not known
    states: tuple[int, ...]  # that it is charged to; empty: it has sent nothing since a rule holds for it
    bottleneck: int  # which of them made the smallest offer; 0: none is known
    share: int  # what it may send, in bytes per second; 0: nothing is known
    told: int  # the pacing rate that it was told, in bytes per second; 0: none
    round_trip_us: int
    sent_ns: int  # CLOCK_MONOTONIC when it last sent data
    held: bool  # when it last sent data, nothing but its bottleneck kept it from sending more

    def sends(self, now: int) -> bool:
        """Whether it has sent lately: a connection with a small share is silent between two bursts."""
        silence = _SECOND_NS + (4 * _BURST * _SECOND_NS // self.share if self.share else 0)
        return bool(self.sent_ns) and now - self.sent_ns <= silence

    def waits(self, now: int) -> bool:
        """Whether it would send more than its bottleneck lets it."""
        return self.held and self.sends(now)

    def unpaced(self) -> str | None:
        """Why it does not pace itself."""
        if not self.states:
            return SILENT
        if not self.told:
            return UNTOLD
        return FAST if self.told == UNPACED else None


class Ends(t.NamedTuple):
    local_address: str
    local_port: int
    address: str
    port: int


def seen(inode: int, namespace: int, ends: Ends, cgroup: int, stored: bytes | None) -> Seen:
    """``stored``: its value in rate_limit_pacing_map, if it has one."""
    if stored is None:
        return Seen(inode, namespace, *ends, cgroup, (), 0, 0, 0, 0, 0, False)
    fields = PACING.unpack(stored)
    rules = fields[_RULES : _RULES + MAX_NESTED]
    tightest = fields[_TIGHTEST] % MAX_NESTED
    known = fields[_SHARE] < _OFFER_NONE
    return Seen(
        inode,
        namespace,
        *ends,
        cgroup,
        tuple(rule for rule in rules if rule),
        rules[tightest] if known else 0,
        fields[_SHARE] if known else 0,
        fields[_SET],
        fields[_ROUND_TRIP],
        fields[_SENT],
        known and bool(fields[_MARKS + 3 * tightest + 2] & _HELD),
    )


class Sent(t.NamedTuple):
    """What a socket has sent since it was opened, as TCP_INFO tells; and what TCP knows of the path."""

    at_ns: int
    bytes: int  # of payload, with what was sent again
    segments: int
    headers: int  # bytes of each segment, of IP and TCP
    round_trip_us: int
    window: int  # bytes that its congestion window lets be in flight

    def rate_since(self, before: Sent) -> int | None:
        """In IP bytes per second; None where too little time has passed."""
        elapsed = self.at_ns - before.at_ns
        if elapsed <= 0:
            return None
        segments = (self.segments - before.segments) % (1 << 32)  # the kernel counts them with 32 bits
        passed = self.bytes - before.bytes + (segments if segments < 1 << 31 else 0) * self.headers
        return max(passed, 0) * _SECOND_NS // elapsed


def sent(info: bytes, ipv6: bool, now: int) -> Sent:
    """Of a struct tcp_info of TCP_INFO_SIZE bytes."""
    segment, round_trip, window = (struct.unpack_from("=I", info, place)[0] for place in (16, 68, 80))
    payload = struct.unpack_from("=Q", info, 200)[0]
    headers = (60 if ipv6 else 40) + (12 if info[_OPTIONS] & _TIMESTAMPS else 0)
    segments = struct.unpack_from("=I", info, 136)[0]
    return Sent(now, payload, segments, headers, round_trip, window * segment)


class Summary(t.NamedTuple):
    """What is counted of the connections of one state, or of one rule."""

    open: int = 0
    unpaced: t.Mapping[str, int] = {}  # by the reason
    bottlenecks: t.Mapping[int, int] = {}  # state -> connections that wait for it

    def __add__(self, other: object) -> Summary:
        if not isinstance(other, Summary):
            return NotImplemented
        return Summary(
            self.open + other.open, _added(self.unpaced, other.unpaced), _added(self.bottlenecks, other.bottlenecks)
        )


_Key = t.TypeVar("_Key", str, int)


def _added(one: t.Mapping[_Key, int], other: t.Mapping[_Key, int]) -> dict[_Key, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


class Gathered:
    """Connections as they come, of which there may be very many: each state's are counted, and the first ``most`` kept:
    those that wait come first, then those that send, the largest share first. ``own``: only these are kept.
    """

    def __init__(self, most: int, now: int, own: t.Container[int] | None = None) -> None:
        self._most, self._now, self._own = most, now, own
        self.summaries: dict[int, Summary] = {}
        self._kept: dict[int, list[tuple[tuple[bool, bool, int, int], Seen]]] = {}

    def add(self, connection: Seen, states: t.Iterable[int]) -> None:
        """``states``: those that it is charged to, or will be when it sends."""
        why, waits = connection.unpaced(), connection.waits(self._now)
        one = Summary(1, {why: 1} if why else {}, {connection.bottleneck: 1} if waits else {})
        rank = waits, connection.sends(self._now), connection.share, connection.sent_ns
        for state in states:
            self.summaries[state] = self.summaries.get(state, Summary()) + one
            if self._own is not None and connection.inode not in self._own:
                continue
            kept = self._kept.setdefault(state, [])
            kept.append((rank, connection))
            if len(kept) > 2 * self._most + 100:
                self._cut(kept)

    def _cut(self, kept: list[tuple[tuple[bool, bool, int, int], Seen]]) -> None:
        kept.sort(key=lambda item: item[0], reverse=True)
        del kept[self._most :]

    def kept(self) -> dict[int, list[Seen]]:
        """By the state."""
        for kept in self._kept.values():
            self._cut(kept)
        return {state: [connection for _rank, connection in kept] for state, kept in self._kept.items()}


def why_unpaced(why: str, ability: pacing.Ability) -> str:
    """In words, of all connections for which it is so."""
    nowhere = pacing.why_not(ability)
    if nowhere is not None:
        return nowhere
    if why == SILENT:
        return "they have sent nothing since the rule holds for them"
    if why == FAST:
        return pacing.TOO_FAST
    return pacing.why_untold(ability)
