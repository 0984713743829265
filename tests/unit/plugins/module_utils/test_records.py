# SPDX-License-Identifier: GPL-3.0-or-later
"""How figures are kept."""

from __future__ import annotations

import json

from ansible_collections.speed_limiter.ebpf.tests.support import records

KEPT = {"b": {"cells": [{"y": [1, 2], "x": {"z": None}}, {"x": "ö"}], "none": []}, "a": 0.5}


def test_each_record_has_a_line_and_all_of_it_is_read_again() -> None:
    text = records.dumps(KEPT)
    assert json.loads(text) == KEPT
    assert [line.strip() for line in text.splitlines() if "x" in line] == [
        '{"x": {"z": null}, "y": [1, 2]},',
        '{"x": "\\u00f6"}',
    ]
