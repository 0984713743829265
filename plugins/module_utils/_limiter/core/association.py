# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a socket that is opened now gets the cgroup of its process. Without that, no rule sees what it sends.

Until commit 8520e224f547 (Linux 5.15; Debian's 5.10 lacks it) the first use of net_cls or net_prio of cgroup v1 ends
this for the whole host until its next boot. Sockets that were open before keep their cgroup.
"""

from __future__ import annotations

import typing as t

KEPT, LOST, SUSPECTED, UNKNOWN = "kept", "lost", "suspected", "unknown"

CONTROLLERS = ("net_cls", "net_prio")
ROOT_ID = 1  # of cgroup2's root, on 64-bit kernels since 5.5

# The short text for a single rule.
NOT_LIMITED = (
    "new connections are not limited, because a program has used net_cls or net_prio of cgroup v1 on this kernel: see "
    "the warning"
)

_REPAIRED = (5, 15)

_REMEDY = (
    "Find the program that uses them (grep -E 'net_cls|net_prio' /proc/mounts; older Docker, LXC and libvirt do), stop "
    "it from doing so, for example with the kernel parameter cgroup_no_v1=net_cls,net_prio, and reboot; or boot Linux "
    "5.15 or newer, where this is harmless"
)


class Association(t.NamedTuple):
    """``state``: KEPT; LOST for all sockets opened from now on; SUSPECTED or UNKNOWN where a trial is impossible.

    ``evidence`` is what indicates LOST or SUSPECTED.
    """

    state: str
    evidence: str = ""

    def warning(self, release: str) -> str | None:
        """What a user has to know, or None. ``release`` is the kernel's."""
        if self.state not in (LOST, SUSPECTED):
            return None
        lost = self.state == LOST
        return (
            f"new connections {'are not' if lost else 'may not be'} limited: after a program has used net_cls or "
            f"net_prio of cgroup v1, this kernel ({release}) gives new sockets no cgroup until the next boot "
            f"({self.evidence}). {_REMEDY}."
        )


def can_be_lost(version: tuple[int, int], controllers: t.Container[str]) -> bool:
    """Whether a kernel of this version, built with these controllers of cgroup v1, has the flaw."""
    return version < _REPAIRED and any(name in controllers for name in CONTROLLERS)


def judge(own: int | None, socket: int | None) -> str:
    """The state, from the id of a process's cgroup and the id that the kernel reports for its new socket.

    A socket without a cgroup counts as the root's, so a process in the root learns nothing.
    """
    if socket is None:
        return UNKNOWN
    if socket != ROOT_ID:
        return KEPT
    return UNKNOWN if own in (None, ROOT_ID) else LOST


def used(value: str) -> bool:
    """Whether the text of a file net_cls.classid or net_prio.ifpriomap shows that it was ever given a value.

    The files hold one number, or one line of interface and number for each interface.
    """
    return any(line.split()[-1] not in ("0", "0x0") for line in value.splitlines() if line.strip())
