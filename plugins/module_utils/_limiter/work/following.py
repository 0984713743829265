# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open sockets follow their processes into rules and out of them: each is tagged."""

from __future__ import annotations

import typing as t

from ..core import catalog, layout
from ..core.patterns import Node, rules_on
from ..host.groups import processes
from ..host.sockets.tagging import Tags, tag_apart
from . import places
from .host import Host


class Following:
    """The sockets of one run. ``unlimited`` gets those that a rule does not reach."""

    def __init__(self, host: Host, warnings: list[str], unlimited: list[str]) -> None:
        self._host, self._warnings, self._unlimited = host, warnings, unlimited
        # Processes that were moved since sockets were last tagged, and whether they were in a leaf.
        self._moved: dict[int, bool] = {}
        self._graph: list[Node] | None = None  # of the places, compiled once for all that are tagged together

    def moved(self, pid: int, from_leaf: bool = False) -> None:
        """A process went into a rule, home, or back. Its sockets are tagged later, with those of all others."""
        self._moved[pid] = from_leaf

    def tag_moved(self) -> None:
        """Once for all that were moved: each look at sockets takes a process of its own, and small tables come first
        over all rules.
        """
        moved, self._moved = self._moved, {}
        self.tag([pid for pid, from_leaf in moved.items() if not from_leaf])
        # The way up from where their sockets were made decides, without the leaf.
        self.tag([pid for pid, from_leaf in moved.items() if from_leaf], in_place=False)

    def tag(self, pids: t.Iterable[int], in_place: bool = True) -> None:
        """Makes the tags of processes' open sockets agree with the rules that the processes are in now. ``in_place``:
        also with those that limit in place where they are, as sockets that were made in a rule's own cgroup need it.
        """
        rules: dict[int, int | None] = {}
        known: dict[str, int | None] = {}
        self._graph = None
        for pid in dict.fromkeys(pids):
            process = processes.read(pid)
            if process is not None:
                if process.cgroup not in known:
                    known[process.cgroup] = self._limited_by(process.cgroup, in_place)
                rules[pid] = known[process.cgroup]
        self._warnings += [
            f"may still be limited: {text}" for text in self._tag({pid: it for pid, it in rules.items() if it is None})
        ]
        self._unlimited += [
            f"not limited: {text}" for text in self._tag({pid: it for pid, it in rules.items() if it is not None})
        ]

    def _tag(self, rules: t.Mapping[int, int | None]) -> list[str]:
        """What was not tagged, and why."""
        maps = self._host.maps
        if maps is None or not rules:
            return []
        socket_map = maps.of(catalog.SOCKET).fd
        by_rule = {
            rule: Tags(self._tagger(rule), layout.ID.pack(layout.RELEASED if rule is None else rule), socket_map)
            for rule in dict.fromkeys(rules.values())
        }
        tags = {pid: by_rule[rule] for pid, rule in rules.items()}
        return tag_apart(tags, tags, [socket_map, maps.of(catalog.CONTROL).fd]).missed

    def _limited_by(self, cgroup: str, in_place: bool) -> int | None:
        """The innermost rule that holds for a cgroup. A socket has one tag only: of nested rules that limit in place,
        the outer ones do not see what a process opened in a rule that it left.
        """
        name = self._host.leaves.rule_of(cgroup)
        if name is None and in_place:
            if self._graph is None:
                self._graph = places.graph_of_host(self._host)
            name = next(filter(None, reversed(rules_on(self._graph, cgroup))), None)
        return None if name is None else self._host.cgroups.identifier(self._host.cgroups.rule_cgroup(name))

    def _tagger(self, rule: int | None) -> t.Callable[[int], None]:
        maps = self._host.opened_maps

        def tag(descriptor: int) -> None:
            if rule is not None:
                maps.tag_socket(descriptor, rule)
            else:
                maps.release_socket(descriptor)

        return tag
