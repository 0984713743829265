# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_program: from its options to its result."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ...work.host import Host
from ...work.program import (
    ABSENT,
    attach,
    detach,
    program_line,
)
from ..task import Result, diff_of, run


def work(module: AnsibleModule) -> Result:
    """The program, from options to result."""
    state, check = module.params["state"], module.check_mode
    with Host.opened(module.run_command, changes=not check) as host:
        if state == "absent":
            change = detach(host, check)
        else:
            cgroup = host.cgroups.relative(module.params["cgroup_path"])
            paced = module.params["pacing"]
            change = attach(host, module.params["object"], cgroup, paced, state == "reloaded", check)
    before, lost, done = change.before, host.lost, [*host.lost.actions, *change.done]
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
            + (program_line(change.identity, change.cgroup, module.params["pacing"]) if change.identity else ABSENT)
            + ("object: built\n" if built else ""),
        ),
        "program": program if change.identity else None,
        "actions": done,
        "unenforced_rules": list(change.unenforced),
        "warnings": warnings,
    }


def main() -> None:
    run(
        work,
        {
            "state": {"type": "str", "choices": ["present", "absent", "reloaded"], "default": "present"},
            "object": {"type": "path"},
            "cgroup_path": {"type": "str", "default": "/"},
            "pacing": {"type": "bool", "default": True},
        },
    )
