# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A result as people read it."""

from __future__ import annotations

import re
import textwrap
import typing as t

from ...core.leaves import PREFIX
from ...core.pacing import NO_PROGRAM
from ...core.rates import short_rate, short_size
from ...core.units import full_name
from ..call import Result
from .tables import Column, printable, table

Facts = t.Mapping[str, t.Any]

RULES = (
    Column("RULE", cut=True),
    Column("RATE", right=True),
    Column("BUCKET", right=True),
    Column("NOW", right=True),
    Column("BINDS"),
    Column("PIDS", right=True),
    Column("IN PLACE", cut=True),
)
PROCESSES = (
    Column("PID", right=True),
    Column("RULE", cut=True),
    Column("CGROUP", cut=True),
    Column("COMMAND", cut=True),
)
PROGRAMS = (
    Column("ID", right=True),
    Column("NAME", cut=True),
    Column("OURS"),
    Column("FLAGS"),
    Column("CGROUP", cut=True),
)
UNKNOWN = "-"


def listing(result: Result, width: int | None, more: str) -> list[str]:
    """The tables of `limiter list`, with an empty line between two. What is not known was warned of."""
    lines: list[str] = []
    for part, columns, row in (
        ("processes", PROCESSES, _process),
        ("rules", RULES, _rule),
        ("hook", PROGRAMS, _hooked),
    ):
        if result.get(part) is None:
            continue
        if lines:
            lines.append("")
        if part == "hook":
            lines += _program(result["program"])
        lines += table(columns, [row(entry) for entry in result[part]], width, more)
    return lines


def _rule(rule: Facts) -> list[str]:
    use = rule["use"] or {}
    each = "each " if rule["each"] else ""
    waiting = set(rule["waiting"] or ())
    in_place = [
        f"{each}{_below_mount(rule, member)}{' (absent)' if member in waiting else ''}"
        for member in (rule["members"] or [])[1:]
        if not member.rpartition("/")[2].startswith(PREFIX)  # those of PIDS
    ]
    return [
        rule["name"],
        UNKNOWN if rule["rate"] is None else short_rate(rule["rate"]),
        UNKNOWN if rule["bucket"] is None else short_size(rule["bucket"]),
        short_rate(use["rate"]) if "rate" in use else UNKNOWN,
        ("yes" if use["binds"] else "no") if "binds" in use else UNKNOWN,
        str(len(rule["pids"])),
        ", ".join(in_place),
    ]


def _below_mount(rule: Facts, path: str) -> str:
    mount = rule["cgroup_path"][: -len(f"/speed_limiter/{rule['name']}")]
    return path[len(mount) :] or "/"


def why(result: Result, width: int | None) -> list[str]:
    """The paragraph."""
    if result["why"] is None:
        return ["It is not known, since the limiter could not be looked at."]
    text = printable(result["why"]["text"])
    return [text] if width is None else textwrap.wrap(text, width)


def idle(result: Result) -> list[str]:
    """Why rules that are listed do not limit, or not all."""
    reasons: dict[str, list[str]] = {}
    for rule in result.get("rules") or ():
        limits_nothing = rule["pacing"] and rule["pacing"]["mode"] == "none"
        for reason in [*([rule["pacing"]["reason"]] if limits_nothing else ()), *(rule["unlimited"] or ())]:
            reasons.setdefault(reason, []).append(rule["name"])
    return [
        f"{why}. limiter reload loads it." if why == NO_PROGRAM else f"{', '.join(names)}: {why}"
        for why, names in reasons.items()
    ]


def _process(process: Facts) -> list[str]:
    return [str(process["pid"]), process["rule"] or UNKNOWN, process["cgroup"], process["command"]]


def _hooked(program: Facts) -> list[str]:
    ours = "yes" if program["ours"] else "no"
    return [str(program["id"]), program["name"], ours, program["attach_flags"], program["cgroup"]]


def _program(program: Facts | None) -> list[str]:
    if program is None:
        return ["No program is loaded: nothing limits.", ""]
    pacing = program["pacing"]
    lines = [f"loaded    {program['identity']}", f"attached  {program['cgroup']}", f"pacing    {pacing['state']}"]
    lines += [f"          {pacing[key]}" for key in ("reason", "open_connections_reason") if pacing[key]]
    departure = program["departure"]
    devices = "not known" if departure["devices"] is None else ", ".join(departure["devices"]) or "no device"
    lines.append(f"waiting   {departure['state']}, with fq: {devices}")
    lines += [f"          {departure['reason']}"] if departure["reason"] else []
    in_place = program["in_place"]
    lines.append(f"in place  found by {in_place['found_by']}")
    return [*lines, *([f"          {in_place['reason']}"] if in_place["reason"] else []), ""]


def change(result: Result, check: bool, diff: bool) -> list[str]:
    """What was changed, or would be."""
    kept_rules = [f"kept: {', '.join(result['kept'])}"] if result.get("kept") else []
    if not result["changed"]:
        return ["unchanged", *kept_rules]
    before, after = (result["diff"][side].splitlines() for side in ("before", "after"))
    kept = set(before) & set(after)
    if diff:
        lines = _side_by_side(before, after, kept)
    else:
        absent = _absent(result)
        fresh = [line for line in after if line not in kept and not _is_warned_of(line, result)]
        lines = [f"{'would change' if check else 'changed'}: {absent(line)}" for line in fresh]
    actions = [*result.get("program_actions", ()), *result.get("actions", ())]
    lines += [f"{'would be done' if check else 'done'}: {action}" for action in actions]
    return [*(lines or ["would change" if check else "changed"]), *kept_rules]


def _absent(result: Result) -> t.Callable[[str], str]:
    """What adds to the line of a rule which of the cgroups that it limits are not there: a path may be misspelt. The
    diff does not say it, since hosts that are as wanted have the same one.
    """
    rules = [rule for rule in (result.get("rule"), *(result.get("rules") or ())) if rule]
    waiting = [re.escape(_below_mount(rule, path)) for rule in rules for path in rule["waiting"] or ()]
    if not waiting:
        return lambda line: line
    limits = re.compile(rf"(limits (?:each of )?(?:{'|'.join(waiting)}))(?=,|$)")
    return lambda line: limits.sub(r"\1 (absent: limited as soon as it is there)", line)


def traced(result: Result) -> str:
    """After the sessions, which were shown as they came."""
    count = len(result["sessions"])
    lost = f", {result['lost']} lost" if result["lost"] else ""
    return f"{count} packet{'' if count == 1 else 's'}{lost}"


def nothing_to_unset(result: Result, asked_for: t.Any) -> str:
    """Why nothing was to be done: what was asked for may be misspelt."""
    name, pids = asked_for.name, asked_for.pids or ()
    processes = f"process{'' if len(pids) == 1 else 'es'} {', '.join(map(str, pids))}"
    if name is None and not asked_for.cgroup_paths:
        return f"no rule took {processes}"
    if result["previous"] is None:
        return f"there is no rule {name!r}" if name else f"there is no rule with the cgroup {asked_for.cgroup_paths[0]}"
    rule = result["previous"]["name"]
    if pids:
        return f"{rule!r} did not take {processes}"
    units = [full_name("", unit) for unit in asked_for.units or ()]
    places = [*(asked_for.cgroup_paths or ()), *units, *(asked_for.users or ()), *(asked_for.containers or ())]
    return f"{rule!r} does not limit {', '.join(places)}"


def _is_warned_of(line: str, result: Result) -> bool:
    """Whether a warning has said it already, as what a rule's processes lose."""
    name, _colon, rest = line.partition(": ")
    return any(f"the rule {name!r} {rest}" in warning for warning in result["warnings"])


def restored(result: Result, check: bool, diff: bool) -> list[str]:
    """One line, however many rules there are: it goes to the log of every boot."""
    changed = f"{result['changed_rules']} {'would change' if check else 'changed'}"
    lines = [f"stored rules: {result['applied']} applied ({changed}), {len(result['problems'])} refused"]
    return [*(change(result, check, diff) if diff else [f"done: {one}" for one in result["program_actions"]]), *lines]


def _side_by_side(before: t.Sequence[str], after: t.Sequence[str], kept: t.Collection[str]) -> list[str]:
    """The two texts have a line for each rule, in the same order."""
    if len(before) != len(after):
        pairs = [("- ", before), ("+ ", after)]
        return [f"{sign}{line}" for sign, lines in pairs for line in lines if line not in kept]
    return [
        f"{sign}{line}" for old, new in zip(before, after) if old != new for sign, line in (("- ", old), ("+ ", new))
    ]
