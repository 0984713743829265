# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rule modules do between their options and their result: observe, plan, and apply unless it is check mode."""

from __future__ import annotations

import functools
import os
import typing as t

from ..core.errors import LimiterError
from ..core.leaves import MANAGED, unit_of
from ..core.model import Request, Rule, Target
from ..core.plan import Plan, carried_out, plan
from ..core.policy import PERSISTENT
from . import boot_unit, places
from .apply import Applied, apply
from .facts import Facts, counter, facts, socket_association
from .host import Host, RunCommand
from .observe import locate, observe, select, too_large, undecided
from .program import would_load_if_needed

_MOST_ASKED = 100  # cgroups of one pattern: each takes a fifth of a millisecond, with the host locked


class Done(t.NamedTuple):
    plan: Plan
    warnings: tuple[str, ...]
    unenforced: tuple[str, ...]  # why rules that are there do not limit, or not all; of the warnings
    program: tuple[str, ...]  # what was done, or would be, to have a program loaded
    before: t.Mapping[str, Facts]  # the rules that change, as they were
    after: t.Mapping[str, Facts]  # and as they are
    homes: t.Mapping[str, str]  # of the cgroups that processes were found in

    @property
    def changed(self) -> bool:
        return bool(self.plan.actions or self.program)


def enforce(
    run_command: RunCommand,
    requests: t.Sequence[Request],
    check: bool,
    everything: bool = False,
    purge: bool = False,
    before: t.Sequence[Plan] = (),
) -> Done:
    """One observation, one plan, one application for all requests. Raises LimiterError; then nothing was changed.

    ``before``: what check mode has planned for ``everything`` so far, and would have been done by now.
    """
    selections, located = select(requests), locate(requests)
    with Host.opened(run_command, changes=not check) as host:
        state, targets, seen = observe(host, requests, everything, selections, located)
        state = functools.reduce(carried_out, before if check else (), state)
        made = plan(state, targets, purge, whole=everything)
        # Of a list only what changed is told; of a single rule also what stays as it was.
        names = dict.fromkeys([*made.changed, *(target.name for target in targets if target.name and not everything)])
        files, count = state.store.files, counter(host, len(names))
        previous = {name: facts(host, state.rules[name], files, count) for name in names if name in state.rules}
        if check:
            applied = Applied((), tuple(would_load_if_needed(host)) if made.loads_program else ())
        else:
            applied = apply(host, made, state.memory)
        files, count = made.files, counter(host, len(names))
        after = {name: facts(host, made.rules[name], files, count, not check) for name in names if name in made.rules}
        unknown = [text for request in requests if request.present for text in undecided(request, selections)]
        idle = (*unenforced(host, made, check), *unknown, *applied.unlimited)
    lost = host.lost
    told = [*lost.warnings(check), *seen, *made.warnings, *applied.warnings, *idle, *too_large(host)]
    warnings = dict.fromkeys([*told, *not_made_at_boot(run_command, requests)])
    made = made._replace(before=lost.before + made.before, after=lost.after + made.after)
    return Done(made, tuple(warnings), idle, (*lost.actions, *applied.program), previous, after, state.homes)


def unenforced(host: Host, made: Plan, check: bool) -> list[str]:
    """Why the targets are not limited though their rules are there, or will be.

    No failure: what the rules do see is limited (connections that are older, say), and they are as they were wanted.
    """
    present = [rule for rule in (made.rules.get(target.name or "") for target in made.targets) if rule]
    lost = socket_association(host, [rule.name for rule in present], locked=not check) if present else None
    warning = lost.warning(os.uname().release) if lost else None
    blind = places.is_blind(host) and any(rule.places for rule in present)
    return [*([warning] if warning else []), *([places.BLIND] if blind else []), *_unseen(host, present)]


def not_made_at_boot(run_command: RunCommand, requests: t.Iterable[Request]) -> list[str]:
    """A warning for who wants a rule to survive a reboot, where nothing will make it again."""
    if not any(request.given.get(PERSISTENT.name) for request in requests):
        return []
    problem = boot_unit.problem(boot_unit.look(run_command))
    return [] if problem is None else [problem]


def _unseen(host: Host, present: t.Sequence[Rule]) -> list[str]:
    """What the program does not see: it is attached elsewhere, or switched off below.

    A program that someone attaches without BPF_F_ALLOW_MULTI runs instead of those above it.
    """
    if host.attachments.current() is None:
        return []
    cgroups = {cgroup for rule in present for pattern in rule.places for cgroup in _sample(host, pattern)}
    cgroups.update(leaf for rule in present for leaf in rule.leaves)
    if any(rule.without(_in_leaves(rule)).pids or not (rule.places or rule.leaves) for rule in present):
        cgroups.add(MANAGED)
    return [reason for reason in (_why_unseen(host, cgroup) for cgroup in sorted(cgroups)) if reason]


def _sample(host: Host, pattern: str) -> list[str]:
    """What a pattern names; of very many, which users can make, some, and the cgroup that all of them are below."""
    found = sorted(places.cgroups_of(host, [pattern]))
    if len(found) <= _MOST_ASKED:
        return found
    above = pattern.partition("*")[0].rpartition("/")[0] or "/"
    return [above, *found[:_MOST_ASKED]]


def _in_leaves(rule: Rule) -> set[int]:
    return {pid for inside in rule.leaves.values() for pid in inside}


def _why_unseen(host: Host, cgroup: str) -> str | None:
    """Raises nothing: what was to be done is done, so the task may not fail any more."""
    try:
        runs = host.attachments.runs_for(cgroup)
    except LimiterError as error:
        # Not made yet, in check mode; or a service that is restarted meanwhile.
        gone = error.kind == "no_cgroup"
        return None if gone else f"it is not known whether the program runs for {cgroup}: {error}"
    if runs:
        return None
    return (
        f"the program does not run for {cgroup}: nothing limits it. speed_limit_info with cgroup_path={cgroup} and "
        "gather=program,hook shows where it is attached, and what runs instead"
    )


def selection(target: Target, homes: t.Mapping[str, str]) -> Facts:
    """What a request matched and what it never takes, for the result.

    Not called ``skipped``: Ansible takes a result with that key for a task that did not run.
    """
    return {
        "matched": list(target.matched),
        "matched_units": _units(target, homes),
        "skipped_processes": [skipped._asdict() for skipped in target.skipped],
    }


def _units(target: Target, homes: t.Mapping[str, str]) -> list[Facts]:
    """Where the processes are that a request matched: who selects them by a name sees whose they are."""
    matched = set(target.matched)
    inside: dict[str, list[int]] = {}
    for process in target.processes:
        if process.pid in matched:
            inside.setdefault(homes[process.cgroup], []).append(process.pid)
    return [{"unit": unit_of(home), "cgroup": home, "pids": pids} for home, pids in sorted(inside.items())]
