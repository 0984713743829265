# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose the limiter is that is pinned. A container may see the bpffs of its host, and its cgroups begin somewhere else:
to each of the two, the rules of the other one would look like rules that are gone.
"""

from __future__ import annotations

from ..core import catalog, layout
from ..core.errors import LimiterError
from ..core.leaves import own_rule
from ..host.bpf import pins
from ..host.bpf.libbpf import Libbpf
from ..host.bpf.links import Links
from ..host.bpf.maps import Maps
from ..host.groups.cgroups import Cgroups


def check(libbpf: Libbpf, cgroups: Cgroups, maps: Maps | None) -> None:
    """Raises LimiterError ``other_namespace`` where it is attached to a cgroup, or has rules, of another namespace.
    What is gone is nobody's.
    """
    attached = Links(libbpf).cgroup_id(catalog.LIMIT.link)
    if attached and libbpf.is_outside(cgroups.mount, attached):
        raise _others("it is attached to a cgroup that this task does not see")
    if maps is None or not maps.is_known:
        return
    own = cgroups.rules_by_id()
    there: list[str | None] = []
    for key, _limit in maps.entries(catalog.CONFIG):
        rule = layout.ID.unpack(key)[0]
        if rule in own:
            return
        path = libbpf.cgroup_path_of(cgroups.mount, rule)
        if path and own_rule(path):  # made meanwhile
            return
        if path or libbpf.is_outside(cgroups.mount, rule):
            there.append(path)
    if there:
        raise _others(f"its rules are {there[0]} and the like" if there[0] else "this task does not see its rules")


def _others(why: str) -> LimiterError:
    return LimiterError(
        "other_namespace",
        f"the limiter that is pinned in {pins.PIN_DIR} belongs to another cgroup namespace",
        why,
        "To limit what the host runs, run the task on the host, not in a container. A container that is to have rules "
        f"of its own needs a bpffs of its own (mount -t bpf bpf {pins.BPFFS}), not the host's",
    )
