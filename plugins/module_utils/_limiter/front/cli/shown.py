# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A result as people read it."""

from __future__ import annotations

import typing as t

from ...core.rates import short_rate, short_size
from ..call import Result
from .tables import Column, table

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
    mount = rule["cgroup_path"][: -len(f"/speed_limiter/{rule['name']}")]
    each = "each " if rule["each"] else ""
    waiting = set(rule["waiting"] or ())
    in_place = [
        f"{each}{member[len(mount) :] or '/'}{' (absent)' if member in waiting else ''}"
        for member in (rule["members"] or [])[1:]
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
    return [*lines, *(f"          {pacing[key]}" for key in ("reason", "open_connections_reason") if pacing[key]), ""]


def change(result: Result, check: bool, diff: bool) -> list[str]:
    """What was changed, or would be."""
    if not result["changed"]:
        return ["unchanged"]
    before, after = (result["diff"][side].splitlines() for side in ("before", "after"))
    kept = set(before) & set(after)
    if diff:
        lines = _side_by_side(before, after, kept)
    else:
        fresh = [line for line in after if line not in kept and not _is_warned_of(line, result)]
        lines = [f"{'would change' if check else 'changed'}: {line}" for line in fresh]
    actions = [*result.get("program_actions", ()), *result.get("actions", ())]
    lines += [f"{'would be done' if check else 'done'}: {action}" for action in actions]
    return lines or ["would change" if check else "changed"]


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
