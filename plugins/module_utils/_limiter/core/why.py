# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``why`` of speed_limit_info: what the limiter does to one process, as figures and as one paragraph.

It says only what two looks show, and since when the program has seen the rule hold somebody back.
"""

from __future__ import annotations

import typing as t

from . import pacing
from .measured import Connections, Facts, Measured, Names
from .rates import short_rate

_MOST_NAMED = 8  # only sockets that were opened elsewhere bring more than four


def about(
    process: Facts,
    rules: t.Sequence[Facts],
    can: pacing.Ability,
    found: Connections,
    names: Names,
) -> Facts:
    """``process``: as in a module's result. ``rules``: all that hold for it, the outermost first, as measured;
    ``found``: its connections under them.
    """
    waiting = _waiting(found, names)
    binding = _binding(rules, waiting, found)
    rate = sum(one.rate or 0 for one in found.most)
    facts = {
        "pid": process["pid"],
        "command": process["command"],
        "cgroup": process["cgroup"],
        "rules": [rule["name"] for rule in rules],
        "binding_rule": binding["name"] if binding else None,
        "connections": len(found.most) if found.summary else None,
        "waiting_connections": waiting.get(binding["name"], 0) if binding else 0,
        "rate": rate if found.summary else None,
        "held_seconds": binding["binds_seconds"] if binding else None,
        "without": _without(binding, rules, rate, found, names) if binding else None,
    }
    said = [_where(facts, rules), *_what(facts, rules, can, binding)]
    return {**facts, "text": " ".join(sentence for sentence in said if sentence)}


def _waiting(found: Connections, names: Names) -> dict[str, int]:
    """How many of its connections wait for each rule."""
    counted: dict[str, int] = {}
    for one in found.most:
        name = names.get(one.seen.bottleneck) if one.seen.waits(found.at_ns) else None
        if name:
            counted[name] = counted.get(name, 0) + 1
    return counted


def _binding(rules: t.Sequence[Facts], waiting: t.Mapping[str, int], found: Connections) -> Facts | None:
    """The rule that holds the process back: for which most of its connections wait, or that drops what is sent.

    Of what others send under a rule nothing follows for a process whose connections do not wait.
    """
    first = max(rules, key=lambda rule: waiting.get(rule["name"], 0), default=None)
    if first and waiting.get(first["name"]):
        return first
    if any(one.seen.sends(found.at_ns) for one in found.most):
        return None
    dropping = [rule for rule in rules if rule["counters"]["dropped_packets"]]
    return max(dropping, key=lambda rule: rule["counters"]["dropped_packets"], default=None)


def _without(binding: Facts, rules: t.Sequence[Facts], rate: int, found: Connections, names: Names) -> Facts:
    """What the process would get without the binding rule: what the next one has left beside what others use; or,
    where there is none, what TCP's windows let be in flight.
    """
    others = [rule for rule in rules if rule is not binding and rule["limit"]]
    left = {rule["name"]: max(rule["limit"] - max(rule["rate"] - rate, 0), 0) for rule in others}
    next_one = min(left, key=lambda name: left[name], default=None)
    waiting = [
        one for one in found.most if one.sent and one.seen.waits(found.at_ns) and _is(one, binding["name"], names)
    ]
    windows = sum(one.sent.window * 1_000_000 // max(one.sent.round_trip_us, 1) for one in waiting if one.sent)
    return {"rule": next_one, "rate": left[next_one] if next_one else None, "windows": windows or None}


def _is(one: Measured, name: str, names: Names) -> bool:
    return names.get(one.seen.bottleneck) == name


def _where(facts: Facts, rules: t.Sequence[Facts]) -> str:
    begins = f"Process {facts['pid']} ({facts['command']}) is in {facts['cgroup']}"
    if ".." in facts["cgroup"].split("/"):
        begins = f"Process {facts['pid']} ({facts['command']}) is in a cgroup outside of this cgroup namespace"
        if not rules:
            return f"{begins}, so the rules that hold for it are not seen from here: ask on the host."
    if not rules:
        return f"{begins}, for which no rule holds: the limiter does not slow it."
    named = _listed([f"{rule['name']} ({_limit(rule)})" for rule in rules[:_MOST_NAMED]])
    if len(rules) > _MOST_NAMED:
        named = f"among them {named}"
    count = "One rule holds" if len(rules) == 1 else f"{len(rules)} rules hold"
    return f"{begins}. {count} for what it sends: {named}."


def _limit(rule: Facts) -> str:
    if rule["limit"] is None:
        return "unfinished"
    return f"{short_rate(rule['limit'])}, {round(100 * (rule['utilization'] or 0))} % used"


def _what(facts: Facts, rules: t.Sequence[Facts], can: pacing.Ability, binding: Facts | None) -> list[str]:
    if not rules:
        return []
    if can.state is None:
        return ["No program is loaded, so nothing is limited."]
    if binding is None:
        return _nobody(facts, rules)
    return [_holds(facts, binding), _since(facts), _else(facts, binding)]


def _nobody(facts: Facts, rules: t.Sequence[Facts]) -> list[str]:
    none = "It does not hold it back now" if len(rules) == 1 else "None of them holds it back now"
    if facts["connections"] is None:
        return [f"{none}, as far as can be seen: its connections could not be looked at."]
    number = facts["connections"]
    if not number:
        return [
            f"{none}: it has no TCP connections under {'it' if len(rules) == 1 else 'them'}, and nothing is dropped."
        ]
    sends = f"it sends {short_rate(facts['rate'])} through {_number(number)}, and none of these waits"
    return [f"{none}: {sends}. What is slow is the process, the path or the other side."]


def _holds(facts: Facts, binding: Facts) -> str:
    name, dropped = binding["name"], binding["counters"]["dropped_packets"]
    waiting, number = facts["waiting_connections"], facts["connections"]
    if waiting:
        which = "its connection waits" if number == 1 else f"{waiting} of its {number} connections wait"
        sends = "It sends" if number == 1 else "Together they send"
        return f"{name} holds it back now: {which} for it. {sends} {short_rate(facts['rate'])}."
    reasons = _listed([f"{count} {reason}" for reason, count in binding["counters"]["drops"].items() if count])
    return (
        f"No TCP connection of it waits, but {name} drops packets now, {dropped} in {_seconds(binding['seconds'])} "
        f"(by reason: {reasons}): what it sends otherwise, such as datagrams, may be among them."
    )


def _since(facts: Facts) -> str:
    if facts["held_seconds"] is None:
        return "Since when is not known."
    return f"It has held somebody back for {_lasting(facts['held_seconds'])} without a break."


def _else(facts: Facts, binding: Facts) -> str:
    without = facts["without"]
    if without["rule"]:
        return (
            f"Without {binding['name']}, {without['rule']} would be next, which leaves it "
            f"{short_rate(without['rate'])} beside what others send."
        )
    windows = f"; its TCP windows allow {short_rate(without['windows'])} now" if without["windows"] else ""
    return f"Without {binding['name']}, no rule would hold it back, but only the path and the other side{windows}."


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _lasting(seconds: float) -> str:
    if seconds < 60:
        return _seconds(seconds)
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _number(count: int) -> str:
    return f"{count} TCP connection{'' if count == 1 else 's'}"


def _listed(texts: t.Sequence[str]) -> str:
    return ", ".join(texts[:-1]) + f" and {texts[-1]}" if len(texts) > 1 else "".join(texts)
