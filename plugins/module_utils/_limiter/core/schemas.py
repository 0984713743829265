# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layouts of earlier versions, and what of their maps is taken over into this version's.

A value is taken over field by field, by the fields' names (`catalog.MapRow.kept`): what it has anew is 0. So a new
schema is one row here: what it changed, as it was before.
"""

from __future__ import annotations

import struct
import typing as t

from . import catalog, layout
from .layout import State, Use
from .policy import Limit
from .reasons import REASONS, Counters


class Layout(t.NamedTuple):
    """A map's value. The names of ``fields`` may end where nothing that follows is taken over."""

    value: struct.Struct
    fields: tuple[str, ...] = ()


# What schemas 2 and 3 counted without a reason has the reason "unknown".
_COUNTED_2 = (
    "tokens",
    "last_update_ns",
    "lock",
    "fraction",
    "packets",
    "bytes",
    "drops[0]",
    "dropped_bytes",
    "notices[0]",
    "rate",
    "bucket",
    "generation",
    "reserved",
)

# By schema: what the next one changed, as it was until then.
FORMER: t.Mapping[int, t.Mapping[str, Layout]] = {
    2: {
        catalog.STATE.name: Layout(struct.Struct("=qQII7QII10Q8I"), _COUNTED_2),
        catalog.PACING.name: Layout(struct.Struct("=7Q6I" + 4 * "QII")),
    },
    3: {
        catalog.STATE.name: Layout(
            struct.Struct("=qQII7QII3Q16Q12I"), (*_COUNTED_2, "use_start_ns", "use_bytes", "use_rate")
        ),
    },
    4: {
        catalog.STATE.name: Layout(
            struct.Struct("=qQII5QII4Q18Q12I16Q"),
            (
                *("tokens", "last_update_ns", "lock", "fraction", "packets", "bytes", "dropped_bytes"),
                *("rate", "bucket", "generation", "reserved", "limit", "use_start_ns", "use_bytes", "use_rate"),
                *(f"fair[{index}]" for index in range(30)),
                *(f"{kind}[{index}]" for kind in ("drops", "notices") for index in range(8)),
            ),
        ),
        catalog.PACING.name: Layout(struct.Struct("=8Q8I" + 4 * "QII")),
    },
}

_DEBT_MOST = 1 << 20  # beside a second of the rate, as TOKEN_DEBT_MOST in bpf/token_bucket.h
_SECOND = 1_000_000_000
_ADVANCE_PART, _ADVANCE_MOST = 8, 16384  # bytes
NOT_YET = 1 << 63  # as the time of the last refill: the next packet's, without any tokens for the time before


def is_known(schema: int) -> bool:
    return schema == layout.SCHEMA or schema in FORMER


def changed(row: catalog.MapRow, schema: int) -> bool:
    """Whether a map has another layout in this version than in a known schema."""
    return any(row.name in FORMER[number] for number in range(schema, layout.SCHEMA))


def layout_of(row: catalog.MapRow, schema: int) -> Layout:
    """A map's layout in a known schema."""
    former = (FORMER[number].get(row.name) for number in range(schema, layout.SCHEMA))
    return next(filter(None, former), Layout(row.value, row.fields))


def read(row: catalog.MapRow, schema: int, data: bytes) -> dict[str, int]:
    value, fields = layout_of(row, schema)
    return dict(zip(fields, value.unpack(data)))


def taken_over(row: catalog.MapRow, schema: int, data: bytes, **others: int) -> bytes:
    """A value in this version's layout; ``others`` are fields that have something else than 0."""
    found = read(row, schema, data)
    values = {**{field: found.get(field, 0) for field in row.kept}, **others}
    return row.value.pack(*(values.get(field, 0) for field in row.fields))


def unpack_limit(schema: int, data: bytes) -> Limit:
    found = read(catalog.CONFIG, schema, data)
    return Limit._make(found.get(field, 0) for field in layout.CONFIG_FIELDS)


def unpack_state(schema: int, data: bytes) -> State:
    """A state of any known schema; of an earlier one without what its controller knows."""
    if schema == layout.SCHEMA:
        return layout.unpack_state(data)
    found = read(catalog.STATE, schema, data)
    return State(
        found["tokens"],
        found["last_update_ns"],
        _counters(found),
        Use._make(found.get(f"use_{field}", 0) for field in Use._fields),
        once_bytes=None,
    )


def rule_of_state(schema: int, key: bytes, data: bytes) -> int:
    """The rule whose limit a state has."""
    return read(catalog.STATE, schema, data).get("limit", 0) or t.cast(int, layout.ID.unpack(key)[0])


def _counters(state: t.Mapping[str, int]) -> Counters:
    drops, notices = (
        tuple(state.get(f"{kind}[{index}]", 0) for index in range(len(REASONS))) for kind in ("drops", "notices")
    )
    delays = (state.get("delayed_packets", 0), state.get("delay_ns", 0))
    return Counters(state["packets"], state["bytes"], state["dropped_bytes"], drops, notices, *delays)


class Carried(t.NamedTuple):
    """What a new state has of an earlier one: see bpf/carry.h."""

    tokens: int  # as of a moment
    reference_ns: int
    counters: tuple[int, ...]

    def pack(self) -> bytes:
        return layout.CARRIED.pack(self.tokens, self.reference_ns, *self.counters)

    def pack_request(self, key: bytes) -> bytes:
        """``struct carry``: what is to be added to a rule."""
        return key + struct.pack(f"=q{len(self.counters)}Q", self.tokens, *self.counters)

    @classmethod
    def unpack(cls, data: bytes) -> Carried:
        tokens, reference, *counters = layout.CARRIED.unpack(data)
        return cls(tokens, reference, tuple(counters))


def first_copy(schema: int, data: bytes, moment: int, limit: Limit | None) -> tuple[bytes, Carried]:
    """Of an earlier state: a new one, and what it has of the other. Of the tokens that is only an advance, so that who
    sends little need not notice.
    """
    found = read(catalog.STATE, schema, data)
    counters = tuple(found.get(field, 0) for field in layout.COUNTER_FIELDS)
    tokens = max(0, min(_tokens_at(moment, found, limit) // _ADVANCE_PART, _ADVANCE_MOST)) if limit else 0
    state = taken_over(
        catalog.STATE,
        schema,
        data,
        tokens=tokens,
        last_update_ns=NOT_YET,
        use_bytes=found.get("use_bytes", found["bytes"]),
    )
    return state, Carried(tokens, moment, counters)


def to_carry(schema: int, data: bytes, carried: Carried, limit: Limit | None) -> Carried:
    """What an earlier state has by now, beyond what was carried already."""
    found = read(catalog.STATE, schema, data)
    counters = (found.get(field, 0) - before for field, before in zip(layout.COUNTER_FIELDS, carried.counters))
    tokens = _tokens_at(carried.reference_ns, found, limit) - carried.tokens if limit else 0
    return Carried(tokens, carried.reference_ns, tuple(counter & layout.UNPACED for counter in counters))


def _tokens_at(moment: int, state: t.Mapping[str, int], limit: Limit) -> int:
    """As if it had been refilled then; garbage is cut as bpf/token_bucket.h does it."""
    accrued = (moment - state["last_update_ns"]) * limit.rate // _SECOND
    return max(-limit.rate - _DEBT_MOST, min(limit.bucket, state["tokens"] + accrued))
