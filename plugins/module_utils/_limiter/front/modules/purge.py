# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_purge: from its options to its result."""

from __future__ import annotations

from ...work.facts import counter, facts
from ...work.host import Host
from ...work.program import ABSENT, program_line
from ...work.purge import carry_out, find
from ..call import Call, Result, diff_of


def work(call: Call) -> Result:
    """A purge, from its scope to what it removed."""
    scope, check = call.params["scope"], call.check_mode
    everything = scope == "all"
    with Host.opened(call.run_command, changes=not check, any_version=everything, purges=everything) as host:
        purge, state = find(host, scope)
        loaded = [state.rules[name] for name in purge.plan.changed if name in state.rules]
        count = counter(host, len(loaded))
        rules = [facts(host, rule, state.store.files, count) for rule in loaded]
        warnings = [*host.lost.warnings(check), *purge.warnings]
        if not check:
            warnings += carry_out(host, purge, state, everything)
    removed = {
        "rules": rules,
        "pids": list(purge.pids),
        "stale_rules": list(purge.remains.rules),
        "stale_members": list(purge.remains.members),
        "stale_leaves": [host.cgroups.absolute(leaf) for leaf in purge.remains.leaves],
        "program": purge.program,
        "pins": list(purge.pins),
        "stored": list(purge.stored),
        "paths": list(purge.paths),
    }
    before, after = purge.plan.before, purge.plan.after
    if not everything:
        before, after = host.lost.before + before, host.lost.after + after
    if purge.program and state.program:
        before += program_line(
            purge.program, state.program.cgroup, state.program.pacing != "off", state.program.departure
        )
        after += ABSENT
    changed = any(removed.values()) or bool(host.lost.names)
    return {"changed": changed, "removed": removed, "diff": diff_of(before, after), "warnings": warnings}


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(work, {"scope": {"type": "str", "choices": ["stale", "rules", "all"], "default": "rules"}})
