# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel lacks, and which of its refusals that explains.

Only a refusal counts. A kernel with a low version may have all that is needed, backported by its distributor; and a
lockdown that allows what is needed is none of our business.
"""

from __future__ import annotations

import typing as t

from .errors import LimiterError

OLDEST = (5, 10)

_NEEDS = f"{OLDEST[0]}.{OLDEST[1]} or newer is needed"
# The helper that the verifier names when lockdown forbids it.
_LOCKED_AWAY = "bpf_probe_read_kernel"
_REFUSALS = ("kernel", "load_failed", "no_btf", "no_cgroup_bpf")


class Kernel(t.NamedTuple):
    """What matters about the running kernel."""

    release: str  # as uname prints it
    version: tuple[int, int]
    btf: bool  # it describes its types
    lockdown: str | None  # none, integrity or confidentiality; None without lockdown
    bits: int  # of a word: 32 or 64


class Shortcoming(t.NamedTuple):
    """One thing that a kernel lacks. ``kind`` is the kind of the error."""

    kind: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}."


def of(kernel: Kernel) -> list[Shortcoming]:
    """All that the kernel lacks, the most important first."""
    found = []
    if kernel.bits == 32:
        found.append(
            Shortcoming(
                "kernel_32_bit",
                f"the kernel ({kernel.release}) has 32 bits, so a cgroup's id is not the inode number of its directory",
                "Run a 64-bit kernel; a 32-bit userland may stay",
            )
        )
    if kernel.version < OLDEST:
        found.append(
            Shortcoming(
                "kernel_too_old",
                f"the kernel is {kernel.release}, and {_NEEDS}",
                "Run a newer kernel of the distribution",
            )
        )
    if not kernel.btf:
        found.append(
            Shortcoming(
                "no_btf",
                f"the kernel ({kernel.release}) does not describe its types: /sys/kernel/btf/vmlinux does not exist",
                "Run a kernel that was built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' own are",
            )
        )
    return found


def refused(why: str, kernel: Kernel) -> str:
    """Why the kernel refuses an optional program; names the lockdown if that is the cause."""
    if _LOCKED_AWAY not in why or kernel.lockdown != "confidentiality":
        return why
    cause = _locked_down(kernel)
    return f"{cause.text} ({why}). {cause.remedy}"


def forbids_looking(why: str) -> bool:
    """Whether a program was refused because it reads the kernel's memory."""
    return _LOCKED_AWAY in why


def _locked_down(kernel: Kernel) -> Shortcoming:
    text = f"the kernel is in {_lockdown(kernel)}, which forbids BPF to read the kernel's memory"
    return Shortcoming("locked_down", text, "To have that, boot with lockdown=integrity or without lockdown")


def _lockdown(kernel: Kernel) -> str:
    return f"lockdown ({kernel.lockdown}, says /sys/kernel/security/lockdown)"


def explained(error: LimiterError, kernel: Kernel) -> LimiterError:
    """The error of a failed load, with the kernel's shortcoming as its cause where one explains it."""
    # lockdown=integrity, which comes with Secure Boot, forbids nothing that is needed: there the cause is another.
    if error.kind == "not_permitted" and kernel.lockdown == "confidentiality":
        return LimiterError(error.kind, error.what, f"{error.why}; the kernel is in {_lockdown(kernel)}", error.remedy)
    locked = _LOCKED_AWAY in error.why and kernel.lockdown == "confidentiality"
    causes = [_locked_down(kernel)] if locked else of(kernel)
    cause = next(iter(causes), None) if error.kind in _REFUSALS else None
    if cause is None or cause.kind == error.kind:
        return error
    why = f"{cause.text}; the first refusal was: {error.why}" if error.why else cause.text
    return LimiterError(cause.kind, error.what, why, cause.remedy)
