# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rule of a list takes a process that several of them want. Pure."""

from __future__ import annotations

from .errors import LimiterError
from .model import Process, Target


class Claims:
    """It belongs to the first; otherwise it would move on every run."""

    def __init__(self, warnings: list[str]) -> None:
        self._warnings = warnings
        self._owners: dict[int, str] = {}  # pid -> the first rule of the list that wants it

    def granted(self, target: Target, name: str) -> list[Process]:
        """The processes of a target that its rule takes. Raises LimiterError ``bad_options``."""
        mine = []
        taken: dict[str, list[str]] = {}
        for process in target.processes:
            owner = self._owners.setdefault(process.pid, name)
            if owner == name:
                mine.append(process)
            elif process.pid in target.request.pids:
                raise LimiterError(
                    "bad_options",
                    f"{target.request.where}process {process.pid} is given to {name!r}",
                    f"the rule {owner!r}, which comes before it, takes the same process",
                    "Nothing was changed. Give each process to one rule",
                )
            else:
                taken.setdefault(owner, []).append(str(process.pid))
        for owner, pids in taken.items():
            self._warnings.append(
                f"{target.request.where}{name!r} also matches processes of {owner!r}, which comes first and keeps "
                f"them: {', '.join(pids)}"
            )
        return mine

    def of_others(self, name: str) -> tuple[int, ...]:
        """The processes that other rules of the list take, as far as they were asked."""
        return tuple(pid for pid, owner in self._owners.items() if owner != name)
