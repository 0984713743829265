# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_program: from its options to its result."""

from __future__ import annotations

from ...work.host import Host
from ...work.lost import Lost
from ...work.program import ABSENT, MAPS_REMOVED, Change, attach, departure_of, detach, place, program_line
from ..call import Call, Result, diff_of


def work(call: Call) -> Result:
    """The program, from options to result."""
    state, check = call.params["state"], call.check_mode
    with Host.opened(call.run_command, changes=not check) as host:
        change = detach(host, check) if state == "absent" else _attached(host, call)
    after, lost, done = change.pacing or {}, host.lost, [*host.lost.actions, *change.done]
    warnings = [*lost.warnings(check), *change.warnings]
    if change.unenforced:
        warnings.append(f"the program is unloaded; nothing enforces these rules now: {', '.join(change.unenforced)}")
    program = {
        "identity": change.identity,
        "cgroup": change.cgroup,
        "pacing": change.pacing,
        "departure": change.departure,
    }
    return {
        "changed": bool(done),
        "diff": diff_of(*_sides(change, lost, bool(after) and after["state"] != "off")),
        "program": program if change.identity else None,
        "actions": done,
        "unenforced_rules": list(change.unenforced),
        "warnings": warnings,
    }


def _sides(change: Change, lost: Lost, paced: bool) -> tuple[str, str]:
    """Both sides of the diff; they differ where anything is done."""
    old, new = change.before, change.identity
    before = program_line(old.identity, old.cgroup, old.pacing != "off", old.departure) if old else ABSENT
    after = program_line(new, change.cgroup, paced, change.departure) if new else ABSENT
    if before == after and new and change.done:
        after = f"{after.rstrip()}, loaded again\n"
    # An object that got lost is built and loaded again, though the program that runs is the same.
    if any(action.startswith("built ") for action in change.done):
        before, after = f"{before}object: missing or out of date\n", f"{after}object: built\n"
    if MAPS_REMOVED in change.done:
        before, after = f"{before}maps: without a rule\n", f"{after}maps: absent\n"
    return lost.before + before, lost.after + after


def _attached(host: Host, call: Call) -> Change:
    """What is not given stays as it is; modules always give it."""
    cgroup, paced = place(host)
    if call.params["cgroup_path"] is not None:
        cgroup = host.cgroups.relative("cgroup_path:", call.params["cgroup_path"])
    if call.params["pacing"] is not None:
        paced = call.params["pacing"]
    reload = call.params["state"] == "reloaded"
    departure = call.params.get("departure") or departure_of(host)
    return attach(host, call.params["object"], cgroup, paced, reload, call.check_mode, departure)


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(
        work,
        {
            "state": {"type": "str", "choices": ["present", "absent", "reloaded"], "default": "present"},
            "object": {"type": "path"},
            "cgroup_path": {"type": "str", "default": "/"},
            "pacing": {"type": "bool", "default": True},
            "departure": {"type": "str", "choices": ["auto", "off"], "default": "auto"},
        },
    )
