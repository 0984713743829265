# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is stored is applied: when the host boots, and whenever somebody asks for it."""

from __future__ import annotations

import typing as t

from ..core import policy
from ..core.errors import LimiterError
from ..core.model import File, Refused, Request, Rule, Store, StoredRule
from ..core.request import parse_request
from ..core.stored import form
from ..generated.version import VERSION
from ..host import store
from . import boot_unit, places
from .enforce import Done, enforce
from .host import Host, RunCommand
from .program import load_what_lies_there


class Applied(t.NamedTuple):
    done: tuple[Done, ...]  # usually one
    problems: tuple[str, ...]  # why a file is not applied; each begins with its path and ends with the error's kind
    program: tuple[str, ...]  # what was done to have a program loaded
    warnings: tuple[str, ...]


def apply_stored(
    run_command: RunCommand, check: bool, cgroup: str = "/", paced: bool = True, departure: str = "auto"
) -> Applied:
    """Every stored rule is made as it is stored, all of them at once. What is bad stops nothing else.

    ``cgroup``, ``paced``, ``departure``: for the program, where none is loaded.
    Raises LimiterError where none can be applied, for the reason that all have in common.
    """
    found = store.read()
    if found.unsafe:
        raise LimiterError("unsafe_rules_directory", "no stored rule is applied", found.unsafe)
    problems = [_told(error) for error in _refused(found)]
    requests = [_request(name, file) for name, file in sorted(found.files.items()) if isinstance(file, StoredRule)]
    if not requests:
        return Applied((), tuple(problems), (), ())
    program, warnings = ([], []) if check else _load(run_command, cgroup, paced, departure)
    done: list[Done] = []
    _enforce(run_command, requests, check, done, problems)
    for part in done:
        program += part.program
        warnings += part.warnings
    return Applied(tuple(done), tuple(problems), tuple(program), tuple(dict.fromkeys(warnings)))


def _load(run_command: RunCommand, cgroup: str, paced: bool, departure: str) -> tuple[list[str], list[str]]:
    with Host.opened(run_command, changes=True) as host:
        return load_what_lies_there(host, cgroup, paced, departure)


def _request(name: str, file: StoredRule) -> Request:
    options = {
        **policy.values(file.limit, file.in_place),
        "name": name,
        "cgroup_paths": [place.path for place in file.places],
        "everything": True,  # who stored it had to say so
    }
    return parse_request(options, f"{store.path_of(name)}: ")


def _enforce(
    run_command: RunCommand, requests: list[Request], check: bool, done: list[Done], problems: list[str]
) -> None:
    """All in one step; where that is refused, those that can be: in halves, so that few bad ones cost few steps. Each
    step adds to what is ``done``, or why not to the ``problems``.
    """
    try:
        done.append(enforce(run_command, requests, check, everything=True, before=[part.plan for part in done]))
        return
    except LimiterError as error:
        if error.kind == "locked":
            raise
        if len(requests) == 1:
            problems.append(_told(error, requests[0].where))
            return
    half = len(requests) // 2
    _enforce(run_command, requests[:half], check, done, problems)
    _enforce(run_command, requests[half:], check, done, problems)


def _told(error: LimiterError, where: str = "") -> str:
    text = str(error)
    return f"{text if text.startswith(where) else f'{where}{text}'} ({error.kind})"


def _refused(found: Store) -> list[LimiterError]:
    """The files that are not applied, each with its path."""
    strange = [
        LimiterError("bad_name", f"{store.DIRECTORY}/{name}: {why}") for name, why in sorted(found.strange.items())
    ]
    bad = [(name, file) for name, file in sorted(found.files.items()) if isinstance(file, Refused)]
    return [
        *strange,
        *(LimiterError(file.kind, f"{store.path_of(name)}: {file.why}", "", file.remedy) for name, file in bad),
    ]


def look(
    run_command: RunCommand, found: Store, rules: t.Mapping[str, Rule] | None, blind: bool = False
) -> dict[str, t.Any]:
    """What the next boot will make of this host, and what the last one has not: for people. ``rules``: those that are
    loaded; None: not known. ``blind``: cgroups that are made after a boot are not limited.
    """
    from ..host import command  # here: what installs it takes long to import, and a boot need not wait for that

    unit = boot_unit.look(run_command)
    problems = [found.unsafe] if found.unsafe else []
    problems += [error.what for error in _refused(found)]
    if rules is not None:
        problems += [problem for name in sorted(found.files) for problem in _differs(name, found.files[name], rules)]
    if blind and any(isinstance(file, StoredRule) and file.places for file in found.files.values()):
        problems.append(places.BLIND)
    if unit is not None:
        if unit["ActiveState"] == "failed":
            problems.append(f"the unit {boot_unit.UNIT} has failed: journalctl -b -u {boot_unit.UNIT} shows why")
        idle = boot_unit.problem(unit)
        if found.files and idle is not None:
            problems.append(idle)
    installed = command.version()
    if installed not in (None, VERSION):
        problems.append(
            f"the command limiter on this host, which applies what is stored, is of version {installed}, and who asks "
            f"of {VERSION}: the role setup installs its own"
        )
    return {
        "version": installed,
        "unit": None if unit is None else unit["ActiveState"] if unit["LoadState"] == "loaded" else "absent",
        "enabled": None if unit is None else unit["UnitFileState"] == "enabled",
        "stored": sorted(name for name, file in found.files.items() if isinstance(file, StoredRule)),
        "problems": problems,
    }


def _differs(name: str, file: File, rules: t.Mapping[str, Rule]) -> list[str]:
    if isinstance(file, Refused):
        return []
    rule = rules.get(name)
    if rule is None or rule.limit is None:
        return [f"{store.path_of(name)}: it is not applied: no such rule is loaded"]
    if file != form(rule, file):
        return [f"{store.path_of(name)}: it is not applied as it is: the rule that is loaded differs"]
    return []
