# SPDX-License-Identifier: GPL-3.0-or-later
"""core/layout.py and bpf/layout.h say the same, and so do core/tracing.py and bpf/traced.h."""

from __future__ import annotations

import pathlib
import re
import shutil
import struct
import subprocess

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout, reasons, schemas, tracing
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters

BPF = pathlib.Path(__file__).resolve().parents[4] / "bpf"
STRUCTS = {
    "rate_limit_config": (layout.CONFIG, layout.CONFIG_FIELDS),
    "rate_limit_state": (layout.STATE, layout.STATE_FIELDS),
    "fair_share": (layout.FAIR_SHARE, layout.FairShare._fields),
    "rate_limit_pacing": (layout.PACING, layout.PACING_FIELDS),
    "rate_limit_control": (layout.CONTROL, layout.CONTROL_FIELDS),
    "rate_limit_socket": (layout.ID, ("rule",)),
    "rate_limit_edge": (layout.EDGE, layout.EDGE_FIELDS),
    "rate_limit_node": (layout.NODE, layout.NODE_FIELDS),
    "rate_limit_graph": (layout.GRAPH, layout.Graph._fields),
    "rate_limit_slot": (layout.SLOT, layout.SLOT_FIELDS),
    "rate_limit_place": (layout.PLACE, layout.PLACE_FIELDS),
    "rate_limit_carried": (layout.CARRIED, layout.CARRIED_FIELDS),
    "traced_filter": (tracing.FILTER, tracing.FILTER_FIELDS),
    "traced_packet": (tracing.PACKET, tracing.PACKET_FIELDS),
    "traced_state": (tracing.STATE, tracing.STATE_FIELDS),
}
CONSTANTS: tuple[str, ...] = (
    "SCHEMA",
    "MAX_RULES",
    "MAX_BUDGETS",
    "NO_RULE",
    "MAX_MEMBERS",
    "MAX_NESTED",
    "MAX_DEPTH",
    "MAX_NAME",
    "MAX_SHAPES",
    "MAX_STAR_TEXT",
    "MAX_EDGES",
    "LEAF",
    "RELEASED",
    "UNPACED",
)
CONSTANTS += ("PACING_OFF", "PACING_ON", "PACING_REFUSED")
REASONS = {f"REASON_{name.upper()}": number for number, name in enumerate(reasons.REASONS)}


def offsets_in_python(form: struct.Struct, fields: tuple[str, ...]) -> dict[str, int]:
    """Every field's offset, from the size of the format up to it."""
    parts = re.findall(r"(\d*)([a-zA-Z])", form.format)
    codes = [code for count, kind in parts for code in ([count + kind] if kind == "s" else [kind] * int(count or 1))]
    assert len(codes) == len(fields)
    return {field: struct.calcsize("=" + "".join(codes[:index])) for index, field in enumerate(fields)}


def what_the_c_compiler_says(directory: pathlib.Path) -> dict[str, int]:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.fail("a C compiler (gcc or clang) is needed to compare bpf/layout.h with core/layout.py")
    lines = [f'printf("{name} %llu\\n", (unsigned long long)LIMITER_{name});' for name in (*CONSTANTS, *REASONS)]
    for name, (_form, fields) in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field in fields:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    source = directory / "offsets.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n#include <linux/bpf.h>\n"
        f'#include "{BPF}/traced.h"\nint main(void) {{ {" ".join(lines)} return 0; }}\n'
    )
    subprocess.run([compiler, "-o", str(directory / "offsets"), str(source)], check=True)
    output = subprocess.run([str(directory / "offsets")], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.skipif(not BPF.is_dir(), reason="a built collection has no bpf/: this belongs to the repository")
def test_every_offset_size_and_constant_is_that_of_the_c_header(tmp_path: pathlib.Path) -> None:
    expected = {**{name: getattr(layout, name) for name in CONSTANTS}, **REASONS}
    for name, (form, fields) in STRUCTS.items():
        expected[name] = form.size
        expected.update({f"{name}.{field}": at for field, at in offsets_in_python(form, fields).items()})
    assert what_the_c_compiler_says(tmp_path) == expected


def test_a_limit_survives_packing() -> None:
    limit = Limit(rate=12_500_000_000, bucket=2**40)
    assert schemas.unpack_limit(layout.SCHEMA, layout.pack_limit(limit)) == limit


def test_a_new_state_is_full_and_has_counted_nothing_and_its_copy_of_the_limit_counts_as_stale() -> None:
    data = layout.pack_full_state(bucket=5000, now=123)
    state = dict(zip(layout.STATE_FIELDS, layout.STATE.unpack(data)))
    assert {field: value for field, value in state.items() if value} == {"tokens": 5000, "last_update_ns": 123}
    assert layout.unpack_state(data) == layout.State(tokens=5000, refilled_ns=123)


def test_what_is_read_of_a_state_comes_in_the_order_of_the_struct() -> None:
    counted = {"packets": 11, "bytes": 12, "dropped_bytes": 13}
    drops, notices = tuple(range(40, 48)), tuple(range(50, 58))
    learned = {"share": 21, "epoch_start_ns": 22, "active_before": 23, "unpaced": 24, "burst": 25}
    measured = {"start_ns": 31, "bytes": 32, "rate": 33}
    fields = {"tokens": -1, "last_update_ns": 2, **counted}
    fields.update({f"drops[{index}]": count for index, count in enumerate(drops)})
    fields.update({f"notices[{index}]": count for index, count in enumerate(notices)})
    fields.update({f"use_{field}": value for field, value in measured.items()})
    fields.update({f"fair.{field}": value for field, value in learned.items()})
    data = layout.STATE.pack(*(fields.get(field, 0) for field in layout.STATE_FIELDS))
    assert layout.unpack_state(data) == layout.State(
        -1, 2, Counters(**counted, drops=drops, notices=notices), layout.Use(**measured), layout.FairShare(**learned)
    )


def test_what_is_read_of_a_sockets_pacing_is_what_it_was_given_and_what_it_wants() -> None:
    data = layout.PACING.pack(*({"set": 5, "own": 2**64 - 1}.get(field, 0) for field in layout.PACING_FIELDS))
    assert layout.unpack_pacing(data) == layout.Pacing(set=5, own=layout.UNPACED)


def test_control_survives_packing_and_its_identity_is_padded_with_nul() -> None:
    control = layout.Control(
        generation=3, tagged_sockets=1, program_id=77, pacing=layout.PACING_ON, identity="source:" + "a" * 48
    )
    data = layout.pack_control(control)
    assert layout.unpack_control(data) == control
    assert data.endswith(b"a\0\0\0\0\0\0\0\0\0")
