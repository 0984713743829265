# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a plan. Each can be done twice without harm, so the next run's plan completes a run that was killed."""

from __future__ import annotations

import typing as t

from .model import Process, StoredRule
from .patterns import Node
from .places import Places
from .policy import Limit


class StoreRules(t.NamedTuple):
    """Write the files of rules, or remove them (None). All together, since each file is forced to the disk."""

    files: t.Mapping[str, StoredRule | None]


class LoadProgram(t.NamedTuple):
    """Load the program where none is attached, or an earlier version's, and build it first if necessary."""


class MakeRule(t.NamedTuple):
    """Make a rule, or complete an unfinished one."""

    name: str
    limit: Limit
    start_time: int | None  # of the process, for an automatic rule


class SetLimit(t.NamedTuple):
    name: str
    limit: Limit


class SetPlaces(t.NamedTuple):
    """Have these places and no others, from one moment to the next."""

    places: Places
    graph: tuple[Node, ...]  # made of them
    changed: tuple[str, ...]  # patterns that come, go or change


class Take(t.NamedTuple):
    """Move processes into a rule; with ``children``, also those that they fork meanwhile."""

    name: str
    processes: tuple[Process, ...]
    named: tuple[int, ...]  # pids that the user named: the task fails if one of them is gone
    children: bool
    kept: t.Mapping[str, str]  # cgroup -> where its processes go: a leaf, or the rule's own cgroup
    beside: tuple[int, ...] = ()  # pids that the list gives to other rules: neither they nor their children are taken


class Release(t.NamedTuple):
    """Move processes out of a rule, back home."""

    name: str
    pids: tuple[int, ...]


class RemoveRule(t.NamedTuple):
    """Remove a rule, after releasing the processes that are still in it."""

    name: str


Action = t.Union[StoreRules, LoadProgram, MakeRule, SetLimit, SetPlaces, Take, Release, RemoveRule]
