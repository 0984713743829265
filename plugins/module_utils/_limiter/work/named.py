# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator knows by name (units, users, containers), as patterns of cgroup paths."""

from __future__ import annotations

import typing as t

from ..core.errors import LimiterError
from ..core.model import Request, StoredPlace
from ..core.places import normal
from ..host import tools
from ..host.groups import users
from ..host.groups.containers import Containers
from ..host.groups.units import Units


class Named:
    """The names of all requests of a task. Those who know them are asked once for all, for `tools.SECONDS` at most."""

    def __init__(self, requests: t.Sequence[Request]) -> None:
        """Raises LimiterError: ``no_systemd``, ``no_answer``."""
        patience = tools.Patience()
        self._units = Units((unit for request in requests for unit in request.units), patience)
        self._containers = Containers((name for request in requests for name in request.containers), patience)

    def places(self, request: Request) -> tuple[list[StoredPlace], list[str]]:
        """Where the cgroups are, with the names that were given; and warnings.

        Raises LimiterError: what `Units.cgroups`, `users.cgroup`, `Containers.cgroup` and `normal` raise.
        """
        found: list[StoredPlace] = []
        warnings: list[str] = []
        for unit in request.units:
            for path in self._units.cgroups(request.where, unit, request.present):
                found.append(StoredPlace(normal(f"units: {unit}:", path), "unit", unit))
        for user in request.users:
            path, said = users.cgroup(request.where, user)
            found.append(StoredPlace(normal("users:", path), "user", user, uid_of(path)))
            warnings += said
        for name in request.containers:
            path, said = self._container(request, name)
            found.append(StoredPlace(normal("containers:", path), "container", name))
            warnings += said
        return found, warnings if request.present else []

    def _container(self, request: Request, name: str) -> tuple[str, list[str]]:
        try:
            return self._containers.cgroup(request.where, name)
        except LimiterError as error:
            if request.present or error.kind not in ("unknown_container", "container_not_running"):
                raise
            remedy = "Release it by its path in cgroup_paths, as speed_limit_info shows it among the members"
            raise LimiterError(error.kind, error.what, error.why, remedy) from None


def uid_of(path: str) -> int:
    """The number in the name of a user's slice."""
    return int(path.rpartition("/user-")[2].partition(".")[0])
