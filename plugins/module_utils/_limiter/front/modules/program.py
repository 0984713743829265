# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_program: from its options to its result."""

from __future__ import annotations

from ...work.host import Host
from ...work.program import ABSENT, Change, attach, detach, place, program_line
from ..call import Call, Result, diff_of


def work(call: Call) -> Result:
    """The program, from options to result."""
    state, check = call.params["state"], call.check_mode
    with Host.opened(call.run_command, changes=not check) as host:
        change = detach(host, check) if state == "absent" else _attached(host, call)
    before, after = change.before, change.pacing or {}
    lost, done = host.lost, [*host.lost.actions, *change.done]
    # An object that got lost is built and loaded again, though the program that runs is the same.
    built = any(action.startswith("built ") for action in change.done)
    warnings = [*lost.warnings(check), *change.warnings]
    if change.unenforced:
        warnings.append(f"the program is unloaded; nothing enforces these rules now: {', '.join(change.unenforced)}")
    program = {"identity": change.identity, "cgroup": change.cgroup, "pacing": change.pacing}
    return {
        "changed": bool(done),
        "diff": diff_of(
            lost.before
            + (program_line(before.identity, before.cgroup, before.pacing != "off") if before else ABSENT)
            + ("object: missing or out of date\n" if built else ""),
            lost.after
            + (program_line(change.identity, change.cgroup, after["state"] != "off") if change.identity else ABSENT)
            + ("object: built\n" if built else ""),
        ),
        "program": program if change.identity else None,
        "actions": done,
        "unenforced_rules": list(change.unenforced),
        "warnings": warnings,
    }


def _attached(host: Host, call: Call) -> Change:
    """What is not given stays as it is; modules always give it."""
    cgroup, paced = place(host)
    if call.params["cgroup_path"] is not None:
        cgroup = host.cgroups.relative(call.params["cgroup_path"])
    if call.params["pacing"] is not None:
        paced = call.params["pacing"]
    return attach(host, call.params["object"], cgroup, paced, call.params["state"] == "reloaded", call.check_mode)


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(
        work,
        {
            "state": {"type": "str", "choices": ["present", "absent", "reloaded"], "default": "present"},
            "object": {"type": "path"},
            "cgroup_path": {"type": "str", "default": "/"},
            "pacing": {"type": "bool", "default": True},
        },
    )
