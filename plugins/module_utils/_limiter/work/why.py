# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a process is as slow as it is: the rules that hold for its cgroup, and for the sockets that it has."""

from __future__ import annotations

import typing as t

from ..core import layout, why
from ..core.measured import Connections, Facts
from ..core.model import Process, Rule
from ..core.pacing import Ability
from ..host import clock
from ..host.bpf import budgets
from ..host.groups import processes
from . import places
from .host import Host
from .use import Use, Watched, measure, names_of_states

_MOST = 1000  # connections of a process


def explain(
    host: Host, process: Process, rules: t.Sequence[Rule], every: t.Mapping[str, Rule], can: Ability, most: int
) -> tuple[Use, Facts]:
    """``rules``: those that hold for its cgroup, the outermost first. Sockets that it has from elsewhere bring theirs,
    of ``every`` rule.
    """
    named = {"pid": process.pid, "command": processes.command(process.pid), "cgroup": process.cgroup}
    maps = host.maps
    watched = Watched(host, _MOST, process.pid) if maps and maps.schema == layout.SCHEMA else None
    chosen = _way_up(host, process.cgroup)
    if watched and maps:
        watched.look(None)
        sockets = set(watched.found.kept)
        chosen |= sockets
        owners = {key: rule for rule, found in budgets.busy(maps, clock.now()).items() for key in found}
        ids = {owners.get(state, state) for state in sockets} - {rule.cgroup_id for rule in rules}
        rules = [*rules, *(rule for _name, rule in sorted(every.items()) if rule.cgroup_id in ids)]
    if not rules or maps is None:
        return Use([], []), why.about(named, [], can, Connections(), {})
    second = measure(host, rules, can, most, watched, chosen)
    names = names_of_states(host.cgroups.rules_by_id(), second.after)
    found = watched.of(second.states) if watched else Connections()
    return second.use, why.about(named, second.use.rules, can, found, names)


def _way_up(host: Host, cgroup: str) -> set[int]:
    """The ids of a cgroup and of all above it."""
    return {number for path in places.way_up(cgroup) for number in [host.cgroups.identifier(path)] if number}
