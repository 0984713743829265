# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored rules, and hosts that lose all that is in their kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory, store
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from .children import until

DIRECTORY = Path(store.DIRECTORY)


def file(name: str) -> Path:
    return DIRECTORY / f"{name}.json"


def content(name: str) -> dict[str, Any]:
    """What is stored of a rule."""
    found: dict[str, Any] = json.loads(file(name).read_text())
    return found


def put(name: str, **fields: Any) -> Path:
    """Stores a rule by hand, as an image may bring it."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    file(name).write_text(json.dumps({"schema": 1, **fields}))
    return file(name)


def power_off() -> None:
    """What a reboot does to a host on which nothing runs in a rule: pins, cgroups and /run are gone, /etc stays."""
    for place in (Path(pins.PIN_DIR), Path(memory.DIRECTORY)):
        if place.is_dir():
            for entry in place.iterdir():
                entry.unlink()
            place.rmdir()
    managed = Cgroups.find().absolute(Cgroups.managed)
    for directory, _below, _files in os.walk(managed, topdown=False):
        os.rmdir(directory)
    until(lambda: not os.path.exists(managed))
