# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry a plan out. What fails half way is undone; what is killed half way is completed by the next run."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..core import actions as do
from ..core.errors import LimiterError
from ..core.leaves import own_rule
from ..core.model import Memory, Process
from ..core.places import graph_of
from ..core.plan import Plan
from ..core.policy import Limit
from ..host import store
from ..host.bpf import budgets
from ..host.groups import freezing, processes
from ..host.groups.leaves import Leaves
from . import pacing, places
from .following import Following
from .host import Host
from .origins import Origins
from .program import load_if_needed

# Rounds of looking for children that were forked while their parents were being moved.
_FORK_ROUNDS = 20


class Applied(t.NamedTuple):
    warnings: tuple[str, ...]
    program: tuple[str, ...]  # what had to be done to have a program loaded
    unlimited: tuple[str, ...] = ()  # sockets that a rule does not reach; of the warnings


def apply(host: Host, plan: Plan, remembered: Memory) -> Applied:
    """Carry out the plan's actions under the host's lock, which the caller holds.

    On any error, and on an interrupt, the actions done so far are undone in reverse, then the error is raised.
    """
    work = _Application(host, remembered)
    try:
        work.run(plan)
    except BaseException:
        work.undo_all()
        raise
    unlimited = tuple(dict.fromkeys(work.unlimited))
    return Applied(tuple(dict.fromkeys([*work.warnings, *unlimited])), tuple(work.program), unlimited)


class _Application:
    def __init__(self, host: Host, remembered: Memory) -> None:
        self.host, self.cgroups = host, host.cgroups
        self.warnings: list[str] = []
        self.forgotten: set[int] = set()  # rules
        self.unlimited: list[str] = []
        self.following = Following(host, self.warnings, self.unlimited)
        self.program: list[str] = []
        self.undos: list[t.Callable[[], object]] = []
        self.origins, self.last = Origins(remembered, host.leaves.home_of), remembered.last
        self.concerned: pacing.Concerned | None = None
        self.killed_before = remembered.settling
        self.behind = False  # open connections could not follow: the next task tries again
        self.protected = processes.protected(os.getpid())
        self.refused: set[str] = set()  # leaves that were planned and cannot be used
        self.steps: dict[type, t.Callable[[t.Any], None]] = {
            do.StoreRules: self._store_rules,
            do.LoadProgram: self._load_program,
            do.MakeRule: self._make_rule,
            do.SetLimit: self._set_limit,
            do.SetPlaces: self._set_places,
            do.Take: self._take,
            do.Release: self._release,
            do.RemoveRule: lambda action: self._remove(action.name),
        }

    @property
    def leaves(self) -> Leaves:
        return self.host.leaves

    def run(self, plan: Plan) -> None:
        if self.killed_before:
            self.leaves.thaw()
        if self.host.maps:
            self.host.complete()
            places.complete(self.host)
            self.warnings += pacing.complete_stop(self.host.attachments, self.host.opened_maps)
        # Connections that were accepted while an earlier run moved the process are found now.
        present = [target for target in plan.targets if target.request.present]
        named = [(one, target.name) for target in present for one in target.processes]
        inside = [one.pid for one, name in named if self.leaves.rule_of(one.cgroup) == name]
        self.following.tag([*self.origins.written.in_transit, *inside])
        alive = [name for name in plan.changed if name in plan.rules]
        last = alive[-1] if alive else self.last
        leaving = self._leaving(plan.actions)
        if plan.actions:
            self.concerned = pacing.Concerned(plan.actions, self.host, leaving)
        self.origins.write_ahead(plan.actions, leaving, last)
        for action in plan.actions:
            self.steps[type(action)](action)
        self.following.tag_moved()
        self._tidy({*plan.changed, *(target.name for target in plan.targets if target.name)})
        self._announce()
        self._follow()
        if self.killed_before and self.host.maps:  # it may have removed rules, and left their budgets
            self.forgotten |= self.host.maps.state_rules() - self.cgroups.rules_by_id().keys()
        if self.forgotten:
            budgets.remove(self.host.opened_maps, self.forgotten)
        self.origins.close(last, self.cgroups.rule_names(), self.behind)

    def _leaving(self, actions: t.Iterable[do.Action]) -> list[int]:
        """The processes that go back."""
        pids: list[int] = []
        for action in actions:
            if isinstance(action, do.Release):
                pids += action.pids
            elif isinstance(action, do.RemoveRule):
                pids += self.leaves.pids(action.name)
        return pids

    def undo_all(self) -> None:
        undone = True
        for undo in reversed(self.undos):
            try:
                undo()
            except (LimiterError, OSError):
                undone = False  # the first error is the one that is told
        with contextlib.suppress(LimiterError, OSError):
            self._announce()
            self.following.tag_moved()
            self._follow()
            if undone:  # else what was being moved stays written down, for the next run
                self.origins.close(self.last, self.cgroups.rule_names(), self.behind)

    def _announce(self) -> None:
        """Make every cached attribution stale. Twice: a CPU with weakly ordered loads may pair the first new generation
        with an old member.
        """
        if self.host.maps:
            self.host.maps.bump_generation()
            self.host.maps.bump_generation()

    def _follow(self) -> None:
        """Open connections follow what was changed: once a task, since each look at all sockets costs a millisecond."""
        problems: list[str] = []
        if self.killed_before:  # nobody knows what it had changed
            problems = pacing.follow(None)
        elif self.concerned:
            problems = pacing.follow(self.concerned.pids())
        self.warnings += problems
        self.behind = bool(problems)

    # The steps

    def _store_rules(self, action: do.StoreRules) -> None:
        """First of all: who is killed from now on leaves what the next boot makes, and the same task completes."""
        before = store.contents(action.files)

        def undo() -> None:
            if store.contents(action.files) != before:  # what cannot be written was most likely not changed either
                store.replace(before)

        self.undos.append(undo)
        store.replace(action.files)

    def _load_program(self, action: do.LoadProgram) -> None:
        loaded = load_if_needed(self.host)
        self.program += loaded.done
        self.warnings += loaded.warnings

    def _make_rule(self, action: do.MakeRule) -> None:
        name = action.name
        if not self.cgroups.exists(self.cgroups.rule_cgroup(name)):
            self.undos.append(lambda: self._remove(name))
        self._make(name, action.limit)
        if action.start_time is not None:
            self.origins.made_for(name, action.start_time)

    def _set_limit(self, action: do.SetLimit) -> None:
        maps, rule = self.host.opened_maps, self.host.rule_id(action.name)
        before = maps.limit(rule)
        if before is not None:
            self.undos.append(lambda: maps.set_limit(rule, before))
        maps.set_limit(rule, action.limit)

    def _set_places(self, action: do.SetPlaces) -> None:
        self.following.tag_moved()  # what holds for them now may end with a place
        before = places.of_host(self.host)
        self.undos.append(lambda: places.put(self.host, before, graph_of(before)))
        places.put(self.host, action.places, action.graph)

    def _take(self, action: do.Take) -> None:
        self._announce()
        taken = [process.pid for process in action.processes if self._move(process, action)]
        if action.children:
            self._take_forked(taken, action)

    def _take_forked(self, pids: list[int], action: do.Take) -> None:
        """Children of a process that was moved are born in the rule; those forked before are found here."""
        for _round in range(_FORK_ROUNDS):
            below = processes.descendants(pids, action.beside)
            found = [processes.read(pid) for pid in below if pid not in self.protected]
            late = [process for process in found if process and self.leaves.rule_of(process.cgroup) != action.name]
            for process in late:
                self.origins.remember(process, action.name, self._kept(process.cgroup, action) or "")
            if not [process for process in late if self._move(process, action)]:
                break
        else:
            self.warnings.append(
                f"children of the processes in {action.name!r} are forked faster than they can be moved; "
                "run the task again"
            )
        for process in filter(None, found):
            self.following.moved(process.pid)

    def _move(self, process: Process, action: do.Take) -> bool:
        """Whether the process was moved; one that is gone is an error only where the user named it."""
        try:
            now = processes.read(process.pid)
            if now is None or now.start_time != process.start_time:
                raise _meanwhile("dead_process", f"process {process.pid} ended")
            kept = self._kept(now.cgroup, action)
            if kept is None:
                raise _meanwhile("process_moved", f"process {process.pid} went to {now.cgroup}")
            try:
                self._enter(now, action.name, kept)
            except LimiterError as error:
                if own_rule(kept) is not None or error.kind not in ("cgroup_not_made", "unusable_cgroup"):
                    raise
                self._refuse(kept, now, action, error)
                self._enter(now, action.name, self.cgroups.rule_cgroup(action.name))
        except LimiterError as error:
            if process.pid in action.named or error.kind not in ("dead_process", "process_moved", "no_cgroup"):
                raise
            if error.kind == "process_moved":
                self.warnings.append(f"{error.what}: it is not in the rule {action.name!r}; run the task again")
            return False
        return True

    def _kept(self, cgroup: str, action: do.Take) -> str | None:
        """Where the processes of a cgroup go; None: that was not planned."""
        kept = action.kept.get(cgroup)
        return self.cgroups.rule_cgroup(action.name) if kept in self.refused else kept

    def _enter(self, process: Process, name: str, kept: str) -> None:
        if own_rule(kept) is None and self.leaves.rules.get(kept) != name:
            self.undos.append(self.leaves.make(name, self.host.rule_id(name), kept))
        self.undos.append(lambda: self._put_back(process))
        self.cgroups.move(process.pid, kept)
        self.following.moved(process.pid)

    def _refuse(self, leaf: str, process: Process, action: do.Take, error: LimiterError) -> None:
        """A leaf cannot be used that could be when the plan was made: as if that had been known then. Whoever owns the
        cgroup above can bring that about at any moment.
        """
        self.refused.add(leaf)
        others = [other for other in action.processes if action.kept.get(other.cgroup) == leaf]
        self.origins.write_more([*others, process], action.name, self.cgroups.rule_cgroup(action.name))
        home = self.leaves.home_of(process.cgroup)
        self.warnings.append(
            f"processes leave {home} for the own cgroup of the rule {action.name!r}: {error.what}: {error.why}. What "
            f"limits or filters {home} no longer holds for them"
        )

    def _put_back(self, process: Process) -> None:
        """Undoes a move: into the rule that the process was in before, too."""
        now = processes.read(process.pid)
        if now is None or now.start_time != process.start_time:
            return
        try:
            self.cgroups.move(process.pid, process.cgroup)
        except LimiterError:
            if self.leaves.leaf_of(now.cgroup):  # further up it would lose its limits
                raise
            name = own_rule(process.cgroup) or ""
            self.leaves.move_back(process.pid, self.origins.home(name, process) or "/", name)
        self.following.moved(process.pid, from_leaf=self.leaves.leaf_of(now.cgroup) is not None)

    def _release(self, action: do.Release) -> None:
        for pid in action.pids:
            self._send_home(action.name, pid)
        self.following.tag_moved()

    # Steps that several actions share

    def _remove(self, name: str) -> None:
        """A rule goes: its processes first, its cgroup last, so that a killed run is seen by the next."""
        cgroup = self.cgroups.rule_cgroup(name)
        cgroup_id = self.cgroups.identifier(cgroup)
        if cgroup_id is None:
            return
        stay: set[int] = set()
        if not self._sent_home(name, stay):
            with contextlib.ExitStack() as stack:
                for kept in (cgroup, *self.leaves.occupied(name)):
                    stack.enter_context(freezing.frozen(self.cgroups.absolute(kept)))
                self._sent_home(name, stay)
        if inside := self.cgroups.pids(cgroup):
            raise LimiterError(
                "busy_cgroup",
                f"the rule {name!r} cannot be removed",
                f"something keeps putting processes into {self.cgroups.absolute(cgroup)}, now {inside[0]}",
                "Stop it, and run the task again",
            )
        self.following.tag_moved()
        if self.host.maps:
            limit = self.host.maps.limit(cgroup_id)
            for leaf in self.leaves.of(name):
                self._remove_leaf(name, leaf)
            self.leaves.bury(name)
            if limit is not None:
                self.undos.append(lambda: self._make(name, limit))
            self.host.maps.forget(cgroup_id)
            self.forgotten.add(cgroup_id)
        self.cgroups.remove(cgroup)

    def _sent_home(self, name: str, stay: set[int]) -> bool:
        """Whether nobody is in a rule any more, but for those who ``stay`` since they cannot go home."""
        for _round in range(_FORK_ROUNDS):
            inside = [pid for pid in self.leaves.pids(name) if pid not in stay]
            if not inside:
                return True
            stay.update(pid for pid in inside if not self._send_home(name, pid))
        return False

    def _remove_leaf(self, name: str, leaf: str) -> None:
        """A rule loses a leaf. Who cannot go home stays there, and it limits nobody any more."""
        self.undos.append(lambda: self.leaves.make(name, self.host.rule_id(name), leaf))
        if inside := self.cgroups.pids(leaf):
            self.leaves.unlimit(leaf)
            stay = f"process {inside[0]} and the like stay in {leaf}, which limits nothing"
            self.warnings.append(f"{stay}; speed_limit_purge scope=stale tries again")
        else:
            self.warnings += self.leaves.end(leaf)

    def _tidy(self, names: t.Iterable[str]) -> None:
        """Removes rules' leaves that nobody is in any more; after a run that was killed, those of all rules."""
        if self.killed_before:
            names = {*names, *self.leaves.rules.values(), *self.leaves.dead}
            for leaf in self.leaves.forgotten():
                if not self.cgroups.pids(leaf):
                    self.cgroups.remove(leaf)
        for name in names:
            for leaf in self.leaves.of(name):
                if not self.cgroups.pids(leaf):
                    self._remove_leaf(name, leaf)
            self.leaves.bury(name)

    def _make(self, name: str, limit: Limit) -> None:
        """Also undoes a removal; where the cgroup was gone already, with a full bucket and counters of 0. The limit
        comes last: a rule without one counts as half made, and is completed by the next run.
        """
        maps, cgroup_id = self.host.opened_maps, self.cgroups.make_rule(name)
        maps.make_state(cgroup_id, limit.bucket)
        maps.add_member(cgroup_id, cgroup_id)
        maps.set_limit(cgroup_id, limit)

    def _send_home(self, name: str, pid: int) -> bool:
        """Whether a process is in that rule no more."""
        process = processes.read(pid)
        if process is None or self.leaves.rule_of(process.cgroup) != name:  # it ended, or went elsewhere, meanwhile
            return True
        if self.leaves.leaf_of(process.cgroup):
            return self._leave(process)
        home = self.origins.home(name, process)
        if home is None:
            home = "/"
            self.warnings.append(f"the former cgroup of process {pid} is not known; it goes to the root cgroup")
        self.undos.append(lambda: self._put_back(process))
        try:
            went = self.leaves.move_back(pid, home, name)
        except LimiterError as error:
            if error.kind == "dead_process":
                return True
            raise
        if went != home:
            self.warnings.append(f"{home}, the former cgroup of process {pid}, cannot take it back; it went to {went}")
        self.following.moved(pid, from_leaf=False)
        return True

    def _leave(self, process: Process) -> bool:
        """A process goes from a leaf to the cgroup above it, and nowhere else: further up it would lose its limits."""
        self.undos.append(lambda: self._put_back(process))
        try:
            self.cgroups.move(process.pid, self.leaves.home_of(process.cgroup))
        except LimiterError as error:
            if error.kind == "dead_process":
                return True
            self.warnings.append(f"{error}. It stays in {process.cgroup}")
            return False
        self.following.moved(process.pid, from_leaf=True)
        return True


def _meanwhile(kind: str, what: str) -> LimiterError:
    return LimiterError(kind, f"{what} while this task ran", "", "Nothing was changed. Run the task again")
