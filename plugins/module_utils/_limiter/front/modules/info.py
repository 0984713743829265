# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_info: from its options to its result."""

from __future__ import annotations

import functools
import typing as t

from ...host.root import check_root
from ...work.info import Info
from ..call import Call, Result

PARTS = ("host", "program", "rules", "processes", "hook", "boot")
# Takes a second: only who asks for it, or for a process, gets it.
USE = "use"


def work(
    call: Call,
    interpreter_with: t.Callable[[t.Sequence[str]], str | None] = lambda needs: None,
    files: bool = True,
) -> Result:
    """What was asked for. ``interpreter_with``: another interpreter that has what this one lacks. ``files``: as `Info`,
    where ``boot`` is not gathered.
    """
    gather = [part for part in (*PARTS, USE) if part in call.params["gather"]]
    if call.params["pid"] is not None and gather == list(PARTS):
        gather.append(USE)
    if gather != ["host"]:
        check_root()
    name, pid, cgroup_path = (call.params[option] for option in ("name", "pid", "cgroup_path"))
    with Info(call.run_command, interpreter_with, name, pid, cgroup_path, files) as info:
        look = {
            "host": info.describe_host,
            "program": info.program,
            "rules": info.rules,
            "processes": info.processes,
            "hook": info.hook,
            "boot": info.boot,
        }
        found: Result = {part: look[part]() for part in gather if part in look}
        if USE in gather:
            found.update(info.use(call.params["connections"]))
    unseen = info.unseen if gather != ["host"] else []
    missing = found["host"]["missing"] if "host" in found else ()
    told = [text for text in unseen if text not in missing]
    return {"changed": False, "warnings": [*info.warnings, *told], "unseen": unseen, **found}


def main() -> None:
    from ..respawn import elsewhere  # here, since the command has no Ansible
    from ..task import run

    run(
        functools.partial(work, interpreter_with=elsewhere),
        {
            "gather": {"type": "list", "elements": "str", "choices": [*PARTS, USE], "default": list(PARTS)},
            "connections": {"type": "int", "default": 10},
            "name": {"type": "str"},
            "pid": {"type": "int"},
            "cgroup_path": {"type": "str"},
        },
        root=False,
    )
