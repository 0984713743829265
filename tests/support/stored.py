# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored rules, and hosts that lose all that is in their kernel and get it back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.restore import restored
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory, store
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from .children import until
from .limiter import closing_maps, info, run_command

DIRECTORY = Path(store.DIRECTORY)
WANTED: list[dict[str, Any]] = [
    {"name": "web", "rate": "1m", "cgroup_paths": ["/service", "/system.slice/web@*.service"], "persistent": True},
    {"name": "users", "rate": "50mbit", "bucket": "1m", "cgroup_paths": ["/users/user-*.slice"], "each": True}
    | {"persistent": True},
    {"name": "bare", "rate": "2m", "persistent": True},
]


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


def restore(**options: Any) -> dict[str, Any]:
    """What `limiter restore` does."""
    call = SimpleNamespace(params={}, check_mode=options.pop("check", False), run_command=run_command)
    with closing_maps():
        return restored(call, options.get("cgroup", "/"), options.get("paced", True))


def loaded() -> list[dict[str, Any]]:
    """The rules as they are, but for what is another one after each boot."""
    return [
        {key: entry[key] for key in ("name", "rate", "bucket", "members", "persistent")}
        for entry in info(gather=["rules"])["rules"]
    ]
