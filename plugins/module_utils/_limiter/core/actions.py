# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that a plan may consist of. Each can be done twice without harm: a killed run is completed by the next
one's plan.
"""

from __future__ import annotations

import typing as t

from .model import Process
from .policy import Limit


class LoadProgram(t.NamedTuple):
    """Load the program where none is attached, building it first if it must be."""


class MakeRule(t.NamedTuple):
    """Make a rule, or complete a half-made one."""

    name: str
    limit: Limit
    start_time: int | None  # of the process that a rule `pid-<pid>` is made for


class SetLimit(t.NamedTuple):
    name: str
    limit: Limit


class AddMember(t.NamedTuple):
    name: str
    cgroup: str


class RemoveMember(t.NamedTuple):
    name: str
    cgroup: str


class Take(t.NamedTuple):
    """Move processes into a rule; with ``children``, also what they fork in the meantime."""

    name: str
    processes: tuple[Process, ...]
    named: tuple[int, ...]  # pids that the user named: if one is gone, the whole task fails
    children: bool


class Release(t.NamedTuple):
    """Move processes out of a rule, back to where they came from."""

    name: str
    pids: tuple[int, ...]


class RemoveRule(t.NamedTuple):
    """Remove a rule; whatever process is still in it goes back first."""

    name: str


Action = t.Union[LoadProgram, MakeRule, SetLimit, AddMember, RemoveMember, Take, Release, RemoveRule]
