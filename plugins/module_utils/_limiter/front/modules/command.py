# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_command: from its options to its result."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import sys
import typing as t

from ...core.errors import LimiterError
from ...generated.version import VERSION
from ...host import command
from ...host.lock import host_lock
from ...work.host import LOCK_SECONDS
from ..call import Call, Result, diff_of
from ..cli import main as entry
from ..cli.completion import completion
from ..cli.manual import manual

_WITH_ANSIBLE = ("front.task", "front.respawn")  # which the command has no use for
_ABSENT = "limiter: absent\n"


def work(call: Call) -> Result:
    """The command, from options to result."""
    present, check = call.params["state"] == "present", call.check_mode
    with contextlib.nullcontext() if check else host_lock(LOCK_SECONDS):
        found = command.look()
        wanted = _wanted() if present else command.Command({}, {})
        changed = found != wanted or (not present and command.leftovers())
        if changed:
            command.check(wanted if present else found)
        if changed and not check:
            command.install(wanted) if present else command.remove(found)
    after = {"path": command.STARTER, "version": VERSION, "interpreter": _interpreter()}
    return {
        "changed": changed,
        "diff": diff_of(_line(found), _line(wanted)),
        "command": after if present else None,
        "warnings": [],
    }


def _wanted() -> command.Command:
    files = {
        command.STARTER: command.STARTER_TEXT.replace("{interpreter}", _interpreter()),
        command.MANUAL: manual(command.MARK),
        command.COMPLETION: completion(command.MARK),
    }
    return command.Command(_sources(), files)


def _interpreter() -> str:
    """This one; by the name that stays when the distribution gets a newer one."""
    usual = "/usr/bin/python3"
    in_use = os.path.realpath(sys.executable)
    return usual if sys.prefix == sys.base_prefix and os.path.realpath(usual) == in_use else sys.executable


def _line(what: command.Command) -> str:
    """``limiter: 0123456789ab, run by /usr/bin/python3``: a digest, since a version can be built twice."""
    starter = what.files.get(command.STARTER)
    if starter is None:
        return _ABSENT
    digest = hashlib.sha256()
    for texts in (what.package, what.files):
        for path, text in sorted(texts.items()):
            digest.update(f"{path}\0{text}\0".encode(errors="replace"))
    interpreter = starter.partition("\n")[0].replace("#!", "").partition(" ")[0]
    return f"limiter: {digest.hexdigest()[:12]}, run by {interpreter}\n"


def _sources() -> dict[str, str]:
    """The text of the command and of all that it imports of this package, wherever the package is: as a rule in the
    archive that Ansible has sent.
    """
    package = entry.__name__[: -len(".front.cli.main")]
    found: dict[str, str] = {}
    waiting, seen = ["front.cli.main"], set(_WITH_ANSIBLE)
    while waiting:
        name = waiting.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        text, path = _source(package, name)
        if text is None:
            continue  # what is imported from a module is none
        found[path] = text
        waiting += [name.rpartition(".")[0], *_imported(name, text)]
    return {"__init__.py": "", **found}


def _imported(name: str, text: str) -> t.Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _source(package: str, name: str) -> tuple[str | None, str]:
    """A module's text, and its path below the package."""
    try:
        spec = importlib.util.find_spec(f"{package}.{name}")
    except ModuleNotFoundError:
        return None, ""
    if spec is None:
        return None, ""
    try:
        text = spec.loader.get_source(f"{package}.{name}")  # type: ignore[union-attr]
    except (AttributeError, ImportError) as error:
        raise LimiterError(
            "no_source", f"the source of {name} is not known on this host", str(error), "Run this task without Mitogen"
        ) from error
    is_package = spec.submodule_search_locations is not None
    return text or "", name.replace(".", "/") + ("/__init__.py" if is_package else ".py")


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(
        work,
        {"state": {"type": "str", "choices": ["present", "absent"], "default": "present"}},
        needs=("_cffi_backend", "psutil"),
    )
