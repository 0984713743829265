# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks systemd where units are."""

from __future__ import annotations

import os
import typing as t

from ...core import units
from ...core.errors import LimiterError
from .. import tools

BOOTED = "/run/systemd/system"  # sd_booted(3)
_AT_ONCE = 100  # each costs systemd some milliseconds, and all must be answered in time


class Units:
    """The units of a task, all looked up at once."""

    def __init__(self, names: t.Iterable[str], patience: tools.Patience) -> None:
        """``names`` are full names (`units.full_name`). Raises LimiterError: ``no_systemd``, ``no_answer``."""
        wanted = list(dict.fromkeys(names))
        self._shown: dict[str, units.Unit] = {}
        self._running: dict[str, list[units.Unit]] = {}
        if not wanted:
            return
        self._command, self._patience = _systemctl(f"the unit {wanted[0]}"), patience
        for start in range(0, len(wanted), _AT_ONCE):
            self._look(wanted[start : start + _AT_ONCE])

    def _look(self, names: list[str]) -> None:
        asked = list(dict.fromkeys(one for name in names for one in units.questions(name)))
        templates = {name: pattern for name in names for pattern in [units.instances(name)] if pattern}
        found = self._show([*asked, *templates.values()])
        # One answer for each name, in their order; then those that fit the patterns.
        self._shown.update(zip(asked, found))
        for name, pattern in templates.items():
            stem, _star, suffix = pattern.partition("*")
            listed = [one for one in found[len(asked) :] if one.name.startswith(stem) and one.name.endswith(suffix)]
            self._running[name] = listed
        more = list(dict.fromkeys(one for name in names for one in units.unseen_sockets(name, self._shown)))
        if more:
            self._shown.update(zip(more, self._show(more)))

    def _show(self, names: list[str]) -> list[units.Unit]:
        words = [self._command, "show", f"--property={units.PROPERTIES}", "--", *names]
        code, output, errors = self._patience.ask(words)
        if code != 0:
            raise LimiterError(
                "no_answer",
                "systemd does not tell where units are",
                "; ".join(tools.lines(errors)[:3]) or f"systemctl ended with {code}",
                f"Run it yourself: systemctl show {names[0]}",
            )
        found = units.parse(output)
        if len(found) < len(names) - sum("*" in name for name in names):
            raise LimiterError(
                "no_answer", "systemd does not tell where all units are", f"{len(found)} of {len(names)}"
            )
        return found

    def cgroups(self, where: str, name: str, present: bool = True) -> list[str]:
        """Paths of cgroups, some with a star (`units.cgroups`)."""
        return units.cgroups(where, name, self._shown, self._running.get(name, ()), present)


def check_systemd(what: str) -> None:
    """Raises LimiterError ``no_systemd`` where systemd is not the init system. ``what`` begins the text."""
    if not os.path.isdir(BOOTED):
        raise LimiterError(
            "no_systemd",
            f"{what} cannot be looked up",
            f"systemd does not run on this host, or not where the task runs ({BOOTED} is not there)",
            "Give the path of the cgroup in cgroup_paths",
        )


def _systemctl(what: str) -> str:
    check_systemd(what)
    command = tools.find("systemctl")
    if command is None:
        raise LimiterError("no_systemd", f"{what} cannot be looked up", "systemctl is not installed", "Install systemd")
    return command
