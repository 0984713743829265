# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running kernel can do, as the documentation says it; and what the environment asks of the tests.

LIMITER_OBJECT: all tests but those of the build use this object, as a host without a compiler does; else the collection
builds it here. LIMITER_EVERY_STEP: tasks are spoiled before every step; else before one in so many, from one on that is
another one in each run. LIMITER_FIRST_STEP repeats a run: the header of its output has the number.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel

from .slow import SLOW

RELEASE = kernel.version()
# An iterator may set socket options (tried from 6.1 on, refused by 5.10): connections are released as soon as their
# rule is gone, and windows are clamped.
RELEASES = RELEASE >= (6, 1)
# It may ask for callbacks: connections that are older than their rule are paced.
ADOPTS = RELEASE >= (6, 12)
# Programs for egress see a listener's SYN-ACKs over IPv6; 5.10 runs them only where a packet's socket is the one that
# sends it. So what is accepted (from 5.15 on: what a cgroup accepts first) is paced a round trip late, and what it
# tries to send meanwhile counts as dropped.
SEES_SYN_ACKS = RELEASE >= (6, 6)

OBJECT = os.environ.get("LIMITER_OBJECT")
# A task is spoiled before one in so many of its steps: all of them take half an hour, in a virtual machine many hours.
EVERY_STEP = bool(os.environ.get("LIMITER_EVERY_STEP"))
APART = 1 if EVERY_STEP else 11 if SLOW else 4
FIRST = int(os.environ.get("LIMITER_FIRST_STEP") or random.randrange(1000))
_SHORT = 3  # steps of a task that is spoiled once all the same

MPTCP = 262  # IPPROTO_MPTCP, which Python's socket knows from 3.10 on


def _has_mptcp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP).close()
    except OSError:
        return False
    return True


multipath = pytest.mark.skipif(not _has_mptcp(), reason="this kernel has no Multipath TCP, or it is switched off")
releasing = pytest.mark.skipif(
    not RELEASES, reason="relied on from Linux 6.1 on: in 5.10 no iterator may set socket options"
)
adopting = pytest.mark.skipif(not ADOPTS, reason="before Linux 6.12 no iterator may ask for a socket's callbacks")
not_adopting = pytest.mark.skipif(ADOPTS, reason="since Linux 6.12 an iterator may ask for a socket's callbacks")


def steps(most: int, apart: int = APART, first: int = FIRST) -> list[int]:
    """The numbers of the steps before which a task is spoiled: each has its turn, in one run or another."""
    if EVERY_STEP:
        return list(range(most))
    begin = first % apart
    return [*([begin % _SHORT] if begin >= _SHORT else []), *range(begin, most, apart)]


def cells(chosen: tuple[object, ...], *values: list[Any]) -> list[Any]:
    """All combinations of these values as parameters of a test, of which one is tried on every kernel."""
    found = itertools.product(*values)
    return [pytest.param(*cell, marks=[pytest.mark.every_kernel] if cell == chosen else []) for cell in found]
