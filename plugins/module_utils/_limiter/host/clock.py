# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clock of BPF programs, which knows no time namespaces."""

from __future__ import annotations

import functools
import time

_OFFSETS = "/proc/self/timens_offsets"


def now() -> int:
    """CLOCK_MONOTONIC in nanoseconds, as programs read it."""
    return time.monotonic_ns() - _offset()


@functools.cache
def _offset() -> int:
    """What the time namespace adds; 0 on a kernel without them (before 5.6, or built so)."""
    try:
        with open(_OFFSETS, encoding="ascii") as file:
            for line in file:
                clock, seconds, nanoseconds = line.split()
                if clock in ("monotonic", "1"):
                    return int(seconds) * 1_000_000_000 + int(nanoseconds)
    except (OSError, ValueError):
        pass
    return 0
