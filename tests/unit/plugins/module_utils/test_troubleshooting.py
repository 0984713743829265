# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md says of every kind of error what to do, and of no other."""

from __future__ import annotations

import ast
import re
import typing as t
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import plan

PACKAGE = Path(plan.__file__).parent.parent
PAGE = Path(__file__).parents[4] / "docs" / "troubleshooting.md"
NEVER_FAILS = {"untagged"}  # a reason in rules[].unlimited


def trees() -> t.Iterator[ast.AST]:
    for path in PACKAGE.rglob("*.py"):
        yield ast.parse(path.read_text(encoding="utf-8"))


def texts(node: ast.AST) -> t.Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def raised() -> set[str]:
    """The kinds that are written where an error is made."""
    found: set[str] = set()
    for tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "LimiterError" and node.args:
                kind = node.args[0]
                whole = [kind.body, kind.orelse] if isinstance(kind, ast.IfExp) else [kind]
                found |= {one.value for one in whole if isinstance(one, ast.Constant) and isinstance(one.value, str)}
            found |= {text for word in node.keywords if word.arg == "kind" for text in texts(word.value)}
    return found - NEVER_FAILS


def documented() -> set[str]:
    rows = PAGE.read_text(encoding="utf-8").partition("## Errors\n")[2].splitlines()
    return {kind for row in rows if row.startswith("| `") for kind in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_kind_that_is_raised_is_in_the_table() -> None:
    assert len(raised()) > 50
    assert raised() <= documented(), raised() - documented()


def test_every_kind_in_the_table_is_raised() -> None:
    written = {text for tree in trees() for text in texts(tree)}
    needed = {kind for kind in documented() if kind.endswith("_needed")}  # of a field of a limit
    assert documented() - needed - {"kind"} <= written, documented() - written
