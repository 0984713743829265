# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this machine is emulated, and how much more time things need there."""

from __future__ import annotations

import time


def _is_slow() -> bool:
    """Whether this machine is emulated: it computes ten to twenty times slower than one with a processor of its own."""

    def seconds() -> float:
        begin = time.perf_counter()
        for number in range(100_000):
            number * number
        return time.perf_counter() - begin

    return min(seconds() for _try in range(10)) > 0.02


SLOW = _is_slow()
PATIENCE = 3 if SLOW else 1
