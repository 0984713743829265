# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/errors.md says of every kind of error what to do, and of no other."""

from __future__ import annotations

import ast
import re
import typing as t
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import plan, policy
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report import hosts

PACKAGE = Path(plan.__file__).parent.parent
ACTIONS = PACKAGE.parents[1] / "action"  # they run on the controller
DOCS = Path(__file__).parents[4] / "docs"
PAGE = DOCS / "errors.md"
NEVER_FAILS = {"untagged"}  # a reason in rules[].unlimited
FIELDS = policy.Limit._fields
# Of a limit, where the others are given.
NEEDED = {
    f"{name}_needed"
    for name in FIELDS
    if policy.wanted({other: 1 for other in FIELDS if other != name}, None)[name] is None
}


class Kinds:
    """The kinds that a file gives to errors: where one is made, or a function is called that makes it."""

    def __init__(self, path: Path) -> None:
        self._path, self._tree = path, ast.parse(path.read_text(encoding="utf-8"))
        self._makers = {"LimiterError": 0, "Shortcoming": 0}
        self.found: set[str] = set()
        known = -1
        while known < len(self._makers):
            known = len(self._makers)
            for node in self._tree.body:
                self._look(node, [])

    def _look(self, node: ast.AST, parameters: list[str]) -> None:
        if isinstance(node, ast.FunctionDef):
            parameters = [argument.arg for argument in node.args.args]
            self._function = node.name
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "LimiterError" for base in node.bases):
            self._makers["super().__init__"] = 0
        if isinstance(node, ast.Dict):  # the result of an action
            pairs = {key.value: value for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)}
            if "kind" in pairs and "failed" in pairs:
                self._take(pairs["kind"], parameters)
        if isinstance(node, ast.Call):
            assert not ast.unparse(node.func).startswith("AnsibleAction"), f"{self._path}: a failure without a kind"
            place = self._makers.get(ast.unparse(node.func))
            if place is not None and place < len(node.args):
                self._take(node.args[place], parameters)
            for word in node.keywords:
                if word.arg == "kind":
                    self._take(word.value, parameters)
        for inner in ast.iter_child_nodes(node):
            self._look(inner, parameters)

    def _take(self, kind: ast.expr, parameters: list[str]) -> None:
        if isinstance(kind, ast.Constant):
            self.found.add(str(kind.value))
        elif isinstance(kind, ast.IfExp):
            self._take(kind.body, parameters)
            self._take(kind.orelse, parameters)
        elif isinstance(kind, ast.Name) and kind.id in parameters:
            assert self._function.startswith("_"), f"{self._path}: other files could call {self._function}"
            self._makers[self._function] = parameters.index(kind.id)
        elif isinstance(kind, ast.Name):
            self.found.add(self._constant(kind.id))
        elif isinstance(kind, ast.JoinedStr) and ast.unparse(kind) == "f'{name}_needed'":
            self.found |= NEEDED
        else:  # of an error that was made elsewhere
            assert ast.unparse(kind).endswith(".kind"), f"{self._path}: {ast.unparse(kind)}"

    def _constant(self, name: str) -> str:
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return str(ast.literal_eval(node.value))
        raise AssertionError(f"{self._path}: {name} cannot be followed")


def raised() -> set[str]:
    found: set[str] = set()
    for path in (*PACKAGE.rglob("*.py"), *ACTIONS.glob("*.py")):
        found |= Kinds(path).found
    return found - NEVER_FAILS


def said_by_the_command() -> set[str]:
    """What stands in parentheses after a text of its own."""
    text = (PACKAGE / "front/cli/main.py").read_text(encoding="utf-8")
    return {
        kind for pair in re.findall(r'_say\(".* \((\w+)\)"\)|_refused\(.*, "(\w+)"\)', text) for kind in pair if kind
    }


def rows() -> t.Iterator[tuple[set[str], str]]:
    """The kinds and the text of each."""
    for row in PAGE.read_text(encoding="utf-8").splitlines():
        if row.startswith("| `"):
            _edge, kinds, _where, what = row.replace("\\|", "/").split("|")[:4]
            if (found := set(re.findall(r"`(\w+)`", kinds))) != {"kind"}:
                yield found, what.strip()


def documented() -> list[str]:
    return sorted(kind for kinds, _what in rows() for kind in kinds)


def test_every_kind_is_in_the_page() -> None:
    assert len(raised()) > 80
    assert raised() <= set(documented()), raised() - set(documented())
    assert said_by_the_command() >= {"defect", "interrupted", "os_error"}
    assert said_by_the_command() <= set(documented())


def test_every_kind_in_the_page_is_raised() -> None:
    known = raised() | said_by_the_command()
    assert set(documented()) <= known, set(documented()) - known


def test_each_kind_has_one_place_that_says_what_to_do() -> None:
    assert len(documented()) == len(set(documented()))
    for kinds, what in rows():
        assert len(what) > 20, kinds


def test_what_the_report_takes_for_a_shortcoming_of_a_host_is_in_the_page() -> None:
    assert set(documented()) >= hosts._CANNOT


def test_the_guide_leads_to_the_page() -> None:
    assert "](errors.md)" in (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
