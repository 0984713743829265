# SPDX-License-Identifier: GPL-3.0-or-later
"""What the figures depend on: the machine, its kernel and how they were measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any


def describe(quick: bool) -> dict[str, Any]:
    return {
        "command": "make bench-quick" if quick else "make bench",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{os.cpu_count()} x {_first('/proc/cpuinfo', 'model name')}",
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 1e6:.0f} GB",
        "virtual": _virtual(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "commit": _commit(),
    }


def _first(file: str, name: str) -> str:
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        field, _colon, value = line.partition(":")
        if field.strip() == name:
            return value.strip()
    return "unknown"


def _virtual() -> bool:
    """Where the clocks and the CPUs are a hypervisor's, figures vary more."""
    return "hypervisor" in _first("/proc/cpuinfo", "flags").split()


def _commit() -> str:
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
