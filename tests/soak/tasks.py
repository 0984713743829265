# SPDX-License-Identifier: GPL-3.0-or-later
"""Random tasks, and what each asks for."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front import restore
from ansible_collections.speed_limiter.ebpf.tests.support import limiter

from .model import AUTOMATIC, Member, Rule, Wanted, meant

Members = Mapping[int, Member]
NAMES = ("steady", "web", "db", "both", "jobs")
PLACES = (
    *("/soak.slice", "/soak.slice/*.slice", "/soak.slice/web.slice", "/soak.slice/db.slice", "/soak.slice/*/svc-*"),
    *("/soak.slice/web.slice/svc-1.service", "/soak.slice/*.slice/svc-2.service", "/job.scope", "/job.*"),
    *("/not-there.slice/*.service", "/steady.slice", "/steady.slice/*"),
)
STEADY = {"name": "steady", "rate": "200000", "bucket": "50000", "cgroup_paths": ["/steady.slice/it.service"]}
# What a task may be refused for, when it asks for what cannot be.
REFUSALS = ("member_taken", "ambiguous_patterns", "bad_options", "no_rule", "rate_needed", "stale_rule")


class Host(NamedTuple):
    """What there is when a task has succeeded; `program`: whether it paces, None without one."""

    wanted: Wanted = Wanted()
    program: str | None = None
    maps: bool = False

    def loaded(self) -> Host:
        """Where none is, a task that makes a rule loads the program."""
        return self._replace(program=self.program or "on", maps=True)


class Task(NamedTuple):
    text: str
    work: Callable[[bool], dict[str, Any]]  # takes: check mode
    after: Callable[[Host, Members], Host]
    settles: bool = False  # done again at once, it changes nothing


def number(dice: random.Random, least: int, most: int) -> str:
    """As likely in each power of ten."""
    return str(round(least * (most / least) ** dice.random()))


def limit(dice: random.Random, must: bool) -> dict[str, str]:
    found = {}
    if must or dice.random() < 0.5:
        found["rate"] = number(dice, 8000, 3_000_000)
    if dice.random() < 0.4:
        found["bucket"] = number(dice, 2048, 300_000)
    return found


def some_processes(dice: random.Random, members: Members) -> dict[str, Any]:
    if not members:
        return {}
    member = members[dice.choice(sorted(members))]
    if dice.random() < 0.3:
        return {"processes": {"name": member.name}}
    return {"pids": [member.pid], **({"children": False} if dice.random() < 0.2 else {})}


def places(dice: random.Random) -> dict[str, Any]:
    return {"cgroup_paths": dice.sample(PLACES, dice.randint(1, 2))}


def a_rule(dice: random.Random, host: Host, members: Members, name: str) -> dict[str, Any]:
    """Options of one that is to be there."""
    options: dict[str, Any] = {"name": name, **limit(dice, name not in host.wanted.rules)}
    if dice.random() < 0.5:
        options.update(places(dice))
        if dice.random() < 0.4:
            options["each"] = dice.random() < 0.7
    if dice.random() < 0.4:
        options.update(some_processes(dice, members))
    elif dice.random() < 0.3:
        options["persistent"] = dice.random() < 0.7
    return options


def of_rule(options: dict[str, Any], selected: Mapping[str, Any] | None = None) -> Task:
    """``selected``: how the task names the rule, where that is not by its name."""
    given = {**options, **selected} if selected else options
    if selected:
        del given["name"]

    def after(host: Host, members: Members) -> Host:
        wanted = host.wanted.after(options, members)
        found = host._replace(wanted=wanted)
        return found if options.get("state") == "absent" else found.loaded()

    return Task(f"rule {given}", lambda check: limiter.rule(check=check, **given), after, settles=True)


def of_rules(listed: list[dict[str, Any]], purge: bool) -> Task:
    def after(host: Host, members: Members) -> Host:
        wanted = host.wanted
        claimed: set[int] = set()
        for options in listed:
            if options.get("state") == "absent":
                wanted = wanted.after(options, members)
        if purge:
            named = {options["name"] for options in listed}
            wanted = wanted.without([name for name in wanted.rules if not (name in named or is_automatic(name))])
        for options in listed:
            if options.get("state") != "absent":
                wanted = wanted.after(options, members, claimed)
                claimed |= meant(options, members)
        present = any(options.get("state") != "absent" for options in listed)
        found = host._replace(wanted=wanted)
        return found.loaded() if present else found

    return Task(
        f"rules {listed} purge={purge}",
        lambda check: limiter.rules(*listed, check=check, purge=purge),
        after,
        settles=True,
    )


def is_automatic(name: str) -> bool:
    return name.startswith(AUTOMATIC)


def steady() -> Task:
    return of_rule(dict(STEADY))


def make(dice: random.Random, host: Host, members: Members, ids: Mapping[str, int]) -> Task:
    """Any task; ``ids`` of the rules that there are."""
    kind = dice.choices(list(KINDS), [weight for weight, _make in KINDS.values()])[0]
    return KINDS[kind][1](dice, host, members, ids) or steady()


Ids = Mapping[str, int]
Make = Callable[[random.Random, Host, Members, Ids], "Task | None"]


def _name(dice: random.Random) -> str:
    return dice.choice(NAMES[1:])


def _one(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    return of_rule(a_rule(dice, host, members, _name(dice)))


def _list(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    names = dice.sample(NAMES[1:], dice.randint(1, 3))
    listed = [a_rule(dice, host, members, name) for name in names]
    if dice.random() < 0.3:
        listed[-1] = {"name": names[-1], "state": "absent"}
    purge = dice.random() < 0.3
    return of_rules([*([dict(STEADY)] if purge else []), *listed], purge)


def _absent(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    options: dict[str, Any] = {"name": _name(dice), "state": "absent"}
    which = dice.random()
    if which < 0.3:
        options.update(some_processes(dice, members))
    elif which < 0.6:
        options.update(places(dice))
    return of_rule(options)


def _automatic(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task | None:
    chosen = sorted(members)
    return of_rule({"pids": [dice.choice(chosen)], **limit(dice, True)}) if chosen else None


def _release(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task | None:
    chosen = sorted(host.wanted.inside) or sorted(members)
    return of_rule({"pids": [dice.choice(chosen)], "state": "absent"}) if chosen else None


def _selected(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task | None:
    """By the id of its cgroup, or by its path."""
    if not ids:
        return None
    name = dice.choice(sorted(ids))
    by_path = dice.random() < 0.5
    selected = {"cgroup_paths": [f"/speed_limiter/{name}"]} if by_path else {"cgroup_id": ids[name]}
    return of_rule({"name": name, **limit(dice, True)}, selected)


def _stale(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    return Task("purge stale", lambda check: limiter.purge("stale", check=check), without_stale, settles=True)


def without_stale(host: Host, members: Members) -> Host:
    """Rules of one process go with it, unless children of it are in them."""
    of_one = [name for name in host.wanted.rules if is_automatic(name)]
    occupied = set(host.wanted.only(members).inside.values())
    gone = [name for name in of_one if int(name.removeprefix(AUTOMATIC)) not in members and name not in occupied]
    return host._replace(wanted=host.wanted.without(gone))


def _rules_go(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    return Task(
        "purge rules",
        lambda check: limiter.purge("rules", check=check),
        lambda host, members: host._replace(wanted=Wanted()),
        settles=True,
    )


def _all_goes(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    return Task("purge all", lambda check: limiter.purge("all", check=check), lambda *_: Host(), settles=True)


def _restore(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    def after(host: Host, members: Members) -> Host:
        return host.loaded() if any(rule.persistent for rule in host.wanted.rules.values()) else host

    def work(check: bool) -> dict[str, Any]:
        with limiter.closing_maps():
            call = SimpleNamespace(params={}, check_mode=check, run_command=limiter.run_command)
            result = restore.restored(call, "/", True)
        if result["problems"]:  # also of what the kernel was made to refuse
            raise LimiterError("problems", "; ".join(result["problems"]), "", "")
        return dict(result)

    return Task("restore", work, after, settles=True)


def _program(dice: random.Random, host: Host, members: Members, ids: Ids) -> Task:
    paced = host.program != "off"
    which = dice.random()
    if which < 0.15:
        return Task(
            "program absent",
            lambda check: limiter.program(state="absent", check=check),
            lambda host, members: host._replace(program=None, maps=host.maps and host.wanted.rules != {}),
            settles=True,
        )
    if which < 0.4:
        paced = not paced
    state = "reloaded" if which > 0.6 else "present"
    return Task(
        f"program {state} pacing={paced}",
        lambda check: limiter.program(state=state, pacing=paced, check=check),
        lambda host, members: host._replace(program="on" if paced else "off", maps=True),
        settles=state == "present",
    )


# How often each is chosen; what loads or unloads the program takes a hundred times as long as another.
KINDS: dict[str, tuple[float, Make]] = {
    "one rule": (40, _one),
    "a list": (12, _list),
    "absent": (18, _absent),
    "automatic": (8, _automatic),
    "release": (8, _release),
    "selected": (6, _selected),
    "stale": (6, _stale),
    "rules go": (1, _rules_go),
    "restore": (3, _restore),
    "program": (3, _program),
    "all goes": (0.5, _all_goes),
}


def stored(rule: Rule) -> dict[str, Any]:
    """What is written for the next boot, without what may be added to it later."""
    places = [{"path": path} for path in sorted(rule.places)]
    return {"rate": rule.rate, "bucket": rule.bucket, "places": places, **({"each": True} if rule.each else {})}
