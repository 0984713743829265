# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values that observation, plan and application pass to each other. They are NamedTuples because a dataclass costs
ten times as much to define.

A cgroup is named by its path below the cgroup2 mount, as in /proc/PID/cgroup: ``/system.slice/a.service``; ``/`` is the
root. Start times are clock ticks since boot (field 22 of /proc/PID/stat).
"""

from __future__ import annotations

import typing as t

from .leaves import NoLeaf, home_of
from .policy import Given, InPlace, Limit


class Process(t.NamedTuple):
    """A process as it was seen. The kernel never reuses a pid together with its start time."""

    pid: int
    start_time: int
    cgroup: str


class Origin(t.NamedTuple):
    """The cgroup where a process was before it was first moved into a rule."""

    start_time: int
    cgroup: str


class Memory(t.NamedTuple):
    """What has to be remembered until the next boot, because the kernel does not."""

    origins: t.Mapping[int, Origin]  # by pid
    automatic: t.Mapping[str, int]  # automatic rule -> start time of the process that it was made for
    homes: t.Mapping[str, str]  # rule -> common origin of its processes, for children whose parents are gone
    last: str | None  # the last rule that was really changed
    in_transit: tuple[int, ...] = ()  # processes being moved; only a run that was killed leaves some behind
    settling: bool = False  # such a run changed rules, and open sockets may not have followed


class Program(t.NamedTuple):
    """The program that is attached now."""

    identity: str  # what was loaded: "source:<hash>" or "object:<hash>"; "unknown" if that was not recorded
    cgroup: str  # attach point
    program_id: int
    link_id: int
    pacing: str = "on"  # "off": switched off, or a task is switching it; "refused": by the kernel
    departure: str = "auto"  # or "off"
    blind: bool = False  # it was loaded without its looks into the kernel's memory


class Selector(t.NamedTuple):
    """Which processes a rule takes: those that match all keys that are given."""

    name: str | None = None
    exe: str | None = None  # full path
    cmdline: str | None = None  # regular expression, searched in the arguments joined by spaces
    user: str | None = None  # name or numeric id


class Rule(t.NamedTuple):
    """A rule as it is, or as it will be after the plan."""

    name: str
    cgroup_id: int | None  # None: not made yet
    limit: Limit | None  # None: unfinished, left by a run that was killed
    places: tuple[str, ...]  # patterns of the cgroups that it limits in place, sorted
    pids: tuple[int, ...]
    in_place: InPlace = InPlace()
    leaves: t.Mapping[str, tuple[int, ...]] = {}  # those that processes are in; the other pids are in its own cgroup

    def without(self, pids: t.Container[int]) -> Rule:
        """The rule when these processes have left it."""
        leaves = {leaf: tuple(pid for pid in inside if pid not in pids) for leaf, inside in self.leaves.items()}
        return self._replace(
            pids=tuple(pid for pid in self.pids if pid not in pids),
            leaves={leaf: inside for leaf, inside in leaves.items() if inside},
        )

    def with_places(self, places: tuple[str, ...]) -> Rule:
        return self._replace(places=places, in_place=self.in_place if places else InPlace())


class Skipped(t.NamedTuple):
    """A process that a selector or `children` matches but that is never taken."""

    pid: int
    reason: str


class Request(t.NamedTuple):
    """One rule's options, validated. What they mean on this host is found by observation."""

    where: str  # begins each error text: "" or "rules[3] ('web'): "
    present: bool
    name: str | None
    cgroup_id: int | None
    last: bool
    given: Given  # its fields
    takes_processes: bool  # an option about processes is given, even an empty list
    pids: tuple[int, ...]
    selector: Selector | None
    children: bool
    cgroup_paths: tuple[str, ...]
    units: tuple[str, ...]  # full names
    users: tuple[str, ...]
    containers: tuple[str, ...]
    takes_places: bool  # an option about cgroups that are limited in place is given, even an empty list
    everything: bool


class StoredPlace(t.NamedTuple):
    """Cgroups that a rule limits in place."""

    path: str  # a pattern, as in patterns.py
    kind: str = ""  # what the operator named it by, one of stored.KINDS; "": the path itself
    name: str = ""  # what he called it
    uid: int | None = None  # of a user


class Target(t.NamedTuple):
    """A request together with what it means on this host."""

    request: Request
    name: str | None  # the rule; None if state=absent selects by processes, or by something that does not exist
    automatic: bool  # the rule is named after the request's one process
    places: tuple[str, ...]  # patterns of the cgroups to limit in place
    processes: tuple[Process, ...]  # the living processes that it selects, children included
    matched: tuple[int, ...]  # pids that the options about processes matched
    dead: tuple[int, ...]  # pids that were given but do not exist
    skipped: tuple[Skipped, ...]
    named: tuple[StoredPlace, ...] = ()  # of its places, what the operator named them by


class StoredRule(t.NamedTuple):
    """What is stored of a rule, for the next boot."""

    limit: Limit
    places: tuple[StoredPlace, ...] = ()  # sorted
    in_place: InPlace = InPlace()

    def with_places(self, places: tuple[StoredPlace, ...]) -> StoredRule:
        return self._replace(places=places, in_place=self.in_place if places else InPlace())


class Refused(t.NamedTuple):
    """A file that is not applied."""

    why: str
    newer: bool = False  # a newer version of this collection wrote it
    kind: str = "bad_file"  # as of a LimiterError
    remedy: str = ""


File = t.Union[StoredRule, Refused]


class Store(t.NamedTuple):
    """The files of a host."""

    files: t.Mapping[str, File] = {}  # by the name of the rule
    strange: t.Mapping[str, str] = {}  # files that are no rule's, and why
    unsafe: str | None = None  # why no file is read, nor written
    sealed: str | None = None  # why no file can be written

    @property
    def locked(self) -> str | None:
        """Why nothing here can be changed."""
        return self.unsafe or self.sealed


class HostState(t.NamedTuple):
    """The host as the plan sees it."""

    rules: t.Mapping[str, Rule]
    memory: Memory
    program: Program | None
    lost_limits: t.Mapping[str, tuple[str, ...]]  # cgroup -> the limits that a process loses by leaving it
    earlier: bool = False  # the maps are an earlier version's
    store: Store = Store()  # what is stored for the next boot
    leaves: t.Mapping[str, str] = {}  # leaf -> name of its rule
    refused: t.Mapping[str, NoLeaf] = {}  # leaves that are not possible
    homes: t.Mapping[str, str] = {}  # cgroup of a process that is asked for -> its home

    def home_of(self, cgroup: str) -> str:
        return self.homes.get(cgroup) or home_of(cgroup, self.leaves)
