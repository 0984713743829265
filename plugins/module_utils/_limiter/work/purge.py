# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_purge removes: found first, returned as it is, and removed unless it is check mode."""

from __future__ import annotations

import os
import typing as t

from ..core import catalog
from ..core.errors import LimiterError
from ..core.leaves import home_of
from ..core.model import HostState, Rule, Store
from ..core.names import is_automatic
from ..core.plan import Plan, plan_removal
from ..host import memory, store
from ..host.bpf import budgets, pins
from ..host.groups import processes
from .apply import apply
from .host import Host
from .lost import alone
from .observe import observe
from .program import unload


class Remains(t.NamedTuple):
    """Entries in the maps that speak of cgroups that are gone."""

    rules: tuple[int, ...]
    members: tuple[int, ...]
    leaves: tuple[str, ...] = ()  # paths of leaves that no rule uses any more


class Purge(t.NamedTuple):
    """What is removed, or would be."""

    plan: Plan
    pids: tuple[int, ...]  # processes that go back
    remains: Remains
    program: str | None  # the program's identity
    pins: tuple[str, ...]
    stored: tuple[str, ...]  # files of rules
    paths: tuple[str, ...]
    warnings: tuple[str, ...]


def find(host: Host, scope: str) -> tuple[Purge, HostState]:
    """What there is to remove in a scope: ``stale``, ``rules`` or ``all``. Touches nothing."""
    state, _targets, warnings = observe(host, (), everything=True)
    if scope == "stale":  # what is half made was still wanted, and is what the next boot makes
        state = state._replace(store=Store())
    names = [name for name, rule in sorted(state.rules.items()) if scope != "stale" or is_stale(state, rule)]
    made = plan_removal(state, [*names, *(name for name in sorted(state.store.files) if name not in names)])
    everything = scope == "all"
    paths, left = _paths(host) if everything else ([], [])
    remains = _remains(host, names, everything)
    pids = {pid for name in names for pid in state.rules[name].pids}
    pids.update(pid for leaf in remains.leaves for pid in host.cgroups.pids(leaf))
    return Purge(
        plan=made,
        pids=tuple(sorted(pids)),
        remains=remains,
        program=state.program.identity if state.program and everything else None,
        pins=tuple(name for name in catalog.PINS if pins.exists(name)) if everything else (),
        stored=tuple(store.path_of(name) for name in sorted(state.store.files.keys() - made.files.keys())),
        paths=tuple(paths),
        warnings=(*warnings, *made.warnings, *left),
    ), state


def _paths(host: Host) -> tuple[list[str], list[str]]:
    """Directories and files that go with everything, and warnings of what stays since it is not ours alone."""
    paths, left = [path for path in (memory.FILE, memory.BROKEN_FILE) if os.path.exists(path)], []
    managed = host.cgroups.absolute(host.cgroups.managed)
    inside = host.cgroups.pids(host.cgroups.managed, recursive=False)
    if inside:
        left.append(f"{managed} stays: somebody put processes there: {', '.join(str(pid) for pid in inside)}")
    elif host.cgroups.exists(host.cgroups.managed):
        paths.append(managed)
    foreign = pins.foreign()
    left += [f"{pins.PIN_DIR}/{name} was not made by this collection and stays" for name in foreign]
    if not foreign and os.path.isdir(pins.directory()):
        paths.append(pins.PIN_DIR)
    return paths, left


def is_stale(state: HostState, rule: Rule) -> bool:
    """Half made, or named after a process that is gone and left nobody behind."""
    if rule.limit is None:
        return True
    if rule.pids or not is_automatic(rule.name):
        return False
    process = processes.read(int(rule.name[len("pid-") :]))
    remembered = state.memory.automatic.get(rule.name)
    return process is None or remembered is None or remembered != process.start_time


def _remains(host: Host, removed: t.Container[str], everything: bool) -> Remains:
    """What is left beside the rules; the leaves of those that are ``removed`` go with them."""
    known = host.leaves.rules.items()
    leaves = [leaf for leaf, name in known if name not in removed and not host.cgroups.pids(leaf)]
    leaves += [*host.leaves.orphans, *host.leaves.forgotten(guess=everything)]
    if host.maps is None:
        return Remains((), (), tuple(sorted(leaves)))
    members = {**host.maps.members(), **host.maps.leaves()}
    rules = {*host.maps.limits(), *host.maps.state_rules(), *members.values()}
    gone = {rule for rule in rules if host.path_of(rule) is None}
    lost = sorted(member for member, rule in members.items() if rule not in gone and host.path_of(member) is None)
    return Remains(tuple(sorted(gone)), tuple(lost), tuple(sorted(leaves)))


def carry_out(host: Host, purge: Purge, state: HostState, everything: bool) -> list[str]:
    """Remove it; ``everything`` also forgets what was remembered about processes. Returns warnings."""
    applied = apply(host, purge.plan, state.memory)
    warnings = list(applied.warnings)
    for leaf in purge.remains.leaves:
        warnings += _remove_leaf(host, leaf)
    if host.maps is not None:
        for rule in purge.remains.rules:
            host.maps.forget(rule)
        if purge.remains.rules:
            budgets.remove(host.maps, purge.remains.rules)
        for member, rule in {**host.maps.members(), **host.maps.leaves()}.items():
            if rule in purge.remains.rules or member in purge.remains.members:
                host.maps.remove_member(member)
        if any(purge.remains):
            host.maps.bump_generation()
    if everything:
        for other in host.lost.others:
            with alone(host.libbpf, other):
                warnings += unload(Host(host.cgroups, host.libbpf, host.run_command, any_version=True))
        warnings += unload(host)
        pins.remove()
        host.cgroups.remove_managed()
        memory.remove()
        store.remove_directory()
    return warnings


def _remove_leaf(host: Host, leaf: str) -> list[str]:
    """Removes a leaf that no rule uses. Who is in it goes to the cgroup above it, or stays there. Returns warnings."""
    try:
        for pid in host.cgroups.pids(leaf):
            try:
                host.cgroups.move(pid, home_of(leaf, (leaf,)))
            except LimiterError as error:
                if error.kind != "dead_process":
                    raise
        host.leaves.remove(leaf)
    except LimiterError as error:
        host.leaves.unlimit(leaf)
        return [f"{error}. {leaf} stays, and limits nothing"]
    return []
