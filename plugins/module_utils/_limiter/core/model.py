# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that observation, plan and application pass to each other. NamedTuples: a dataclass costs ten times as much to define.

Cgroups are named by their path below the cgroup2 mount, as in /proc/PID/cgroup: ``/`` is the root, ``/system.slice/a.service``.
Rates are bytes per second, buckets bytes, start times clock ticks since boot (field 22 of /proc/PID/stat).
"""

from __future__ import annotations

import typing as t


class Limit(t.NamedTuple):
    """A token bucket: ``rate`` in bytes per second, ``bucket`` in bytes."""

    rate: int
    bucket: int


class Counters(t.NamedTuple):
    """What a rule has passed, dropped and marked since it was made, in IP packets and bytes on the wire."""

    packets: int = 0
    bytes: int = 0
    dropped_packets: int = 0
    dropped_bytes: int = 0
    congestion_marks: int = 0


class Process(t.NamedTuple):
    """A process as it was seen; pid and start time together are never used again by the kernel."""

    pid: int
    start_time: int
    cgroup: str


class Origin(t.NamedTuple):
    """Where a process was before it was first moved into a rule."""

    start_time: int
    cgroup: str


class Memory(t.NamedTuple):
    """What has to be remembered beside the kernel's own state, until the next boot."""

    origins: t.Mapping[int, Origin]  # by pid
    automatic: t.Mapping[str, int]  # rule `pid-<pid>` -> start time of the process that it was made for
    last: str | None  # the rule that was last really changed


class Program(t.NamedTuple):
    """The program that is attached now."""

    identity: str  # what was loaded: "source:<hash>" or "object:<hash>"; "unknown" where nobody wrote it down
    cgroup: str  # attach point
    program_id: int
    link_id: int
