# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `limiter restore` returns."""

from __future__ import annotations

from ..work.boot import apply_stored
from .call import Call, Result, diff_of


def restored(call: Call, cgroup: str, paced: bool, departure: str = "auto") -> Result:
    """The stored rules, made."""
    applied = apply_stored(call.run_command, call.check_mode, cgroup, paced, departure)
    return {
        "changed": bool(applied.program) or any(done.plan.actions for done in applied.done),
        "diff": diff_of(*("".join(getattr(done.plan, side) for done in applied.done) for side in ("before", "after"))),
        "applied": sum(len(done.plan.targets) for done in applied.done),
        "changed_rules": sum(len(done.plan.changed) for done in applied.done),
        "problems": list(applied.problems),
        "program_actions": list(applied.program),
        "warnings": list(applied.warnings),
    }
