# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open sockets follow their processes into rules and out of them: each is tagged."""

from __future__ import annotations

import typing as t

from ..core import catalog, layout
from ..host.groups import processes
from ..host.sockets.tagging import Tags, tag_apart
from . import places
from .host import Host


class Following:
    """The sockets of one run. ``unlimited`` gets those that a rule does not reach."""

    def __init__(self, host: Host, warnings: list[str], unlimited: list[str]) -> None:
        self._host, self._warnings, self._unlimited = host, warnings, unlimited
        self._left: list[int] = []  # processes that went home since sockets were last tagged
        self._free: list[int] = []  # ... from a leaf

    def left(self, pid: int) -> None:
        """A process went home. Its sockets are tagged later, with those of all others."""
        self._left.append(pid)

    def left_leaf(self, pid: int) -> None:
        """The way up from where its sockets were made decides, without the leaf."""
        self._free.append(pid)

    def tag_left(self) -> None:
        """Once for all that went home: each look at sockets takes a process of its own."""
        left, self._left = self._left, []
        self.tag(left)
        free, self._free = self._free, []
        self._tag(free, None)

    def tag(self, pids: t.Iterable[int]) -> None:
        """Makes the tags of processes' open sockets agree with the rules that the processes are in now."""
        by_rule: dict[int | None, list[int]] = {}
        for pid in dict.fromkeys(pids):
            process = processes.read(pid)
            if process is not None:
                by_rule.setdefault(self._limited_by(process.cgroup), []).append(pid)
        for rule, members in by_rule.items():
            self._tag(members, rule)

    def _tag(self, pids: t.Sequence[int], rule: int | None) -> None:
        maps = self._host.maps
        if maps is None or not pids:
            return
        socket_map = maps.of(catalog.SOCKET).fd
        tags = Tags(self._tagger(rule), layout.ID.pack(layout.RELEASED if rule is None else rule), socket_map)
        tagged = tag_apart(pids, tags, [socket_map, maps.of(catalog.CONTROL).fd])
        if rule is None:
            self._warnings += [f"may still be limited: {text}" for text in tagged.missed]
        else:
            self._unlimited += [f"not limited: {text}" for text in tagged.missed]

    def _limited_by(self, cgroup: str) -> int | None:
        """The innermost rule that holds for a cgroup. A socket has one tag only: of nested rules that limit in place,
        the outer ones do not see what a process opened in a rule that it left.
        """
        name = self._host.leaves.rule_of(cgroup)
        if name is not None:
            return self._host.cgroups.identifier(self._host.cgroups.rule_cgroup(name))
        in_place = places.rules_on_way(self._host, cgroup)
        return self._host.cgroups.identifier(self._host.cgroups.rule_cgroup(in_place[-1])) if in_place else None

    def _tagger(self, rule: int | None) -> t.Callable[[int], None]:
        maps = self._host.opened_maps

        def tag(descriptor: int) -> None:
            if rule is not None:
                maps.tag_socket(descriptor, rule)
            else:
                maps.release_socket(descriptor)

        return tag
