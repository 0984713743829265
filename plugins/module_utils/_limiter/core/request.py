# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From options to Requests. What can be refused without looking at the host is refused here."""

from __future__ import annotations

import typing as t

from . import policy
from .containers import check_name
from .errors import LimiterError
from .model import Request, Selector
from .names import check_rule_name
from .units import full_name

Options = t.Mapping[str, t.Any]

# Cgroups that are limited in place, however they are named.
_IN_PLACE = ("cgroup_paths", "units", "users", "containers")
_EXCLUSIVE = (("pids", "processes"), ("name", "cgroup_id", "last"))


def parse_request(options: Options, where: str = "") -> Request:
    """One rule's options as a Request. ``where`` begins every error, for example ``rules[3] ('web'): ``.

    Raises LimiterError: ``bad_options``, ``bad_name``, ``bad_rate``, ``bad_bucket``, ``bad_pid``, ``bad_selector``,
    ``bad_unit``, ``bad_container``.
    """
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    for group in _EXCLUSIVE:
        both = [key for key in group if key in given]
        if len(both) > 1:
            raise _bad(where, f"{' and '.join(both)} exclude each other", "Give one of them")
    present = options.get("state", "present") == "present"
    name = given.get("name")
    if name is not None:
        check_rule_name(f"{where}name", name)
    cgroup_id = given.get("cgroup_id")
    if cgroup_id is not None and not 0 < cgroup_id < 1 << 64:
        raise _bad(
            where, f"cgroup_id {cgroup_id} is refused", "Give the id of a rule's cgroup, as speed_limit_info shows it"
        )
    pids = _pids(where, given)
    if present and given.get("persistent"):
        _check_persistent(where, given)
    selector = _selector(where, given.get("processes"))
    chosen = [key for key in ("name", "cgroup_id", "last", "cgroup_paths") if given.get(key)]
    if not chosen and not pids and selector is None:
        raise _bad(where, "no rule is named", "Give name, cgroup_id, last, cgroup_paths or pids")
    if not chosen and present and (selector is not None or len(pids) != 1):
        raise _bad(where, "a rule for several processes needs a name", "Add name")
    in_place = {key: tuple(dict.fromkeys(given.get(key, ()))) for key in _IN_PLACE}
    for key in _IN_PLACE:
        if key in given and ("cgroup_id" in given or "last" in given):
            raise _bad(where, f"{key} goes with name, not with cgroup_id or last", f"Give name and {key}")
    for container in in_place["containers"]:
        check_name(where, container)
    return Request(
        where=where,
        present=present,
        name=name,
        cgroup_id=cgroup_id,
        last="last" in given,
        # With `absent` they say nothing: they may come from module_defaults.
        given=policy.parse(where, options) if present else {},
        takes_processes="pids" in given or "processes" in given,
        pids=pids,
        selector=selector,
        children=options.get("children") is not False,
        cgroup_paths=in_place["cgroup_paths"],
        units=tuple(dict.fromkeys(full_name(where, unit) for unit in in_place["units"])),
        users=in_place["users"],
        containers=in_place["containers"],
        takes_places=any(key in given for key in _IN_PLACE),
        everything=options.get("everything") is True,
    )


def parse_requests(rules: t.Sequence[Options], wheres: t.Sequence[str] | None = None) -> tuple[Request, ...]:
    """The requests of a list. Errors begin with what ``wheres`` has for each, else as `where_of` says; a name that
    comes twice is ``bad_options``.
    """
    if wheres is None:
        wheres = [where_of(index, options) for index, options in enumerate(rules)]
    requests = tuple(parse_request(options, where) for options, where in zip(rules, wheres))
    first: dict[str, str] = {}
    for request in requests:
        name = request.name if request.name or len(request.pids) != 1 else f"pid-{request.pids[0]}"
        if name is None or request.cgroup_id or request.last:
            continue
        if name in first:
            raise _bad(request.where, f"the rule {name!r} was already given by {first[name]}", "Give each rule once")
        first[name] = request.where.rstrip(": ")
    return requests


def where_of(index: int, options: object) -> str:
    """What an error about one of a list begins with. The list may be made of an inventory's mappings by name: who wrote
    these knows no index.
    """
    name = options.get("name") if isinstance(options, dict) else None
    try:
        if isinstance(name, str):
            check_rule_name("", name)
            return f"rules[{index}] ({name!r}): "
    except LimiterError:
        pass  # it is what the error will be about
    return f"rules[{index}]: "


def _check_persistent(where: str, given: Options) -> None:
    by_process = [key for key in ("pids", "processes") if given.get(key)]
    if by_process:
        raise LimiterError(
            "bad_options",
            f"{where}persistent and {by_process[0]} exclude each other",
            "a process does not survive a reboot",
            "Limit its unit or its cgroup instead, or leave out persistent",
        )


def _bad(where: str, what: str, remedy: str) -> LimiterError:
    return LimiterError("bad_options", f"{where}{what}", "", remedy)


def _pids(where: str, given: Options) -> tuple[int, ...]:
    pids = given.get("pids", ())
    for pid in pids:
        if pid < 1:
            raise LimiterError("bad_pid", f"{where}pid {pid} is refused", "a process id is a positive number")
        if pid == 1:
            raise LimiterError(
                "bad_pid",
                f"{where}pid 1 is refused",
                "the init process is never moved",
                "Limit a unit with units",
            )
    return tuple(dict.fromkeys(pids))


def _selector(where: str, processes: Options | None) -> Selector | None:
    if processes is None:
        return None
    selector = Selector(**{key: processes.get(key) for key in Selector._fields})
    if selector.exe and not selector.exe.startswith("/"):
        raise LimiterError(
            "bad_selector",
            f"{where}processes: exe {selector.exe!r} can match nothing",
            "it is compared with full paths",
            "Give the full path, or name",
        )
    if not any(selector):
        raise LimiterError(
            "bad_selector", f"{where}processes: nothing is selected", "", "Give name, exe, cmdline or user"
        )
    return selector
