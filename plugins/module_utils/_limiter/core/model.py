# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that observation, plan and application pass to each other. NamedTuples: a dataclass costs ten times as
much to define.

Cgroups are named by their path below the cgroup2 mount, as in /proc/PID/cgroup: ``/`` is the root,
``/system.slice/a.service``.
Start times are clock ticks since boot (field 22 of /proc/PID/stat).
"""

from __future__ import annotations

import typing as t

from .policy import Given, Limit


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
    homes: t.Mapping[str, str]  # rule -> where its processes came from; for children whose parents are gone
    last: str | None  # the rule that was last really changed
    unsettled: tuple[int, ...] = ()  # processes that a run was moving; left behind only by one that was killed
    settling: bool = False  # a run was changing rules, and their sockets may not have followed; as above


class Program(t.NamedTuple):
    """The program that is attached now."""

    identity: str  # what was loaded: "source:<hash>" or "object:<hash>"; "unknown" where nobody wrote it down
    cgroup: str  # attach point
    program_id: int
    link_id: int
    pacing: str = "on"  # of TCP sockets: "on"; "off": not wanted, or half way; "refused": by the kernel


class Selector(t.NamedTuple):
    """Which processes a rule takes; the keys that are given must all hold."""

    name: str | None = None
    exe: str | None = None  # full path
    cmdline: str | None = None  # regular expression, searched in the arguments joined by spaces
    user: str | None = None  # name or numeric id


class Rule(t.NamedTuple):
    """A rule as it is, or as it will be."""

    name: str
    cgroup_id: int | None  # None: not made yet
    limit: Limit | None  # None: half made, by a run that was killed
    members: tuple[str, ...]  # cgroups limited in place, beside the rule's own
    pids: tuple[int, ...]


class Skipped(t.NamedTuple):
    """A process that a selector or `children` matched and that is never taken."""

    pid: int
    reason: str


class Request(t.NamedTuple):
    """One rule's options, validated; what they mean on this host is found by observation."""

    where: str  # begins the error texts: "" or "rules[3]: "
    present: bool
    name: str | None
    cgroup_id: int | None
    last: bool
    given: Given  # fields of its limit
    takes_processes: bool  # processes are spoken of, if only by an empty list
    pids: tuple[int, ...]
    selector: Selector | None
    children: bool
    cgroup_path: str | None


class Target(t.NamedTuple):
    """A request after the host was looked at."""

    request: Request
    name: str | None  # the rule; None: absent, by processes or by something that is not there
    automatic: bool  # the rule is named after the request's one process
    member: str | None  # cgroup to be limited in place
    processes: tuple[Process, ...]  # living ones that are meant, children included
    matched: tuple[int, ...]  # what pids or the selector matched
    dead: tuple[int, ...]  # pids that were named and do not live
    skipped: tuple[Skipped, ...]


class HostState(t.NamedTuple):
    """The host as the plan sees it."""

    rules: t.Mapping[str, Rule]
    memory: Memory
    program: Program | None
    lost_limits: t.Mapping[str, tuple[str, ...]]  # cgroup -> limits that a process loses when it leaves
