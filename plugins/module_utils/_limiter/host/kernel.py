# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernel runs."""

from __future__ import annotations

import os


def version() -> tuple[int, int]:
    """``6.1.0-28-amd64`` as (6, 1)."""
    major, _dot, rest = os.uname().release.partition(".")
    minor = "".join(digit for digit in rest.split(".")[0].split("-")[0] if digit.isdigit())
    return int(major), int(minor or 0)
