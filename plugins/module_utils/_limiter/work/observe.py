# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the host, as far as the requests need it. Touches nothing."""

from __future__ import annotations

import os
import typing as t

from ..core.errors import LimiterError
from ..core.layout import MAX_DEPTH
from ..core.model import HostState, Process, Request, Rule, Skipped, Target
from ..core.names import check_rule_name
from ..core.plan import MANAGED, rule_of
from ..host import memory
from ..host.groups import processes
from .host import Host


def observe(
    host: Host, requests: t.Sequence[Request], everything: bool = False
) -> tuple[HostState, tuple[Target, ...], list[str]]:
    """The state that a plan needs, what each request means on this host, and warnings. ``everything`` looks at all
    rules.

    Raises LimiterError for what a request names and this host does not have: ``kernel_thread``, ``no_cgroup``,
    ``bad_cgroup_path`` …
    """
    return _Observation(host, everything).look(requests)


class _Observation:
    def __init__(self, host: Host, everything: bool) -> None:
        self.host, self.cgroups = host, host.cgroups
        self.memory, self.warnings = memory.read()
        self.protected = processes.protected(os.getpid())
        self.in_place = self._members_in_place()
        self.names: set[str] = set(self.in_place)
        if everything:
            self.names |= set(self.cgroups.rule_names())

    def look(self, requests: t.Sequence[Request]) -> tuple[HostState, tuple[Target, ...], list[str]]:
        targets = tuple(self._target(request) for request in requests)
        for target in targets:
            self.names |= {target.name} if target.name else {f"pid-{pid}" for pid in target.request.pids}
            self.names |= {name for name in (rule_of(process.cgroup) for process in target.processes) if name}
        limits = self.host.maps.limits() if self.host.maps and len(self.names) > 64 else None
        rules = {name: rule for name in self.names for rule in [self._rule(name, limits)] if rule}
        left = {process.cgroup for target in targets if target.request.present for process in target.processes}
        lost = {cgroup: tuple(self.cgroups.limits(cgroup)) for cgroup in left if not cgroup.startswith(f"{MANAGED}/")}
        program, earlier = self.host.attachments.current(), self.host.is_earlier
        return HostState(rules, self.memory, program, lost, earlier), targets, self.warnings

    def _members_in_place(self) -> dict[str, list[str]]:
        """Rule name -> cgroups that are limited in place; those that are gone are left out."""
        found: dict[str, list[str]] = {}
        in_place: dict[int, list[int]] = {}
        for member, rule in self.host.maps.members().items() if self.host.maps else ():
            if member != rule:
                in_place.setdefault(rule, []).append(member)
        names = self.cgroups.rules_by_id() if in_place else {}
        for rule, members in in_place.items():
            if rule in names:
                paths = (self.host.libbpf.cgroup_path_of(self.cgroups.mount, member) for member in members)
                found[names[rule]] = [path for path in paths if path]
        return found

    def _rule(self, name: str, limits: t.Mapping[int, t.Any] | None) -> Rule | None:
        cgroup = self.cgroups.rule_cgroup(name)
        cgroup_id = self.cgroups.identifier(cgroup)
        if cgroup_id is None:
            return None
        limit = None
        if self.host.maps:
            limit = self.host.maps.limit(cgroup_id) if limits is None else limits.get(cgroup_id)
        members = tuple(sorted(self.in_place.get(name, ())))
        return Rule(name, cgroup_id, limit, members, tuple(sorted(self.cgroups.pids(cgroup))))

    def _target(self, request: Request) -> Target:
        try:
            name, member = self._place(request)
            living, dead, matched, skipped = self._processes(request)
        except LimiterError as error:
            if not error.what.startswith(request.where):
                error = LimiterError(error.kind, f"{request.where}{error.what}", error.why, error.remedy)
            raise error from None
        chosen = name is not None or request.cgroup_id is not None or request.last
        automatic = request.present and not chosen and len(request.pids) == 1
        if automatic:
            name = f"pid-{request.pids[0]}"
        return Target(request, name, automatic, member, living, matched, dead, skipped)

    def _place(self, request: Request) -> tuple[str | None, str | None]:
        """The rule's name, and the cgroup that is to be limited in place."""
        name = request.name
        if request.cgroup_id is not None:
            path = self.host.libbpf.cgroup_path_of(self.cgroups.mount, request.cgroup_id)
            name = rule_of(path) if path else None
            if name and self.cgroups.identifier(self.cgroups.rule_cgroup(name)) != request.cgroup_id:
                name = None
        if request.last:
            name = (
                self.memory.last
                if self.memory.last and self.cgroups.exists(self.cgroups.rule_cgroup(self.memory.last))
                else None
            )
        if request.cgroup_path is None:
            return name, None
        path = self.cgroups.relative(request.cgroup_path)
        if path == MANAGED or path.startswith(f"{MANAGED}/"):
            return self._own_cgroup(request, path), None
        if name is None:
            raise LimiterError(
                "bad_options",
                f"{request.where}cgroup_path: {path} is limited in place",
                "that needs the name of a rule",
                "Add name",
            )
        if request.present:
            if not self.cgroups.exists(path):
                raise LimiterError(
                    "no_cgroup",
                    f"{request.where}cgroup_path: {path} does not exist below {self.cgroups.mount}",
                    "ENOENT (No such file or directory)",
                    "Give an existing cgroup, as /proc/PID/cgroup shows it",
                )
            if self.cgroups.depth(path) >= MAX_DEPTH:
                raise LimiterError(
                    "bad_cgroup_path",
                    f"{request.where}cgroup_path: {path} is too deep",
                    f"the program looks for rules on the first {MAX_DEPTH} levels only",
                    "Limit a cgroup above it",
                )
        return name, path

    def _own_cgroup(self, request: Request, path: str) -> str:
        name = rule_of(path)
        if name is None or path != self.cgroups.rule_cgroup(name):
            raise LimiterError(
                "bad_cgroup_path",
                f"{request.where}cgroup_path: {path} is not a rule's cgroup",
                f"rules have their cgroups directly below {MANAGED}",
                f"Give {MANAGED}/<name>, or a cgroup elsewhere",
            )
        if request.present:
            check_rule_name(f"{request.where}cgroup_path", name)
        if request.name not in (None, name):
            raise LimiterError(
                "bad_options",
                f"{request.where}cgroup_path and name disagree",
                f"{path} is the rule {name!r}",
                "Give one of them",
            )
        return name

    def _processes(
        self, request: Request
    ) -> tuple[tuple[Process, ...], tuple[int, ...], tuple[int, ...], tuple[Skipped, ...]]:
        """Living processes (the named ones first), dead pids, what was matched, what is never taken."""
        dead: list[int] = []
        skipped: dict[int, str] = {}
        chosen: dict[int, Process] = {}
        for pid in request.pids:
            process = processes.read(pid)
            if process is None:
                dead.append(pid)
            elif processes.is_kernel_thread(pid):
                raise LimiterError(
                    "kernel_thread",
                    f"{request.where}process {pid} is a kernel thread",
                    "it can't be moved",
                    "Give a user process",
                )
            else:
                chosen[pid] = process
        if request.selector is not None:
            self._add(processes.select(request.selector), chosen, skipped)
        matched = tuple(chosen)
        if request.children and chosen:
            self._add(processes.descendants(list(chosen)), chosen, skipped)
        return tuple(chosen.values()), tuple(dead), matched, tuple(Skipped(pid, why) for pid, why in skipped.items())

    def _add(self, pids: t.Iterable[int], chosen: dict[int, Process], skipped: dict[int, str]) -> None:
        for pid in pids:
            if pid in chosen:
                continue
            if pid == 1:
                skipped[pid] = "the init process"
            elif pid in self.protected:
                skipped[pid] = "this task or an ancestor of it"
            elif processes.is_kernel_thread(pid):
                skipped[pid] = "a kernel thread"
            else:
                process = processes.read(pid)
                if process is not None:
                    chosen[pid] = process
