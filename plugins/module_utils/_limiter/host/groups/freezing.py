# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cgroups whose processes stand still while they are moved out: who forks and exits in a loop is never there any more
when he is moved.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .. import apart
from . import processes

_SECONDS = 1.0  # until all stand still; who is in a long system call does so after it


@contextlib.contextmanager
def frozen(directory: str) -> t.Iterator[None]:
    """Until the end of the context, or of this process, nobody in a cgroup runs. Where the kernel refuses that, they
    do.
    """
    with apart.afterwards(lambda: thaw(directory)):
        if _write(directory, b"1"):
            deadline = time.monotonic() + _SECONDS
            while b"frozen 0" in (processes.read_file(f"{directory}/cgroup.events") or b""):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.005)
        yield


def thaw(directory: str) -> None:
    """Nothing is written where nothing is frozen."""
    if (processes.read_file(f"{directory}/cgroup.freeze") or b"0").strip() == b"1":
        _write(directory, b"0")


def _write(directory: str, text: bytes) -> bool:
    try:
        fd = os.open(f"{directory}/cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True
