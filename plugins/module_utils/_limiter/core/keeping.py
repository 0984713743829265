# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the processes of a cgroup are kept when a rule takes them, and what they lose where that is not below it."""

from __future__ import annotations

import typing as t

from . import diff
from .actions import Take
from .errors import LimiterError
from .layout import MAX_NESTED
from .leaves import MANAGED, NoLeaf, home_of, leaf_for, own_rule
from .model import HostState, Process, Rule, Target
from .patterns import Node, limits_on, rules_on
from .places import Places, graph_of


class Keeping:
    """Decides for all rules of a plan. ``warnings`` gets a warning where somebody loses something."""

    def __init__(self, state: HostState, warnings: list[str]) -> None:
        self._state, self._warnings = state, warnings
        self._compiled: tuple[Places, list[Node]] = {}, []
        self.remarks: dict[str, dict[str, None]] = {}  # for the diff, by rule

    def graph(self, places: Places) -> list[Node]:
        """Compiled once: that takes long."""
        if self._compiled[0] != places:
            self._compiled = places, graph_of(places)
        return self._compiled[1]

    def take(self, target: Target, moved: t.Iterable[Process], rules: t.Mapping[str, Rule], places: Places) -> Take:
        """The action that takes processes into a target's rule: where those of each cgroup are kept in it.

        ``places`` are those that all ``rules`` will have.
        """
        request, name, graph = target.request, target.name or "", self.graph(places)
        inside: dict[str, list[Process]] = {}
        for process in moved:
            inside.setdefault(process.cgroup, []).append(process)
        if request.selector is not None:
            for cgroup, found in sorted(inside.items()):
                self._remark(name, f"takes {diff.count(found)} of {self._state.home_of(cgroup)}")
        kept = {cgroup: self._keep(cgroup, name, request.where, rules, graph) for cgroup in sorted(inside)}
        return Take(name, tuple(moved), request.pids, request.children, kept)

    def _keep(self, cgroup: str, name: str, where: str, rules: t.Mapping[str, Rule], graph: t.Sequence[Node]) -> str:
        own, home = f"{MANAGED}/{name}", self._state.home_of(cgroup)
        if home == "/" or own_rule(home) is not None:
            return own
        leaf = leaf_for(home, name)
        above = _above(graph, home, rules)
        refused = self._state.refused.get(leaf)
        if refused is None and len(_with(above, name)) > MAX_NESTED:
            why = f"{MAX_NESTED} rules hold there already"
            refused = NoLeaf(why, f"take one of them out: {', '.join(dict.fromkeys(above))}", in_place=False)
        if refused is None:
            return leaf
        still = (name, *_above(graph, own, rules))
        left = [rules[rule] for rule in dict.fromkeys(above) if rule not in still]
        lost = diff.lost(left, self._state.lost_limits.get(home, ()))
        remark = f"takes processes out of {home}: {lost} no longer hold for them"
        self._remark(name, remark)
        ways = [refused.mend] if refused.mend else []
        holder = next(reversed(rules_on(graph, home)), None)
        if holder is not None:
            ways.append(f"change the rate of {holder!r}")
        elif refused.in_place:
            ways.append(f"limit that cgroup in place: cgroup_paths={home}")
        self._warnings.append(
            f"{where}the rule {name!r} {remark}. They are kept in its own cgroup, because {refused.why}. "
            f"To keep those, {', or '.join(ways)}"
        )
        return own

    def _remark(self, name: str, remark: str) -> None:
        self.remarks.setdefault(name, {})[remark] = None

    def check_nesting(self, rules: t.Mapping[str, Rule], places: Places) -> None:
        """Raises LimiterError ``too_many_rules`` if a leaf would be under more rules than the program looks for."""
        graph, removed = self.graph(places), self._state.rules.keys() - rules.keys()
        leaves = {leaf: name for leaf, name in self._state.leaves.items() if name not in removed}
        leaves.update((leaf, rule.name) for rule in rules.values() for leaf in rule.leaves)
        for leaf, name in sorted(leaves.items()):
            found = _with(_above(graph, home_of(leaf, leaves), rules), name)
            if len(found) > MAX_NESTED:
                raise LimiterError(
                    "too_many_rules",
                    f"{leaf} would be under {len(found)} rules: {', '.join(found)}",
                    f"at most {MAX_NESTED} can hold at once",
                    "Nothing was changed. Take one of them out",
                )


def _above(graph: t.Sequence[Node], cgroup: str, rules: t.Mapping[str, Rule]) -> list[str]:
    """The rules that hold in place for a cgroup, the outermost first; one with `each` as often as it has budgets."""
    return limits_on(graph, cgroup, {name for name, rule in rules.items() if rule.in_place.each})


def _with(above: t.Sequence[str], name: str) -> list[str]:
    """And the rule whose leaf is below that cgroup."""
    return [*above, *([] if name in above else [name])]
