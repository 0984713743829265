# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls that Python has no function for."""

from __future__ import annotations

import os
import typing as t

Syscall = t.Callable[[int, int, int, int], int]


def syscall() -> Syscall:
    """A function that makes a system call, by its number, with three arguments. OSError where the kernel refuses it."""
    import ctypes  # 2 ms that most tasks need not spend

    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long] * 6

    def call(number: int, first: int, second: int, third: int) -> int:
        result: int = function(number, first, second, third, 0, 0)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    return call
