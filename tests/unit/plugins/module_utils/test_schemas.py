# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""core/schemas.py reads what earlier versions have left: maps of hosts with traffic, written down by bpftool, which has
their layouts from the kernel (tests/kernel/dump_maps).
"""

from __future__ import annotations

import json
import struct
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout, schemas
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit

DUMPS = {
    int(path.stem.rpartition("_")[2]): json.loads(path.read_text(encoding="ascii"))
    for path in (Path(__file__).parent / "earlier").glob("schema_*.json")
}
LIMIT = Limit(rate=2_500_000, bucket=625_000)
SECOND = 1_000_000_000

Dumped = tuple[int, bytes, dict[str, int]]  # schema, a state, its fields


@pytest.fixture(params=sorted(DUMPS))
def dumped(request: pytest.FixtureRequest) -> Dumped:
    state = next(entry for entry in DUMPS[request.param] if entry["map"] == catalog.STATE.name)
    return request.param, bytes.fromhex(state["value"]), state["fields"]


def state_of(data: bytes) -> dict[str, int]:
    return dict(zip(layout.STATE_FIELDS, layout.STATE.unpack(data)))


def later(dumped: Dumped, **more: int) -> bytes:
    """The state when these were added to its fields."""
    schema, data, _fields = dumped
    value, names = schemas.layout_of(catalog.STATE, schema)
    fields = list(value.unpack(data))
    for name, amount in more.items():
        fields[names.index(name)] += amount
    return value.pack(*fields)


def test_every_earlier_schema_has_its_dump_and_none_is_left_out() -> None:
    assert sorted(schemas.FORMER) == list(range(min(schemas.FORMER), layout.SCHEMA))
    assert set(schemas.FORMER) <= set(DUMPS)


def test_what_no_version_can_take_over_never_changes() -> None:
    changed = {name for former in schemas.FORMER.values() for name in former}
    assert changed <= {row.name for row in catalog.NEXT.values()}
    assert {catalog.SOCKET, catalog.CONTROL}.isdisjoint(catalog.NEXT.values())


def test_all_maps_are_read_as_the_kernel_reads_them(dumped: Dumped) -> None:
    schema, _data, _fields = dumped
    rows = {row.name: row for row in catalog.MAPS}
    for entry in DUMPS[schema]:
        data = bytes.fromhex(entry["value"])
        assert len(data) == schemas.layout_of(rows[entry["map"]], schema).value.size
        found = schemas.read(rows[entry["map"]], schema, data)
        for name in found.keys() & entry.get("fields", {}).keys():
            assert found[name] == entry["fields"][name], f"{entry['map']}: {name}"
        if entry["map"] == catalog.CONFIG.name:
            assert schemas.unpack_limit(schema, data) == LIMIT
            assert schemas.taken_over(catalog.CONFIG, schema, data) == layout.pack_limit(LIMIT)


def test_what_it_has_counted_is_told(dumped: Dumped) -> None:
    schema, data, fields = dumped
    state = schemas.unpack_state(schema, data)
    assert (state.tokens, state.refilled_ns) == (fields["tokens"], fields["last_update_ns"])
    about = state.counters.about()
    for name in ("packets", "bytes", "dropped_packets", "dropped_bytes", "congestion_marks"):
        if name in fields:
            assert about[name] == fields[name]


def test_a_copy_has_the_counters_and_nothing_else(dumped: Dumped) -> None:
    schema, data, fields = dumped
    copy, carried = schemas.first_copy(schema, data, 7 * SECOND, None)
    state = state_of(copy)
    assert layout.unpack_state(copy).counters == schemas.unpack_state(schema, data).counters
    assert state["bytes"] == fields["bytes"]
    assert (state["tokens"], state["generation"], state["last_update_ns"]) == (0, 0, schemas.NOT_YET)
    assert not any(value for name, value in state.items() if name.startswith("fair."))
    assert 0 < state["bytes"] - state["use_bytes"] + 1 <= 2 * LIMIT.rate
    assert layout.CARRIED.size == len(carried.pack())
    assert schemas.Carried.unpack(carried.pack()) == carried


def test_what_follows_the_copy_is_carried_once(dumped: Dumped) -> None:
    schema, data, fields = dumped
    moment = fields["last_update_ns"] + 1000
    _copy, carried = schemas.first_copy(schema, data, moment, LIMIT)
    moved_on = later(dumped, packets=3, bytes=4500, tokens=-4500)
    first = schemas.to_carry(schema, moved_on, carried, LIMIT)
    more = dict(zip(layout.COUNTER_FIELDS, first.counters))
    assert {name: value for name, value in more.items() if value} == {"packets": 3, "bytes": 4500}
    assert carried.tokens + first.tokens == fields["tokens"] - 4500 + 1000 * LIMIT.rate // SECOND
    counters = tuple(one + other for one, other in zip(carried.counters, first.counters))
    then = schemas.Carried(carried.tokens + first.tokens, moment, counters)
    assert not any(schemas.to_carry(schema, moved_on, then, LIMIT).counters)
    assert schemas.to_carry(schema, moved_on, then, LIMIT).tokens == 0


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [
        pytest.param(0, 3600, LIMIT.bucket, id="idle for an hour: full"),
        pytest.param(LIMIT.bucket, 0, LIMIT.bucket, id="full"),
        pytest.param(-(1 << 60), 0, -LIMIT.rate - (1 << 20), id="garbage"),
    ],
)
def test_tokens_are_those_that_the_program_would_have(dumped: Dumped, tokens: int, seconds: int, expected: int) -> None:
    schema, _data, fields = dumped
    data = later(dumped, tokens=tokens - fields["tokens"])
    _copy, carried = schemas.first_copy(schema, data, fields["last_update_ns"] + seconds * SECOND, LIMIT)
    assert carried.tokens == max(0, min(expected // 8, 16384))
    assert carried.tokens + schemas.to_carry(schema, data, carried, LIMIT).tokens == expected


def test_a_rule_without_a_limit_has_only_its_counters_carried(dumped: Dumped) -> None:
    schema, data, fields = dumped
    _copy, carried = schemas.first_copy(schema, data, fields["last_update_ns"], None)
    assert schemas.to_carry(schema, data, carried, None) == carried._replace(counters=(0,) * len(carried.counters))


def test_a_request_is_as_the_program_takes_it(dumped: Dumped) -> None:
    counters = tuple(range(1, len(layout.COUNTER_FIELDS) + 1))
    data = schemas.Carried(-5, 99, counters).pack_request(layout.ID.pack(77))
    parts: tuple[t.Any, ...] = struct.unpack(f"=Qq{len(counters)}Q", data)
    assert parts == (77, -5, *counters)
