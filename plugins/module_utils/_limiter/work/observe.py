# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the host, as far as the requests need it. Touches nothing."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..core.errors import LimiterError
from ..core.leaves import MANAGED, PREFIX, NoLeaf, home_of, leaf_for, own_rule
from ..core.model import HostState, Process, Request, Rule, Selector, Skipped, StoredPlace, Target
from ..core.names import check_rule_name
from ..core.patterns import is_name, parse
from ..core.places import is_confined, normal
from ..core.policy import InPlace, wanted_in_place
from ..host import memory, store
from ..host.bpf.maps import MANY
from ..host.groups import expressions, processes, selection, trees
from . import places
from .host import Host
from .named import Named

# Where a host is reached by ssh: whoever limits these limits his own connection, or the next one.
_WHERE_CONNECTIONS_END = (
    *(f"/system.slice/{name}" for name in ("ssh.service", "ssh.socket", "sshd.service", "sshd.socket")),
    "/user.slice",
)


Located = tuple[list[StoredPlace], list[str]]  # places, and warnings
Selections = t.Mapping[Selector, selection.Selected]

_SLOW = f"comparing its command line with cmdline takes longer than {expressions.SECONDS:.0f} seconds for all"
_HELD_UP = "it keeps whoever reads its command line waiting"


def select(requests: t.Sequence[Request]) -> Selections:
    """What the requests' selectors name. It takes as long as processes make it, up to seconds for each selector, so it
    comes before the host's lock. Raises LimiterError: ``bad_selector``, ``unknown_user``, ``missing_dependency``.
    """
    wanted: dict[Selector, selection.Wanted] = {}
    for request in requests:
        if request.selector is not None and request.selector not in wanted:
            with _named(request):
                wanted[request.selector] = selection.Wanted(request.selector)
    return selection.select(wanted)


def undecided(request: Request, selections: Selections) -> list[str]:
    """In words, which processes the request may mean, but nobody knows."""
    selected = selections[request.selector] if request.selector else selection.Selected({})
    told = []
    if selected.slow:
        told.append(
            f"{request.where}processes: {len(selected.slow)} were not compared with cmdline, since that takes too "
            f"long; the first is {selected.slow[0]}. A .* less, or one of name, exe and user beside it, makes it fast"
        )
    if selected.held_up:
        named = ", ".join(f"{pid} ({processes.name_and_user(pid)})" for pid in selected.held_up[:3])
        more = f" and {len(selected.held_up) - 3} more" if len(selected.held_up) > 3 else ""
        told.append(
            f"{request.where}processes: it is not known whether {named}{more} are meant, since they keep whoever reads "
            "their command lines waiting. To end them mends that; user and exe are compared without it"
        )
    if selected.unfollowed is not None:
        told.append(
            f"{request.where}processes: where the links of exe {selected.unfollowed} lead is not known, since a file "
            "system does not answer: only processes are found that run that very path"
        )
    return told


def locate(requests: t.Sequence[Request]) -> list[Located]:
    """Where the units, users and containers of each request are. It takes as long as those who know them take, so it
    comes before the host's lock. Raises LimiterError as `Named`.
    """
    found: list[Located] = []
    named = Named(requests)
    for request in requests:
        with _named(request):
            found.append(named.places(request))
    return found


def observe(
    host: Host,
    requests: t.Sequence[Request],
    everything: bool = False,
    selections: Selections | None = None,
    located: t.Sequence[Located] = (),
    files: bool = True,
) -> tuple[HostState, tuple[Target, ...], list[str]]:
    """The state that a plan needs, what each request means on this host, and warnings. ``everything`` looks at all
    rules; ``selections`` are what `select` found, ``located`` what `locate` did; ``files`` reads what is stored.

    Raises LimiterError for what a request names and this host does not have: ``kernel_thread``, ``no_cgroup``,
    ``bad_cgroup_path`` …
    """
    return _Observation(host, everything, selections or {}).look(requests, located, files)


def too_large(host: Host) -> list[str]:
    """Of which cgroups not all was found so far."""
    return [
        f"not all processes and cgroups in {cgroup} were found: there are more than {trees.MOST} cgroups below it"
        for cgroup in host.cgroups.too_large
    ]


@contextlib.contextmanager
def _named(request: Request) -> t.Iterator[None]:
    """An error says which rule of a list it is about."""
    try:
        yield
    except LimiterError as error:
        if not error.what.startswith(request.where):
            error = LimiterError(error.kind, f"{request.where}{error.what}", error.why, error.remedy)
        raise error from None


class _Observation:
    def __init__(self, host: Host, everything: bool, selections: Selections) -> None:
        self.host, self.cgroups, self.selections, self.leaves = host, host.cgroups, selections, host.leaves
        self.memory, self.warnings = memory.read()
        self.protected = processes.protected(os.getpid())
        ancestors = (processes.read(pid) for pid in self.protected)
        self.own_cgroups = sorted({process.cgroup for process in ancestors if process and process.pid != 1})
        self.in_place = places.by_rule(host)
        self.names: set[str] = set(self.in_place)
        self.everything = everything
        self.ids = {name: cgroup_id for cgroup_id, name in self.cgroups.rules_by_id().items()} if everything else {}
        self.names |= set(self.ids)
        self.inhabited = self.cgroups.any_in_rules()

    def look(
        self, requests: t.Sequence[Request], located: t.Sequence[Located], files: bool
    ) -> tuple[HostState, tuple[Target, ...], list[str]]:
        targets = tuple(map(self._target, requests, located))
        for target in targets:
            self.names |= {target.name} if target.name else {f"pid-{pid}" for pid in target.request.pids}
            self.names |= {name for name in (self.leaves.rule_of(one.cgroup) for one in target.processes) if name}
        self.names |= {f"pid-{pid}" for pid in self.memory.in_transit}
        limits = self.host.maps.limits() if self.host.maps and len(self.names) > MANY else None
        rules = {name: rule for name in self.names for rule in [self._rule(name, limits)] if rule}
        self.warnings += too_large(self.host)
        program, earlier = self.host.attachments.current(), self.host.is_earlier
        leaves = set(self._leaves(targets))
        refused = self._refused(leaves, program.cgroup if program else "/")
        lost = {home: tuple(self.cgroups.limits(home)) for home in {home_of(leaf, (leaf,)) for leaf in leaves}}
        stored = [target.name for target in targets if target.name] if files else []
        found = store.read(None if self.everything and files else stored)
        if found.unsafe:
            self.warnings.append(f"what is stored for the next boot is neither read nor changed: {found.unsafe}")
        inside = {process.cgroup for target in targets for process in target.processes}
        homes = {cgroup: self.leaves.home_of(cgroup) for cgroup in inside}
        state = HostState(rules, self.memory, program, lost, earlier, found, self.leaves.rules, refused, homes)
        return state, targets, self.warnings

    def _leaves(self, targets: t.Iterable[Target]) -> t.Iterator[str]:
        """The leaves that the processes of targets would be kept in."""
        for target in targets:
            if target.request.present and target.name:
                homes = {self.leaves.home_of(process.cgroup) for process in target.processes}
                yield from (leaf_for(home, target.name) for home in homes if own_rule(home) is None)

    def _refused(self, leaves: t.Iterable[str], attached_to: str) -> dict[str, NoLeaf]:
        found = {leaf: self.leaves.refusal(leaf, attached_to) for leaf in leaves}
        return {leaf: why for leaf, why in found.items() if why is not None}

    def _rule(self, name: str, limits: t.Mapping[int, t.Any] | None) -> Rule | None:
        cgroup = self.cgroups.rule_cgroup(name)
        cgroup_id = self.ids.get(name) or self.cgroups.identifier(cgroup)
        if cgroup_id is None:
            return None
        limit = None
        if self.host.maps:
            limit = self.host.maps.limit(cgroup_id) if limits is None else limits.get(cgroup_id)
        stored = self.in_place.get(name, ())
        patterns = tuple(sorted({place.pattern for place in stored}))
        leaves = self.leaves.occupied(name)
        own = self.cgroups.pids(cgroup) if self.inhabited else ()
        pids = {*own, *(pid for inside in leaves.values() for pid in inside)}
        in_place = InPlace(each=any(place.each for place in stored))
        return Rule(name, cgroup_id, limit, patterns, tuple(sorted(pids)), in_place, leaves)

    def _target(self, request: Request, located: Located) -> Target:
        with _named(request):
            name, patterns, named = self._place(request, located)
            living, dead, matched, skipped = self._processes(request)
        chosen = name is not None or request.cgroup_id is not None or request.last
        automatic = request.present and not chosen and len(request.pids) == 1
        if automatic:
            name = f"pid-{request.pids[0]}"
        return Target(request, name, automatic, patterns, living, matched, dead, skipped, named)

    def _place(self, request: Request, located: Located) -> tuple[str | None, tuple[str, ...], tuple[StoredPlace, ...]]:
        """The rule's name; the patterns of what is to be limited in place; and by what names some of it was given."""
        name = request.name
        if request.cgroup_id is not None:
            path = self.host.path_of(request.cgroup_id)
            name = own_rule(path) if path else None
            if name and self.cgroups.identifier(self.cgroups.rule_cgroup(name)) != request.cgroup_id:
                name = None
        if request.last:
            name = (
                self.memory.last
                if self.memory.last and self.cgroups.exists(self.cgroups.rule_cgroup(self.memory.last))
                else None
            )
        patterns = []
        for given in request.cgroup_paths:
            path = self.cgroups.relative("cgroup_paths:", given)
            if path == MANAGED or path.startswith(f"{MANAGED}/"):
                name = self._own_cgroup(request, name, path)
            else:
                patterns.append(normal("cgroup_paths:", path))
        named, warnings = located
        patterns += [place.path for place in named]
        self.warnings += [warning for warning in warnings if warning not in self.warnings]
        if patterns and name is None:
            raise LimiterError(
                "bad_options",
                f"{request.where}{patterns[0]} is limited in place",
                "that needs the name of a rule",
                "Add name",
            )
        if request.present:
            fresh = set(patterns) - {place.pattern for place in self.in_place.get(name or "", ())}
            for pattern in patterns:
                self._check_no_leaf(request, pattern)
            for pattern in sorted(fresh if not request.everything else ()):
                self._check_own_connection(request, pattern)
            for pattern in self._to_be_checked(request, name, patterns):
                self._check_each(request, pattern)
        return name, tuple(sorted(set(patterns))), tuple(named)

    def _to_be_checked(self, request: Request, name: str | None, patterns: t.Sequence[str]) -> list[str]:
        """Those among a rule's patterns that will give each cgroup a budget, and have not done so until now."""
        there = {place.pattern: place.each for place in self.in_place.get(name or "", ())}
        before = InPlace(each=any(there.values()) and not self.everything)
        each = wanted_in_place(request.given, before).each
        kept = () if self.everything else there
        return [pattern for pattern in sorted({*patterns, *kept}) if each and not there.get(pattern)]

    def _check_no_leaf(self, request: Request, pattern: str) -> None:
        if pattern.rpartition("/")[2].startswith(PREFIX):
            raise LimiterError(
                "bad_cgroup_path",
                f"{request.where}cgroup_paths: {pattern} is not limited in place",
                f"cgroups whose names begin with {PREFIX} are made for the processes of rules",
                "Limit the cgroup above it",
            )

    def _check_own_connection(self, request: Request, pattern: str) -> None:
        """What the task itself is in, and what leads to this host, is limited only by who says so."""
        names = parse("cgroup_paths", pattern).names
        for cgroup in (*_WHERE_CONNECTIONS_END, *self.own_cgroups):
            above = cgroup.strip("/").split("/") if cgroup != "/" else []
            if len(names) <= len(above) and all(map(is_name, names, above)):
                raise LimiterError(
                    "holds_connection",
                    f"{request.where}{pattern} is refused",
                    f"it holds {cgroup}, and with it the connection that this task came by, or others like it",
                    "Limit something below it, or add everything: true if that is meant",
                )

    def _check_each(self, request: Request, pattern: str) -> None:
        """Budgets are for cgroups that only root makes: users could make as many as they want."""
        parsed = parse("cgroup_paths", pattern)
        above = [parsed._replace(names=parsed.names[:length]) for length in range(len(parsed.names))]
        others = [
            cgroup for part in above for cgroup in self.cgroups.matching(part) if not self.cgroups.is_roots(cgroup)
        ]
        if others or not is_confined(parsed):
            raise LimiterError(
                "unsafe_each",
                f"{request.where}each with {pattern} is refused",
                f"{others[0] if others else 'what is below user@UID.service'} belongs to a user, who could make any "
                "number of cgroups there, with a budget for each",
                "Name cgroups that only root can make, or leave each out",
            )

    def _own_cgroup(self, request: Request, given: str | None, path: str) -> str:
        name = own_rule(path)
        if name is None or path != self.cgroups.rule_cgroup(name):
            raise LimiterError(
                "bad_cgroup_path",
                f"{request.where}cgroup_paths: {path} is not a rule's cgroup",
                f"rules have their cgroups directly below {MANAGED}",
                f"Give {MANAGED}/<name>, or a cgroup elsewhere",
            )
        if request.present:
            check_rule_name(f"{request.where}cgroup_paths", name)
        if given not in (None, name):
            raise LimiterError(
                "bad_options",
                f"{request.where}cgroup_paths and name disagree",
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
            selected = self.selections[request.selector]
            self._add(selected.pids, chosen, skipped, selected.pids)
            skipped.update({**dict.fromkeys(selected.slow, _SLOW), **dict.fromkeys(selected.held_up, _HELD_UP)})
            self.warnings += undecided(request, self.selections)
        matched = tuple(chosen)
        if request.children and chosen:
            self._add(processes.descendants(list(chosen)), chosen, skipped)
        return tuple(chosen.values()), tuple(dead), matched, tuple(Skipped(pid, why) for pid, why in skipped.items())

    def _add(
        self,
        pids: t.Iterable[int],
        chosen: dict[int, Process],
        skipped: dict[int, str],
        start_times: t.Mapping[int, int] | None = None,
    ) -> None:
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
                known = start_times[pid] if start_times else None
                if process is None or known not in (None, process.start_time):  # the number was used again
                    continue
                if process.cgroup.startswith("/.."):  # the host's, where this runs in a container that sees them
                    skipped[pid] = "outside of this cgroup namespace"
                else:
                    chosen[pid] = process
