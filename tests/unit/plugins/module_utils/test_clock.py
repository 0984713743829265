# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""host/clock.py: the clock of BPF programs, whatever the time namespace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import clock

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    clock._offset.cache_clear()
    yield
    clock._offset.cache_clear()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("monotonic           0         0\nboottime            0         0\n", 0),
        ("monotonic      100000         0\nboottime            5         0\n", 100_000),
        ("monotonic          -3 500000000\nboottime            0         0\n", -2.5),
        ("", 0),
        ("something else\n", 0),
        (None, 0),
    ],
)
def test_the_offset_of_a_time_namespace_is_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, seconds: float
) -> None:
    path = tmp_path / "timens_offsets"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(clock, "_OFFSETS", str(path))
    monkeypatch.setattr(time, "monotonic_ns", lambda: 7 * SECOND)
    assert clock.now() == 7 * SECOND - seconds * SECOND
