# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernel runs, what it lacks, and which refusals that explains."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import typing as t

from ..core import shortcomings
from ..core.errors import LimiterError

BTF = "/sys/kernel/btf/vmlinux"
LOCKDOWN = "/sys/kernel/security/lockdown"
KALLSYMS = "/proc/kallsyms"


def version() -> tuple[int, int]:
    """``6.1.0-28-amd64`` as (6, 1)."""
    major, _dot, rest = os.uname().release.partition(".")
    minor = "".join(digit for digit in rest.split(".")[0].split("-")[0] if digit.isdigit())
    return int(major), int(minor or 0)


def look() -> shortcomings.Kernel:
    """The running kernel."""
    return shortcomings.Kernel(os.uname().release, version(), os.path.exists(BTF), _lockdown(), _bits())


@contextlib.contextmanager
def explained() -> t.Iterator[None]:
    """What the kernel refuses inside is told with what it lacks, where that explains it."""
    try:
        yield
    except LimiterError as error:
        raise shortcomings.explained(error, look()) from error


def refused(why: str) -> str:
    """Why the kernel refuses a program that can be done without, with its lockdown where that is the cause."""
    return shortcomings.refused(why, look())


def check_bits() -> None:
    """Raises LimiterError ``kernel_32_bit``: such a kernel would load the program, and rules would limit nothing."""
    if _bits() == 32:
        found = shortcomings.of(look())[0]
        raise LimiterError(found.kind, "no rule can limit here", found.text, found.remedy)


def _lockdown() -> str | None:
    """``none [integrity] confidentiality``: the one that holds is in brackets."""
    try:
        with open(LOCKDOWN, encoding="ascii", errors="replace") as file:
            found = re.search(r"\[(\w+)\]", file.read())
    except OSError:  # securityfs is not mounted, or the kernel has none
        return None
    return found.group(1) if found else None


def _bits() -> int:
    """A 64-bit interpreter runs on no other kernel. A 32-bit one asks how long an address is; uname may be told to lie
    to it.
    """
    if sys.maxsize > 2**32:
        return 64
    try:
        with open(KALLSYMS, encoding="ascii", errors="replace") as file:
            address = file.readline().split()[0]
    except (OSError, IndexError):
        return 64 if "64" in os.uname().machine or os.uname().machine == "s390x" else 32
    return 4 * len(address)
