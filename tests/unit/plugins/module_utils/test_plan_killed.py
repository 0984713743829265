# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan after a run that was killed."""

from __future__ import annotations

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import actions as do
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import HostState, Memory, Rule
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.plan import plan, plan_removal
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit


def test_what_is_left_of_a_rule_whose_process_a_killed_run_took_goes() -> None:
    rules = {name: Rule(name, 7, Limit(8000, 8000), (), pids) for name, pids in (("pid-9", ()), ("pid-8", (8,)))}
    state = HostState(rules, Memory({}, {}, {}, None, in_transit=(8, 9)), None, {})
    assert plan(state, []).actions == plan_removal(state, []).actions == (do.RemoveRule("pid-9"),)
