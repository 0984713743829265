# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules return of a rule, and whether new sockets belong to cgroups."""

from __future__ import annotations

import contextlib
import typing as t

from ..core import policy
from ..core.association import Association
from ..core.layout import State
from ..core.model import File, Rule, StoredRule
from ..host.bpf import budgets
from ..host.lock import host_lock
from ..host.sockets import association
from . import places
from .host import Host

Facts = dict[str, t.Any]
Count = t.Callable[[t.Optional[int]], budgets.Counted]  # of a rule


def socket_association(host: Host, rules: t.Iterable[str], locked: bool) -> Association:
    """Whether new sockets belong to a cgroup; it may be tried in those of these rules. ``locked``: we hold the lock."""
    guard = contextlib.nullcontext if locked else _lock_if_free
    return association.look(host.cgroups, [host.cgroups.rule_cgroup(name) for name in rules], guard)


def _lock_if_free() -> contextlib.AbstractContextManager[None]:
    return host_lock(0.0)


def counter(host: Host, rules: int, state: t.Callable[[int], State | None] | None = None) -> Count:
    """Tells what each of so many rules has counted by now. The budgets of cgroups are read once, for all. ``state``: as
    `Maps.state`, where that was read already.
    """
    state = state or (host.maps.states(rules) if host.maps else lambda rule: None)
    found = budgets.counted(host.maps) if host.maps else {}

    def count(rule: int | None) -> budgets.Counted:
        if rule in found:
            return found[rule]
        return budgets.of_rule(state(rule) if rule else None)

    return count


def facts(host: Host, rule: Rule, files: t.Mapping[str, File], count: Count, look: bool = False) -> Facts:
    """A rule as modules return it. A new cgroup's id is None unless ``look`` says that it has been made."""
    cgroup = host.cgroups.rule_cgroup(rule.name)
    cgroup_id = host.cgroups.identifier(cgroup) if look else rule.cgroup_id
    counted = count(cgroup_id)
    leaves = host.leaves.of(rule.name) if look else sorted(rule.leaves)
    return {
        "name": rule.name,
        **policy.facts(rule.limit, rule.in_place, isinstance(files.get(rule.name), StoredRule)),
        "cgroup_path": host.cgroups.absolute(cgroup),
        "cgroup_id": cgroup_id,
        # Nothing is charged to a rule that a killed task has left unfinished.
        "members": [host.cgroups.absolute(member) for member in (cgroup, *rule.places, *leaves) if rule.limit],
        "waiting": [
            host.cgroups.absolute(pattern) for pattern in rule.places if not places.cgroups_of(host, [pattern])
        ],
        "pids": sorted(host.leaves.pids(rule.name)) if look and rule.pids else list(rule.pids),
        "counters": counted.counters.about(),
        "budgets": counted.about() if rule.in_place.each else None,
    }
