# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit of systemd that applies what is stored when the host boots; the role setup installs it."""

from __future__ import annotations

import os

from ..host.groups import units
from .host import RunCommand

UNIT = "speed_limiter.service"
NOT_ENABLED = (
    f"nothing applies what is stored when this host boots: the unit {UNIT} is not enabled "
    "(the role setup does that, by setup_boot)"
)


def look(run_command: RunCommand) -> dict[str, str] | None:
    """What systemd says of it; None where it does not run."""
    if not os.path.isdir(units.BOOTED):
        return None
    properties = "LoadState,ActiveState,UnitFileState"
    code, output, _errors = run_command(["systemctl", "show", f"--property={properties}", UNIT], check_rc=False)
    said = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    return said if code == 0 and len(said) == 3 else None


def problem(unit: dict[str, str] | None) -> str | None:
    """Why what is stored will not be applied, as far as it is known."""
    return NOT_ENABLED if unit is not None and unit["UnitFileState"] != "enabled" else None
