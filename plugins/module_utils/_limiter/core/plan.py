# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps from what is to what is wanted. Pure: check mode's answer is the plan itself."""

from __future__ import annotations

import typing as t

from . import actions as do
from . import diff, policy
from .actions import Action, LoadProgram, MakeRule, Release, RemoveRule, SetLimit, SetPlaces
from .claims import Claims
from .errors import LimiterError
from .keeping import Keeping
from .leaves import own_rule, rule_of
from .model import File, HostState, Process, Program, Rule, Target
from .names import is_automatic
from .places import Place, taken
from .policy import InPlace, Limit
from .storing import Storing


class Plan(t.NamedTuple):
    actions: tuple[Action, ...]
    targets: tuple[Target, ...]
    rules: t.Mapping[str, Rule]  # as they will be
    files: t.Mapping[str, File]  # what is stored for the next boot, as it will be
    changed: tuple[str, ...]  # names of the rules that change, or whose files do
    kept: tuple[str, ...]  # names of the rules that a purge spared
    before: str
    after: str
    warnings: tuple[str, ...]

    @property
    def loads_program(self) -> bool:
        return any(isinstance(action, LoadProgram) for action in self.actions)


def plan(state: HostState, targets: t.Sequence[Target], purge: bool = False, whole: bool = False) -> Plan:
    """The steps that bring the host to what the targets want. ``whole``: a rule has the places that its target names,
    and no others; else it keeps those that it has. ``purge``: rules that no target names are removed.

    Raises LimiterError before anything is touched: ``dead_process``, ``stale_rule``, ``rate_needed``, ``member_taken``,
    ``ambiguous_patterns``, ``too_many_patterns``, ``too_many_rules``.
    """
    draft = _Draft(state, whole)
    others = sorted({*state.rules, *state.store.files} - _names(targets))
    # Removals are planned first, so that their cgroups are free for new rules, but done last (see finish).
    for target in targets:
        if not target.request.present:
            draft.absent(target)
    if purge:
        for name in others:
            if not is_automatic(name):
                draft.remove(name)
    wanted = [target for target in targets if target.request.present]
    for target in wanted:
        draft.present(target)
    # Where a process is kept depends on the places of all rules.
    for target in wanted:
        draft.take(target)
    return draft.finish(targets, others if purge else ())


def carried_out(state: HostState, done: Plan) -> HostState:
    """The state that a plan leads to, as far as the next plan of whole rules looks at it. It is of all rules."""
    program = Program("planned", "/", 0, 0) if done.loads_program else state.program
    return state._replace(
        rules=done.rules,
        program=program,
        earlier=state.earlier and not done.loads_program,
        store=state.store._replace(files=done.files),
    )


def _names(targets: t.Sequence[Target]) -> set[str]:
    """The names of the targets' rules. Raises LimiterError if one comes twice."""
    names: set[str] = set()
    for target in targets:
        if target.name in names:
            raise LimiterError(
                "bad_options",
                f"{target.request.where}the rule {target.name!r} is given twice",
                "",
                "Give each rule once",
            )
        if target.name is not None:
            names.add(target.name)
    return names


def plan_removal(state: HostState, names: t.Sequence[str]) -> Plan:
    """The steps that remove these rules, with what is stored of them."""
    draft = _Draft(state)
    for name in names:
        draft.remove(name)
    return draft.finish((), ())


class _Draft:
    """The rules as they will be, and the steps that lead there."""

    def __init__(self, state: HostState, whole: bool = False) -> None:
        self.state, self.whole = state, whole
        self.rules = dict(state.rules)
        self.wanted_by: dict[tuple[str, str], str] = {}  # pattern, rule -> which target asks for it, for errors
        self.actions: list[Action] = []
        self.touched: dict[str, None] = {}
        self.warnings: list[str] = []
        self.storing = Storing(state.store, self.warnings)
        self.keeping = Keeping(state, self.warnings)
        self.claims = Claims(self.warnings)

    def _do(self, action: Action, rule: Rule) -> None:
        self.actions.append(action)
        self._change(rule)

    def _change(self, rule: Rule) -> None:
        """The rule will be so. `finish` has the action that sets the places of all."""
        # Moved to the end if it is there already: `last` selects the last one.
        self.touched.pop(rule.name, None)
        self.touched[rule.name] = None
        self.rules[rule.name] = rule

    def present(self, target: Target) -> None:
        request, name = target.request, target.name
        if name is None:
            raise LimiterError(
                "no_rule",
                f"{request.where}there is no such rule",
                "no rule has that id, or no rule was set yet",
                "Give name and rate",
            )
        if target.dead:
            pids = ", ".join(str(pid) for pid in target.dead)
            raise LimiterError(
                "dead_process",
                f"{request.where}process {pids} does not exist",
                "",
                "Nothing was changed. Give a living process",
            )
        if target.automatic:
            self._make_room(target)
        rule = self.rules.get(name)
        if rule is None and is_automatic(name) and request.pids != (int(name[len("pid-") :]),):
            raise LimiterError(
                "no_rule",
                f"{request.where}there is no rule {name!r}",
                "a name like that is for the rule of that very process",
                "Give pids with that process and no name, or choose another name",
            )
        limit = self._limit(target, rule)
        if rule is None or rule.limit is None:
            start_time = target.processes[0].start_time if target.automatic else None
            old = rule or Rule(name, None, None, (), ())
            rule = old._replace(limit=limit)
            self._do(MakeRule(name, limit, start_time), rule)
        self._set_places(target, rule)
        rule = self.rules[name]
        if rule.limit != limit:
            self._do(SetLimit(name, limit), rule._replace(limit=limit))
        self.storing.follow(target, self.rules.get(name))

    def _limit(self, target: Target, rule: Rule | None) -> Limit:
        values = policy.wanted(target.request.given, rule.limit if rule else None)
        for name, value in values.items():
            if value is None:
                raise LimiterError(
                    f"{name}_needed",
                    f"{target.request.where}{name} is needed",
                    f"the rule {target.name!r} does not exist yet",
                    f"Add {name}",
                )
        return Limit(**t.cast("dict[str, int]", values))

    def _make_room(self, target: Target) -> None:
        """Removes the automatic rule of an earlier process with the same pid: it is never inherited."""
        rule = self.rules.get(target.name or "")
        if rule is None or not self._stale(rule, target):
            return
        if rule.pids:
            raise LimiterError(
                "stale_rule",
                f"{target.request.where}the rule {rule.name!r} belongs to an earlier process with that number",
                f"{len(rule.pids)} of its descendants still run in it",
                "Give the new rule a name, or remove the old one with name and state=absent",
            )
        self.remove(rule.name)

    def _stale(self, rule: Rule, target: Target) -> bool:
        process = target.processes[0] if target.processes else None
        remembered = self.state.memory.automatic.get(rule.name)
        if process is None:
            return True
        return process.pid not in rule.pids if remembered is None else remembered != process.start_time

    def _set_places(self, target: Target, rule: Rule) -> None:
        """Adds a target's places to its rule; in a list of rules, these are all that it has."""
        request = target.request
        places = target.places if self.whole else tuple(sorted({*rule.places, *target.places}))
        in_place = policy.wanted_in_place(request.given, InPlace() if self.whole else rule.in_place)
        if in_place.each and not places:
            raise LimiterError(
                "bad_options",
                f"{request.where}each is for cgroups that are limited in place, and the rule {rule.name!r} has none",
                "processes share one budget",
                "Add units, users, containers or cgroup_paths, or leave each out",
            )
        for pattern in target.places:
            self.wanted_by[pattern, rule.name] = request.where
        if (places, in_place) != (rule.places, rule.in_place):
            self._change(rule._replace(places=places, in_place=in_place))

    def take(self, target: Target) -> None:
        """The processes of a target that is present go into its rule, which is made already."""
        request, rule = target.request, self.rules[target.name or ""]
        if request.takes_processes and not target.matched:
            self.warnings.append(
                f"{request.where}no process matches; the rule {rule.name!r} takes none now, and none that is started "
                "later"
            )
        wanted = self.claims.granted(target, rule.name)
        moved = tuple(process for process in wanted if self._rule_of(process) != rule.name)
        if not moved:
            return
        pids = {process.pid for process in moved}
        for other in sorted({self._rule_of(process) or "" for process in moved} - {""}):
            self._forget(other, pids)
        action = self.keeping.take(target, moved, self.rules, self._of_rules(self.rules))
        leaves = {leaf: set(inside) for leaf, inside in rule.leaves.items()}
        for process in moved:
            kept = action.kept[process.cgroup]
            if own_rule(kept) is None:
                leaves.setdefault(kept, set()).add(process.pid)
        rule = rule._replace(
            pids=tuple(sorted({*rule.pids, *pids})),
            leaves={leaf: tuple(sorted(inside)) for leaf, inside in leaves.items()},
        )
        self._do(action._replace(beside=self.claims.of_others(rule.name)), rule)

    def _rule_of(self, process: Process) -> str | None:
        return rule_of(process.cgroup, self.state.leaves)

    def _forget(self, name: str, pids: set[int]) -> None:
        """Processes leave a rule for another one. An automatic rule goes with its last process (see finish)."""
        rule = self.rules.get(name)
        if rule is None:
            return
        self.rules[name] = rule.without(pids)
        self.touched[name] = None

    def absent(self, target: Target) -> None:
        request, name = target.request, target.name
        if name is None:
            # By cgroup_id or last, but there is no such rule: that selects nothing, least of all other rules.
            if request.cgroup_id is None and not request.last:
                self._release_anywhere(target)
            return
        # An empty list names nothing, least of all the whole rule.
        if not (request.takes_processes or target.places or (request.takes_places and not request.cgroup_paths)):
            self.remove(name)
            return
        if name not in self.rules:
            self.storing.leave_out(name, target.places)
            return
        rule = self.rules[name]
        left = tuple(pattern for pattern in rule.places if pattern not in target.places)
        if left != rule.places:
            self._change(rule.with_places(left))
        if request.takes_processes:
            self._release(name, {process.pid for process in target.processes if self._rule_of(process) == name})
        self.storing.follow(target, self.rules.get(name))

    def _release_anywhere(self, target: Target) -> None:
        """Absent by processes, without a rule: each goes back from whatever rule it is in, with its children there."""
        by_rule: dict[str, set[int]] = {}
        # Also those that a killed run was about to release: their parent may have left the rule already.
        named = {*target.matched, *self.state.memory.in_transit}
        meant = {self._rule_of(process) for process in target.processes if process.pid in named}
        for process in target.processes:
            name = self._rule_of(process)
            if name is not None and name in meant:
                by_rule.setdefault(name, set()).add(process.pid)
        for name, pids in by_rule.items():
            self._release(name, pids)
        living = {process.pid for process in target.processes}
        for pid in target.request.pids:
            rule = self.rules.get(f"pid-{pid}")
            # A leftover rule whose process is gone, or whose pid is another process now.
            if rule is not None and (pid not in living or pid not in rule.pids):
                self.remove(rule.name)

    def _release(self, name: str, pids: set[int]) -> None:
        rule = self.rules.get(name)
        inside = pids & set(rule.pids) if rule else set()
        if rule is None or not inside:
            return
        left = rule.without(inside)
        self._do(Release(name, tuple(sorted(inside))), left)
        if not left.pids and is_automatic(name):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Removes a rule with its places, and what is stored of it; its processes go back."""
        self.storing.forget(name)
        if self.rules.pop(name, None) is None:
            return
        self.actions.append(RemoveRule(name))
        self.touched[name] = None

    def _places(self) -> SetPlaces | None:
        """The places of all rules, if any differ from what there is.

        Raises LimiterError ``member_taken``, and as `compile_graph`.
        """
        before = self._of_rules(self.state.rules)
        wanted = self._of_rules(self.rules)
        changed = sorted(pattern for pattern in {*before, *wanted} if before.get(pattern) != wanted.get(pattern))
        # A graph names rules by their ids, which a rule that is made anew does not keep.
        remade = {action.name for action in self.actions if isinstance(action, MakeRule)}
        if not changed and not any(place.rule in remade for place in wanted.values()):
            return None
        self.keeping.check_nesting(self.rules, wanted)
        return SetPlaces(wanted, tuple(self.keeping.graph(wanted)), tuple(changed))

    def _of_rules(self, rules: t.Mapping[str, Rule]) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for rule in rules.values():
            for pattern in rule.places:
                if pattern in found:
                    wanted = [(pattern, name) for name in (rule.name, found[pattern].rule)]
                    _pattern, name = next(filter(self.wanted_by.__contains__, wanted), wanted[0])
                    owner = ({rule.name, found[pattern].rule} - {name}).pop()
                    raise taken(pattern, owner, name, self.wanted_by.get((pattern, name), ""))
                found[pattern] = Place(rule.name, rule.in_place.each)
        return found

    def finish(self, targets: t.Sequence[Target], spared: t.Iterable[str]) -> Plan:
        """The plan. Its ``kept`` has the rules among ``spared`` that still exist."""
        for name in list(self.touched):
            rule = self.rules.get(name)
            if rule and not rule.pids and is_automatic(name) and self.state.rules.get(name, rule).pids:
                self.remove(name)
        # A killed run took its last process, or made it for one that it did not take.
        for name in {f"pid-{pid}" for pid in self.state.memory.in_transit} - {target.name for target in targets}:
            if name in self.rules and not self.rules[name].pids:
                self.remove(name)
        removed = {action.name for action in self.actions if isinstance(action, RemoveRule)}
        places = self._places()
        if places is not None:
            self.actions.append(places)
        files = self.storing.changes()
        changed = tuple(
            name
            for name in dict.fromkeys([*self.touched, *files])
            if name in removed or name in files or self.state.rules.get(name) != self.rules.get(name)
        )
        replaced = "not loaded" if self.state.program is None else "of an earlier version" if self.state.earlier else ""
        loads = bool(replaced) and any(target.request.present for target in targets)
        before, after = diff.texts(
            changed,
            diff.Side(self.state.rules, self.state.store.files),
            diff.Side(self.rules, self.storing.files),
            replaced if loads else "",
            self.keeping.remarks,
        )
        first: list[Action] = [*([do.StoreRules(files)] if files else []), *([LoadProgram()] if loads else [])]
        return Plan(
            (*first, *sorted(self.actions, key=self._goes)),
            tuple(targets),
            self.rules,
            self.storing.files,
            changed,
            tuple(name for name in spared if name in self.rules),
            before,
            after,
            tuple(dict.fromkeys(self.warnings)),
        )

    def _goes(self, action: Action) -> int:
        """Removals go last, so that a failure before leaves them undone, and after the places of all rules: what a rule
        leaves is under what then holds there. But a rule that is made anew must go first.
        """
        if isinstance(action, RemoveRule):
            return 2 if action.name not in self.rules else 0
        return {SetPlaces: 1, Release: 2}.get(type(action), 0)
