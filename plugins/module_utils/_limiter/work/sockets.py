# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which open sockets of the processes in rules are not limited by them."""

from __future__ import annotations

import fcntl
import os
import typing as t

from ..core import catalog, layout
from ..core.errors import LimiterError
from ..core.model import Rule
from ..host import apart
from ..host.bpf.libbpf import closing_fd, enter_network_namespace
from ..host.bpf.maps import Maps
from ..host.sockets import diag
from ..host.sockets.tagging import SIOCGSKNS, Tags, tag
from .host import Host

_SECONDS, _SILENCE = 4.0, 1.0
_UNKNOWN = "it is not known which open sockets are limited: a process keeps whoever looks at it waiting"


def unlimited(host: Host, rules: t.Sequence[Rule]) -> dict[str, list[str]]:
    """In words, for each rule. Touches nothing."""
    maps = host.maps
    if maps is None:
        return {}
    by_name = {rule.name: rule for rule in rules if rule.pids and rule.cgroup_id}

    def look(name: str) -> list[str]:
        return _unlimited(host, maps, by_name[name])

    keep = [maps.of(row).fd for row in (catalog.SOCKET, catalog.MEMBER)]
    found, held_up = apart.each(list(by_name), look, _SECONDS, _SILENCE, keep)
    return {**dict(found), **{name: [_UNKNOWN] for name in held_up}}


def _unlimited(host: Host, maps: Maps, rule: Rule) -> list[str]:
    cgroups: dict[int, dict[int, int]] = {}  # network namespace -> socket -> its cgroup

    def cgroup_of(fd: int) -> int | None:
        with closing_fd(fcntl.ioctl(fd, SIOCGSKNS)) as namespace:
            number = os.fstat(namespace).st_ino
            if number not in cgroups:
                enter_network_namespace(namespace)
                cgroups[number] = {answer.inode: answer.cgroup_id or 0 for answer in diag.everything()}
        return cgroups[number].get(os.fstat(fd).st_ino)

    def check(fd: int) -> None:
        if maps.socket_rule(fd) == rule.cgroup_id:
            return
        cgroup_id = cgroup_of(fd)
        if not cgroup_id or maps.member(cgroup_id) == rule.cgroup_id:  # without an address it is nowhere to be found
            return
        path = host.path_of(cgroup_id)
        if path is None or host.leaves.rule_of(path) != rule.name:
            raise LimiterError("untagged", "opened before the process came under the rule, or by another process")

    tags = Tags(check, layout.ID.pack(rule.cgroup_id), maps.of(catalog.SOCKET).fd)
    return tag(rule.pids, tags).missed
