# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What rules do between two looks at all states, of a host with very many: only what changed is worked out anew."""

from __future__ import annotations

import typing as t

from . import layout, pacing, use
from .layout import State
from .policy import Limit

_SECOND_NS = 1_000_000_000
# A state that has not changed for so long says nothing any more (see pacing.current: four epochs and a second).
_SILENT_NS = 20 * _SECOND_NS


class RuleSeen(t.NamedTuple):
    """One rule, between two looks."""

    name: str
    limit: int | None  # bytes per second; None: unfinished
    rate: float  # bytes per second
    utilization: float  # of the budget that uses most of it, where each cgroup has its own
    drops: float  # packets per second
    waiting: int  # connections
    binds: bool
    once: float | None  # of the rate, what no rule further in has counted; None: not known yet


class _Known(t.NamedTuple):
    """A state as it was when it last changed."""

    raw: bytes
    changed_ns: int
    rule: int
    state: State
    bytes: int
    dropped: int
    once: int | None


class States:
    """All states of a host, as they change."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._at_ns = 0

    def advance(
        self,
        entries: t.Iterable[tuple[bytes, bytes]],
        at_ns: int,
        limits: t.Mapping[int, Limit],
        names: t.Mapping[int, str],
        can: pacing.Ability,
        unpack: t.Callable[[bytes], State],
    ) -> list[RuleSeen]:
        """The rules since the last time; the first time, rates are those that the programs measured. ``entries`` of the
        state map; ``at_ns``: CLOCK_MONOTONIC.
        """
        before, known = self._known, {}
        for key, raw in entries:
            number = layout.ID.unpack(key)[0]
            last = before.get(number)
            known[number] = last if last is not None and last.raw == raw else _known(number, raw, at_ns, unpack)
        elapsed = (at_ns - self._at_ns) / _SECOND_NS if self._at_ns else 0.0
        self._known, self._at_ns = known, at_ns
        sums: dict[int, _Sum] = {number: _Sum() for number in names}
        for number, one in known.items():
            found = sums.get(one.rule)
            if found is not None:
                found.add(one, before.get(number), at_ns, elapsed, limits.get(one.rule), can)
        # What budgets that are gone had counted is in their rules' own states now.
        for number in before.keys() - known.keys():
            found = sums.get(before[number].rule)
            if found is not None and before[number].rule != number:
                found.bytes -= before[number].bytes
                found.dropped -= before[number].dropped
                found.count_once(None if before[number].once is None else -(before[number].once or 0))
        return [sums[number].told(name, limits.get(number), elapsed) for number, name in names.items()]


def _known(number: int, raw: bytes, at_ns: int, unpack: t.Callable[[bytes], State]) -> _Known:
    state = unpack(raw)
    counters = state.counters
    return _Known(raw, at_ns, state.limit or number, state, counters.bytes, counters.dropped_packets, state.once_bytes)


class _Sum:
    """Of a rule's own state and its budgets, as they come."""

    def __init__(self) -> None:
        self.bytes = self.dropped = self.waiting = self.measured = 0
        self.utilization = 0.0
        self.binds = False
        self.once: int | None = 0

    def count_once(self, some: int | None) -> None:
        self.once = None if self.once is None or some is None else self.once + some

    def add(
        self,
        one: _Known,
        before: _Known | None,
        at_ns: int,
        elapsed: float,
        limit: Limit | None,
        can: pacing.Ability,
    ) -> None:
        # One that is new has counted all since the last look.
        passed = one.bytes - (before.bytes if before else 0)
        self.bytes += passed
        self.dropped += one.dropped - (before.dropped if before else 0)
        self.count_once(None if one.once is None else one.once - ((before.once or 0) if before else 0))
        if at_ns - one.changed_ns > _SILENT_NS:
            return
        told = use.of_state(can, limit, one.state, at_ns)
        waiting = pacing.connections(pacing.current(can, limit, one.state.fair, at_ns)).waiting
        self.waiting += waiting
        self.binds = self.binds or told.binds
        self.measured += told.rate
        if limit and limit.rate:
            rate = passed / elapsed if elapsed and before else told.rate
            self.utilization = max(self.utilization, rate / limit.rate)

    def told(self, name: str, limit: Limit | None, elapsed: float) -> RuleSeen:
        rate = max(self.bytes, 0) / elapsed if elapsed else float(self.measured)
        drops = max(self.dropped, 0) / elapsed if elapsed else 0.0
        return RuleSeen(
            name,
            limit.rate if limit else None,
            rate,
            self.utilization,
            drops,
            self.waiting,
            self.binds or drops > 0,
            max(self.once, 0) / elapsed if elapsed and self.once is not None else None,
        )
