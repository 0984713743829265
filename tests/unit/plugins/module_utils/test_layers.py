# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom in _limiter: the core does no I/O, nothing imports upwards or in a circle, and only front/ knows
Ansible.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import plan

PACKAGE = Path(plan.__file__).parent.parent
LAYERS = ("core", "generated", "host", "work", "front")  # each may import those before it
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
WITH_ANSIBLE = {"front.respawn", "front.task"}  # what only the modules need
PURE = {"__future__", "functools", "ipaddress", "json", "re", "typing", "fractions", "struct", "zlib"}


def name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def absolute(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


def relative(path: Path) -> set[str]:
    """The modules of the package that one imports, wherever in its text."""
    names, found = {name(module) for module in MODULES}, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = name(path).split(".")[: -node.level] + (node.module.split(".") if node.module else [])
        wanted = {".".join(base)} | {".".join([*base, alias.name]) for alias in node.names}
        assert wanted & names, f"{name(path)}, line {node.lineno}"
        found |= wanted & names
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_downwards(path: Path) -> None:
    layer = name(path).partition(".")[0]
    for imported in relative(path):
        assert LAYERS.index(imported.partition(".")[0]) <= LAYERS.index(layer), f"{name(path)} imports {imported}"
    for imported in absolute(path):
        assert "ansible" not in imported or name(path) in WITH_ANSIBLE, f"{name(path)} imports {imported}"
        assert imported in PURE or layer != "core", f"{name(path)} imports {imported}"


def test_nothing_on_a_host_goes_by_the_wall_clock() -> None:
    """It is not set yet when stored rules are made, and may leap at any time."""
    clocks = {"time.time", "time.time_ns", "time.localtime", "time.gmtime"}
    stamps = {"st_mtime", "st_mtime_ns", "st_ctime", "st_atime"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{name(path)}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in stamps and ast.unparse(node) not in clocks, where
                assert not ast.unparse(node).startswith("datetime."), where
            assert not (isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime")), name(path)


def test_no_import_goes_in_a_circle() -> None:
    waiting = {name(path): relative(path) for path in MODULES}
    while waiting:
        free = {module for module, imported in waiting.items() if not imported & waiting.keys()}
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {module: imported for module, imported in waiting.items() if module not in free}


def test_the_package_is_imported_without_ansible() -> None:
    """By a path of its own, as the command on the host does."""
    wanted = [name(path) for path in MODULES if name(path) not in WITH_ANSIBLE]
    script = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('ansible', 'ansible_collections')))\n"
        f"sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
        f"for name in {wanted!r}: importlib.import_module('_limiter.' + name)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
