# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_rules: from its options to its result."""

from __future__ import annotations

import typing as t

from ...core.model import Request
from ...core.request import parse_requests
from ...work.enforce import Done, enforce, selection
from ..argspec import RULE_CHECKS, rule_spec
from ..call import Call, Result, diff_of


def summary(done: Done) -> dict[str, int]:
    """Rules by what happens to them."""
    created = sum(name not in done.before for name in done.after)
    removed = sum(name not in done.after for name in done.plan.changed)
    stay = {target.name for target in done.plan.targets} & set(done.plan.rules) - set(done.plan.changed)
    return {
        "created": created,
        "changed": len(done.plan.changed) - created - removed,
        "removed": removed,
        "unchanged": len(stay),
    }


def work(call: Call) -> Result:
    """All rules, from options to result."""
    return follow(call, parse_requests(call.params["rules"]), call.params["purge"])


def follow(call: Call, requests: t.Sequence[Request], purge: bool) -> Result:
    """Requests, wherever they come from, to result."""
    done = enforce(call.run_command, requests, call.check_mode, everything=True, purge=purge)
    selections = {
        target.name or target.request.where.rstrip(": "): selection(target, done.homes)
        for target in done.plan.targets
        if target.request.takes_processes
    }
    return {
        "changed": done.changed,
        "diff": diff_of(done.plan.before, done.plan.after),
        "summary": summary(done),
        "rules": [done.after[name] for name in done.plan.changed if name in done.after],
        "previous": [done.before[name] for name in done.plan.changed if name in done.before],
        "kept": list(done.plan.kept),
        "matched": {name: found["matched"] for name, found in selections.items()},
        "matched_units": {name: found["matched_units"] for name, found in selections.items()},
        "skipped_processes": {
            name: found["skipped_processes"] for name, found in selections.items() if found["skipped_processes"]
        },
        "program_actions": list(done.program),
        "unenforced": list(done.unenforced),
        "warnings": done.warnings,
    }


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(
        work,
        {
            "rules": {"type": "list", "elements": "dict", "required": True, "options": rule_spec(), **RULE_CHECKS},
            "purge": {"type": "bool", "default": False},
        },
        parse=lambda options: parse_requests(options["rules"]),
    )
