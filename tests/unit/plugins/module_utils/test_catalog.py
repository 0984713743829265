# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""core/catalog.py, the C in bpf/ and the tables of docs/architecture.md name the same maps and programs."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog

ROOT = pathlib.Path(__file__).resolve().parents[4]

pytestmark = pytest.mark.skipif(not (ROOT / "bpf").is_dir(), reason="a built collection has no bpf/")


def table(head: str) -> list[list[str]]:
    """The cells of the table in docs/architecture.md whose first head begins so."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text[text.index(f"| {head}") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_documented_maps_are_those_that_are_pinned() -> None:
    assert [cells[0] for cells in table("map, pinned in")] == [f"`{row.name}`" for row in catalog.MAPS]


def test_the_documented_programs_say_where_they_are_attached_and_what_follows_without_them() -> None:
    expected = [
        [
            f"`{row.name}`",
            f"`{row.hook.name}`" + (f", since Linux {row.since[0]}.{row.since[1]}" if any(row.since) else ""),
            f"`{row.link}`",
            row.refused or "nothing is limited, and the task fails with the kernel's words",
        ]
        for row in catalog.PROGRAMS
        if row.link
    ]
    assert table("program | hook") == expected


def test_the_maps_are_those_of_maps_h_and_carry_h() -> None:
    text = "".join((ROOT / "bpf" / name).read_text(encoding="utf-8") for name in ("maps.h", "carry.h"))
    assert re.findall(r'\} (\w+) SEC\("\.maps"\)', text) == [row.name for row in catalog.LIMITER.maps]


def test_the_programs_are_those_of_the_source() -> None:
    row = catalog.LIMITER
    text = (ROOT / "bpf" / row.source).read_text(encoding="utf-8")
    found = re.findall(r'^SEC\("([^"]+)"\)\nint (?:BPF_PROG\()?(\w+)', text, re.MULTILINE)
    for programs in (row.programs, row.tracers):
        expected = [(program.hook.name, program.name) for program in programs]
        assert [one for one in found if one in expected] == expected
    assert len(found) == len(row.programs) + len(row.tracers)


def test_what_is_there_for_a_trace_is_that_of_trace_h() -> None:
    text = (ROOT / "bpf" / "trace.h").read_text(encoding="utf-8")
    assert re.findall(r'\} (\w+) SEC\("\.maps"\)', text) == list(catalog.LIMITER.tracer_maps)
    assert f'trace_filter SEC("{catalog.TRACER_SECTION}")' in text


def test_the_documented_programs_of_a_trace_say_what_follows_without_them() -> None:
    expected = [
        [f"`{row.name}`", f"`{row.hook.name}`", row.refused or "there is no trace, and the task fails"]
        for row in catalog.TRACERS
    ]
    assert table("program of a trace") == expected


def test_only_what_limits_is_required_and_it_comes_first() -> None:
    assert [row.name for row in catalog.PROGRAMS if row.link and not row.refused] == [catalog.PROGRAMS[0].name]
