# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_purge: from its options to its result."""

from __future__ import annotations

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ...host.lock import host_lock
from ...work.enforce import LOCK_SECONDS, counter, facts
from ...work.host import Host
from ...work.program import ABSENT, program_line
from ...work.purge import carry_out, find
from ..task import Result, diff_of, run


def work(module: AnsibleModule) -> Result:
    """A purge, from its scope to what it removed."""
    scope, check = module.params["scope"], module.check_mode
    with contextlib.nullcontext() if check else host_lock(LOCK_SECONDS):
        host = Host.open(module.run_command, any_version=scope == "all")
        purge, state = find(host, scope)
        count = counter(host)
        rules = [facts(host, state.rules[name], count) for name in purge.plan.changed]
        warnings = list(purge.warnings)
        if not check:
            warnings += carry_out(host, purge, state, everything=scope == "all")
    removed = {
        "rules": rules,
        "pids": list(purge.pids),
        "stale_rules": list(purge.remains.rules),
        "stale_members": list(purge.remains.members),
        "program": purge.program,
        "pins": list(purge.pins),
        "paths": list(purge.paths),
    }
    before, after = purge.plan.before, purge.plan.after
    if purge.program and state.program:
        before += program_line(purge.program, state.program.cgroup, state.program.pacing != "off")
        after += ABSENT
    return {"changed": any(removed.values()), "removed": removed, "diff": diff_of(before, after), "warnings": warnings}


def main() -> None:
    run(work, {"scope": {"type": "str", "choices": ["stale", "rules", "all"], "default": "rules"}})
