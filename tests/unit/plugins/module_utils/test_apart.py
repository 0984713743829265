# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A child that does a part of a task."""

from __future__ import annotations

import os
import time

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import apart


def test_a_child_that_has_said_all_is_complete_though_it_does_not_end() -> None:
    def work(tell: apart.Tell) -> None:
        tell(["all"])
        if os.fork() == 0:  # who keeps the pipe open
            time.sleep(3)
            os._exit(0)

    outcome = apart.run(work, silence=1.0)
    assert (outcome.said, outcome.complete) == ([["all"]], True)
