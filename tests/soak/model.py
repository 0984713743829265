# SPDX-License-Identifier: GPL-3.0-or-later
"""What tasks that succeeded have asked for, worked out a second time, by the documentation alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

Options = Mapping[str, Any]
AUTOMATIC = "pid-"


class Rule(NamedTuple):
    rate: int
    bucket: int
    places: frozenset[str] = frozenset()
    each: bool = False
    persistent: bool = False


class Member(NamedTuple):
    """A process, by its pid."""

    pid: int
    home: str  # its cgroup, without what rules make below it
    parent: int | None  # among the members; None: it is gone
    name: str


class Hold(NamedTuple):
    """A budget that pays for what a process sends: of a rule, or of one cgroup with `each`."""

    rule: str
    cgroup: str = ""


class Wanted(NamedTuple):
    """The rules, and which of them each process was put in."""

    rules: Mapping[str, Rule] = {}
    inside: Mapping[int, str] = {}

    # ---- tasks

    def after(self, options: Options, members: Mapping[int, Member], claimed: set[int] | None = None) -> Wanted:
        """When the task has succeeded. ``claimed``: it is one of a list of rules. There places are all that a rule has,
        and processes belong to the first that wants them.
        """
        whole = claimed is not None
        pids = meant(options, members) - (claimed or set())
        if options.get("state") == "absent":
            return self._absent(options, pids, members)
        name = options.get("name") or f"{AUTOMATIC}{options['pids'][0]}"
        old = self.rules.get(name)
        rate = int(options["rate"]) if "rate" in options else old.rate if old else 0
        otherwise = rate if "rate" in options or not old else old.bucket
        bucket = int(options["bucket"]) if "bucket" in options else otherwise
        places = frozenset(options.get("cgroup_paths", ()))
        each, persistent = options.get("each"), options.get("persistent")
        if not whole:
            places |= old.places if old else frozenset()
            each = each if each is not None or not old else old.each
        persistent = old.persistent if persistent is None and old else bool(persistent)
        rules = {**self.rules, name: Rule(rate, bucket, places, bool(each), persistent)}
        return Wanted(rules, self.inside)._with(pids, name)

    def _absent(self, options: Options, pids: set[int], members: Mapping[int, Member]) -> Wanted:
        name = options.get("name")
        if name is None:
            named = {self.inside.get(pid) for pid in options["pids"]}
            return self._with({pid for pid in pids if self.inside.get(pid) in named - {None}}, None)
        if pids or "pids" in options or "processes" in options or options.get("cgroup_paths"):
            rules = dict(self.rules)
            if name in rules:
                left = rules[name].places - set(options.get("cgroup_paths", ()))
                rules[name] = rules[name]._replace(places=left, each=rules[name].each and bool(left))
            return Wanted(rules, self.inside)._with({pid for pid in pids if self.inside.get(pid) == name}, None)
        return self.without([name])

    def without(self, names: Collection[str]) -> Wanted:
        return Wanted(
            {name: rule for name, rule in self.rules.items() if name not in names},
            {pid: name for pid, name in self.inside.items() if name not in names},
        )

    def _with(self, pids: Iterable[int], name: str | None) -> Wanted:
        """These processes go into a rule, or back. A rule of one process goes with its last."""
        inside = dict(self.inside)
        left = {inside.pop(pid) for pid in pids if pid in inside}
        if name is not None:
            inside.update(dict.fromkeys(pids, name))
        gone = {old for old in left if old.startswith(AUTOMATIC) and old not in inside.values()}
        return Wanted(self.rules, inside).without(gone)

    def only(self, pids: Collection[int]) -> Wanted:
        """When no other processes are left."""
        return self._replace(inside={pid: name for pid, name in self.inside.items() if pid in pids})

    # ---- what follows

    def holds(self, member: Member) -> frozenset[Hold]:
        """What pays for its packets."""
        found = set()
        for cgroup in _way_down(member.home):
            matching = [
                (_preference(pattern), name)
                for name, rule in self.rules.items()
                for pattern in rule.places
                if _matches(pattern, cgroup)
            ]
            if matching:
                name = min(matching)[1]
                found.add(Hold(name, cgroup if self.rules[name].each else ""))
        own = self.inside.get(member.pid)
        if own and all(hold.rule != own for hold in found):
            found.add(Hold(own))
        return frozenset(found)


def meant(options: Options, members: Mapping[int, Member]) -> set[int]:
    """The processes that a task names, by their descent, too."""
    name = options.get("processes", {}).get("name")
    chosen = {member.pid for member in members.values() if member.name == name} | set(options.get("pids", ()))
    more = set(chosen)
    while more and options.get("children", True):
        more = {member.pid for member in members.values() if member.parent in more} - chosen
        chosen |= more
    return chosen


def _way_down(cgroup: str) -> list[str]:
    names = cgroup.split("/")[1:]
    return ["/" + "/".join(names[: length + 1]) for length in range(len(names))]


def _matches(pattern: str, cgroup: str) -> bool:
    names, parts = pattern.split("/"), cgroup.split("/")
    return len(names) == len(parts) and all(map(fnmatch.fnmatchcase, parts, names))


def _preference(pattern: str) -> list[tuple[bool, int]]:
    """From the top down, a name goes before a star, and a longer text before a shorter one."""
    return [("*" in name, -len(name)) for name in pattern.split("/")]
