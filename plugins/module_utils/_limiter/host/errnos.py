# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the kernel's refusals are told."""

from __future__ import annotations

import errno
import os


def errno_text(error: OSError) -> str:
    """``EPERM (Operation not permitted)``."""
    number = error.errno or 0
    # Of the two names that one number has, the kernel's documentation uses this one.
    name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, f"errno {number}")
    return f"{name} ({os.strerror(number)})"
