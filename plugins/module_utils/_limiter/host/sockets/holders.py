# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who keeps a socket locked: a thread that waits for a page in the middle of a call to its socket."""

from __future__ import annotations

import re

from .. import apart
from ..groups import processes

_MOST_NAMED = 3
_SECONDS = 1.5

# Where a thread is in the kernel, a function a line, the innermost first: /proc/PID/task/TID/stack.
_WAITS_FOR_PAGE = re.compile(rb"\b\w*(page_fault|mm_fault)\b")
_IN_SOCKET = re.compile(rb"\b(\w*tcp|mptcp|udp|udpv6|udplite|raw|rawv6|ping|sctp|dccp|inet6?|sk|sock)_\w+")


def who() -> str:
    """In words; empty where the kernel does not tell where threads are (CONFIG_STACKTRACE)."""
    found, _held_up = apart.each(processes.all_pids(), _locks_socket, _SECONDS)
    pids = [pid for pid, locks in found if locks]
    named = ", ".join(f"process {pid} ({processes.name_and_user(pid)})" for pid in pids[:_MOST_NAMED])
    more = len(pids) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _locks_socket(pid: int) -> bool:
    stacks = (processes.read_file(f"/proc/{pid}/task/{thread}/stack") for thread in processes.threads(pid))
    return any(
        stack and _WAITS_FOR_PAGE.search(stack) and _IN_SOCKET.search(stack) and b"lock_sock" not in stack
        for stack in stacks
    )
