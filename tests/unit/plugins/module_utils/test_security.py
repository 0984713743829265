# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/security.md names, for each promise, tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_each_promise_is_held_by_tests_that_there_are() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    there = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        there |= set(re.findall(r"^ *def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 30
    assert named <= there, named - there
    rows = re.findall(r"^\| (?!can |---)(.*) \|$", page, re.MULTILINE)
    untested = [row for row in rows if "`test_" not in row and "nherent" not in row]
    assert not untested, untested
