# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_rule: from its options to its result."""

from __future__ import annotations

from ...core.request import parse_request
from ...work.enforce import enforce, selection
from ..argspec import RULE_CHECKS, rule_spec
from ..call import Call, Result, diff_of


def work(call: Call) -> Result:
    """One rule, from options to result."""
    request = parse_request(call.params)
    done = enforce(call.run_command, [request], call.check_mode)
    target = done.plan.targets[0]
    name = target.name or next(iter(done.plan.changed), "")
    return {
        "changed": done.changed,
        "diff": diff_of(done.plan.before, done.plan.after),
        "rule": done.after.get(name),
        "previous": done.before.get(name),
        "program_actions": list(done.program),
        "unenforced": list(done.unenforced),
        "warnings": done.warnings,
        **selection(target, done.homes),
    }


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(work, rule_spec(), parse=parse_request, **RULE_CHECKS)
