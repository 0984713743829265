# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Python runs a module: one that is too old, one that lacks cffi, and what cannot start a module again."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils import basic
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front import respawn, task

PLUGINS = Path(respawn.__file__).parents[3]
MODULES = sorted((PLUGINS / "modules").glob("*.py"))
PACKAGES = [PLUGINS / "module_utils/_limiter" / place / "__init__.py" for place in ("", "front")]
ELSE = "/usr/bin/python3"


@pytest.mark.parametrize("path", [*MODULES, Path(respawn.__file__), *PACKAGES], ids=lambda path: path.stem)
def test_an_old_python_can_read_what_sends_it_away(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "__future__" not in imported  # annotations came with 3.7
    ours = {name for name in imported if name and name.startswith("ansible_collections")}
    assert all(name.endswith("_limiter.front.respawn") for name in ours)


@pytest.fixture
def old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respawn, "sys", SimpleNamespace(version_info=(3, 8, 18), executable="/opt/bin/python3.8"))
    arguments = {"name": "web", "rate": "5m", "_ansible_check_mode": True}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)


def refusal(capsys: pytest.CaptureFixture[str]) -> dict[str, t.Any]:
    with pytest.raises(SystemExit):
        respawn.leave_old_python()
    found: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("old_python")
def test_an_old_python_names_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: None)
    found = refusal(capsys)
    assert (found["failed"], found["kind"]) == (True, "old_python")
    assert found["msg"] == (
        "Python 3.9 or newer is needed on this host, and /opt/bin/python3.8 is 3.8.18. Install one, with cffi."
    )


@pytest.mark.usefixtures("old_python")
@pytest.mark.parametrize("has", [{"_cffi_backend", "psutil", "graphlib"}, {"_cffi_backend", "graphlib"}, {"graphlib"}])
def test_an_old_python_goes_on_in_a_newer_one(monkeypatch: pytest.MonkeyPatch, has: set[str]) -> None:
    started: list[str] = []

    def start(interpreter: str) -> None:
        started.append(interpreter)
        raise SystemExit(0)

    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: paths == [ELSE] and name in has)
    monkeypatch.setattr(respawn, "respawn_module", start)
    with pytest.raises(SystemExit):
        respawn.leave_old_python()
    assert started == [ELSE]


def cannot_start(interpreter: str) -> None:
    """As Ansible's own does under Mitogen."""
    raise AttributeError("module '__main__' has no attribute '_module_fqn'")


@pytest.mark.usefixtures("old_python")
def test_an_old_python_that_cannot_start_another_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: paths == [ELSE])
    monkeypatch.setattr(respawn, "respawn_module", cannot_start)
    assert refusal(capsys)["msg"].endswith(f"is 3.8.18. Set ansible_python_interpreter to {ELSE}.")


def test_an_interpreter_that_is_too_old_is_not_gone_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: name != "graphlib")
    assert respawn.elsewhere(["_cffi_backend"]) is None


def test_where_a_task_cannot_go_on_elsewhere_it_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "importable", lambda name: False)
    monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: paths == [ELSE])
    monkeypatch.setattr(respawn, "respawn_module", cannot_start)
    said = task._find_interpreter(["_cffi_backend"])
    assert said.startswith(f"{ELSE} has what is missing here: set ansible_python_interpreter to it")


TELL = "from ansible.module_utils import basic; print(len(basic._ANSIBLE_ARGS), sum(basic._ANSIBLE_ARGS)); exit(0)"


@pytest.fixture
def deadline() -> Iterator[None]:
    """What hangs is an error."""

    def late(_number: int, _frame: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("deadline")
def test_as_many_rules_as_one_likes_go_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"rules": [{"name": "r" * 64, "rate": "5m"}] * 25_000}}).encode()
    assert len(arguments) > 2_000_000
    (tmp_path / "told.py").write_text(TELL)
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", arguments)
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "_module_fqn", "told", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "_modlib_path", str(tmp_path), raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(basic.__file__).parents[2]))
    pipe = os.pipe
    with pytest.raises(SystemExit) as ended:
        respawn.respawn(sys.executable)
    assert (ended.value.code, capfd.readouterr().out) == (0, f"{len(arguments)} {sum(arguments)}\n")
    assert os.pipe is pipe
