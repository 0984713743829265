# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this may change the kernel's state at all."""

from __future__ import annotations

import os

from ..core.errors import LimiterError


def check_root() -> None:
    """Raises LimiterError ``not_root`` for any user but root."""
    if os.geteuid() != 0:
        raise LimiterError(
            "not_root", "this needs root", "EPERM (it runs as another user)", "Use sudo; in Ansible, become: true"
        )
