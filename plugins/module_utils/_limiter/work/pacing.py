# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacing as a whole: how it ends, and whose sockets a plan concerns."""

from __future__ import annotations

import typing as t

from ..core import actions as do
from ..core import catalog
from ..core.layout import PACING_ON
from ..core.model import Program
from ..core.pacing import Ability
from ..host import kernel
from ..host.bpf.attachments import Attachments
from ..host.bpf.maps import Maps
from ..host.sockets import settle
from . import places
from .host import Host

_MAY_STAY_SLOW = "connections may stay as slow as they were when they were paced"

# With more rules or patterns than that it is cheaper to look at all processes.
_MOST_RULES = _MOST_PATTERNS = 64
_MOST_CGROUPS = 1000  # and that many may fit one pattern, if users make them


def ability(host: Host, program: Program | None) -> Ability:
    """What the program that is attached does about pacing, and why not more."""
    if program is None:
        return Ability(None, None, adopts=False, settles=False)
    half_way = is_half_way(host.attachments, host.maps)
    return _ability(host, program.pacing, program.cgroup, settle.can_settle())._replace(half_way=half_way)


def would_be(host: Host, state: str, cgroup: str, before: Program | None) -> Ability:
    """What a program that is to be attached there would do, as `ability`; ``state``: as Program.pacing."""
    paces = before is not None and before.pacing == "on"  # then the kernel was asked already
    settles = state == "on" and (settle.can_settle() if paces else _could_settle())
    return _ability(host, state, cgroup, settles)


def _ability(host: Host, state: str, cgroup: str, settles: bool) -> Ability:
    refusal = host.attachments.refuses_pacing(cgroup) if state == "refused" else None
    adopts = state == "on" and settles and settle.can_adopt()
    return Ability(state, refusal, adopts, settles, refuses_settling=not settles and _could_settle())


def _could_settle() -> bool:
    return kernel.version() >= catalog.SETTLE.since


def stop(attachments: Attachments, maps: Maps | None, pacing: int) -> list[str]:
    """Releases every socket, then ends what paces them; ``pacing`` says why, as layout.PACING_OFF. Returns warnings.

    Who is killed in it leaves a pin behind, by which the next one sees that there is more to do.
    """
    warnings: list[str] = []
    if maps is None and attachments.has_pacing_links():
        warnings = [f"{_MAY_STAY_SLOW}: the pinned maps, which know them, are not all there"]
    if maps is not None:
        begun = attachments.has_pacing_links() or maps.control().pacing == PACING_ON
        maps.set_pacing(pacing)
        if begun:
            attachments.detach_pacing()  # or a connection that is made now would be paced for ever
            warnings = _release(maps)
    attachments.unpin_pacing()
    return warnings


def is_half_way(attachments: Attachments, maps: Maps | None) -> bool:
    """Whether a run was killed that switched pacing off, or on: something is pinned of it, and it does not hold."""
    return maps is not None and attachments.has_pacing_links() and maps.control().pacing != PACING_ON


def complete_stop(attachments: Attachments, maps: Maps) -> list[str]:
    """Ends what a killed run has left of pacing, for the reason that it had. Returns warnings."""
    return stop(attachments, maps, maps.control().pacing) if is_half_way(attachments, maps) else []


def _release(maps: Maps) -> list[str]:
    """In one pass of the kernel where it can; and what no namespace leads to (its process went on to another one, or it
    is closed and will connect again) by its descriptor.
    """
    settles = settle.can_settle()
    problems = settle.settle() if settles else []
    released = settle.release_one_by_one(maps)
    problems += released.problems
    if released.refusal and not settles:  # else there is most likely none left to borrow
        problems.append(released.refusal)
    return [f"{_MAY_STAY_SLOW}: {text}" for text in dict.fromkeys(problems)]


def follow(pids: t.Iterable[int] | None) -> list[str]:
    """After a change of rules, members or processes: their open connections follow at once. Returns warnings."""
    return [
        f"open connections may follow this change only with their next packets, or not be paced at all: {text}"
        for text in settle.settle(pids)
    ]


class Concerned:
    """The processes whose sockets a plan concerns; ``leaving`` are those that go back to where they came from."""

    def __init__(self, actions: t.Iterable[do.Action], host: Host, leaving: t.Iterable[int]) -> None:
        self._host = host
        self._cgroups: set[str] = set()
        self._pids = set(leaving)
        names = {
            action.name for action in actions if not isinstance(action, (do.StoreRules, do.LoadProgram, do.SetPlaces))
        }
        self._too_many = len(names) > _MOST_RULES
        if self._too_many:
            return
        cgroups = [host.cgroups.rule_cgroup(name) for name in names]
        in_place = places.by_rule(host)
        patterns = {place.pattern for name in names for place in in_place.get(name, ())}
        for action in actions:
            if isinstance(action, do.SetPlaces):
                patterns.update(action.changed)
        self._cgroups.update(leaf for name in names for leaf in host.leaves.of(name))
        self._too_many = len(patterns) > _MOST_PATTERNS
        self._cgroups.update(cgroups)
        for pattern in () if self._too_many else patterns:
            self._cgroups.update(places.cgroups_of(host, [pattern]))
            self._too_many = len(self._cgroups) > _MOST_CGROUPS
            if self._too_many:
                return
        for action in actions:
            if isinstance(action, do.Take):
                self._pids.update(process.pid for process in action.processes)

    def pids(self) -> set[int] | None:
        """As they are now; None: look at all there are."""
        if self._too_many:
            return None
        found = self._pids.union(*(self._host.cgroups.pids(cgroup) for cgroup in self._cgroups))
        return None if self._host.cgroups.too_large else found
