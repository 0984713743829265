# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where processes came from: written down before one is moved, so that after a killed run each can still go back. A
process that is kept in a leaf is at home, and nothing is written down about it.
"""

from __future__ import annotations

import typing as t

from ..core.actions import Action, RemoveRule, Take
from ..core.leaves import own_rule
from ..core.model import Memory, Origin, Process
from ..host import memory
from ..host.groups import processes


class Origins:
    """The memory of one run. Entries of dead processes and of rules that are gone are dropped when it is written."""

    def __init__(self, written: Memory, home_of: t.Callable[[str], str]) -> None:
        self.written, self._home_of = written, home_of
        self.origins, self.automatic, self.homes = dict(written.origins), dict(written.automatic), dict(written.homes)

    def write_ahead(self, actions: t.Sequence[Action], leaving: t.Iterable[int], last: str | None) -> None:
        """Before anything is done: where each process is that is being moved, and the rule that is changed last.

        ``leaving`` are the processes that go back. After a killed run the next one may find nothing more to change.
        """
        moving = list(leaving)
        for action in actions:
            if isinstance(action, Take):
                for process in action.processes:
                    self.remember(process, action.name, action.kept[process.cgroup])
                    moving.append(process.pid)
            elif isinstance(action, RemoveRule):
                # Not known is safe: whose rule it is shows by who is in it. The next process's time would be wrong.
                self.automatic.pop(action.name, None)
        self._write(last, tuple(moving), self.written.settling or bool(actions))

    def write_more(self, moving: t.Iterable[Process], name: str, kept: str) -> None:
        """Before processes go elsewhere than was planned."""
        for process in moving:
            self.remember(process, name, kept)
        self._write(self.written.last, self.written.in_transit, self.written.settling)

    def remember(self, process: Process, name: str, kept: str) -> None:
        """A process is about to enter the rule; one that comes from another rule's cgroup keeps where it was first."""
        if own_rule(kept) is None:
            return
        rule = own_rule(process.cgroup)
        home = self._home_of(process.cgroup) if rule is None else self._own(process) or self.homes.get(rule)
        if home is not None:
            self.origins[process.pid] = Origin(process.start_time, home)
            self.homes[name] = common_ancestor(home, self.homes.get(name, home))

    def made_for(self, name: str, start_time: int) -> None:
        """The rule was made for the process with this start time."""
        self.automatic[name] = start_time

    def home(self, name: str, process: Process) -> str | None:
        """Where a process goes back to: by its own record, its nearest recorded ancestor's, or the rule's; None: not
        known.
        """
        own = self._own(process)
        if own is not None:
            return own
        for pid in processes.ancestors(process.pid):
            ancestor = processes.read(pid)
            inherited = self._own(ancestor) if ancestor else None
            if inherited is not None:
                return inherited
        return self.homes.get(name)

    def close(self, last: str | None, names: t.Iterable[str], settling: bool = False) -> None:
        """All is done: what speaks of rules other than ``names`` is forgotten, and nothing is being moved.

        ``settling``: but for open connections, which the next task has to settle again.
        """
        existing = set(names)
        self.automatic = {name: start for name, start in self.automatic.items() if name in existing}
        self.homes = {name: home for name, home in self.homes.items() if name in existing}
        self._write(last if last in existing else None, (), settling)

    def _own(self, process: Process) -> str | None:
        origin = self.origins.get(process.pid)
        return origin.cgroup if origin and origin.start_time == process.start_time else None

    def _write(self, last: str | None, in_transit: tuple[int, ...], settling: bool) -> None:
        alive = {pid: origin for pid, origin in self.origins.items() if processes.lives(pid, origin.start_time)}
        fresh = Memory(alive, dict(self.automatic), dict(self.homes), last, in_transit, settling)
        if fresh != self.written:
            memory.write(fresh)
            self.written = fresh


def common_ancestor(one: str, other: str) -> str:
    """The nearest cgroup above both: where a process of either may go that has no record of its own."""
    shared = []
    for part, same in zip(one.split("/")[1:], other.split("/")[1:]):
        if part != same:
            break
        shared.append(part)
    return "/" + "/".join(shared)
