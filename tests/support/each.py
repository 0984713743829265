# SPDX-License-Identifier: GPL-3.0-or-later
"""Cgroups that have budgets of their own, datagrams from them, and what becomes of their budgets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from . import limiter
from .scene import MBIT

RATE = 8 * MBIT


class Users:
    """Cgroups that one rule limits, each by a budget of its own."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._parent = Path(cgroups.absolute("/users"))
        self._made: list[Path] = []

    def limit(self, **options: Any) -> None:
        options = {"rate": str(RATE), "bucket": str(RATE // 10), "each": True, **options}
        limiter.rules({"name": "users", "cgroup_paths": ["/users/*"], **options}, purge=True)

    def new(self, count: int) -> list[Path]:
        """Cgroups that have not been there before."""
        self._parent.mkdir(exist_ok=True)
        found = [self._parent / f"{len(self._made) + number}" for number in range(count)]
        for cgroup in found:
            cgroup.mkdir()
        self._made += found
        return found

    def named(self, path: str) -> Path:
        """A cgroup by its path below theirs, with all above it."""
        cgroup = self._parent / path
        above = [one for one in (*reversed(cgroup.parents), cgroup) if not one.exists()]
        cgroup.mkdir(parents=True)
        self._made += [one for one in above if one != self._parent]
        return cgroup

    def remove(self) -> None:
        for cgroup in reversed(self._made):
            with contextlib.suppress(FileNotFoundError):
                cgroup.rmdir()
        if self._parent.exists():
            self._parent.rmdir()


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """The end of a forked process, however it comes."""
    status = 1
    try:
        yield
        status = 0
    finally:
        os._exit(status)


def send(cgroups: list[Path], packets: int = 1) -> None:
    """Datagrams from a new socket in each cgroup."""
    if not (pid := os.fork()):
        with exiting():
            for cgroup in cgroups:
                (cgroup / "cgroup.procs").write_text("0")
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    for _packet in range(packets):
                        sender.sendto(b"x", ("127.0.0.1", 9))
    assert os.waitpid(pid, 0)[1] == 0


def told() -> dict[str, Any]:
    [rule] = limiter.info(name="users", gather=["rules"])["rules"]
    return {**rule["budgets"], "packets": rule["counters"]["packets"]}


def keys() -> dict[int, int]:
    """Of the budgets that there are: the cgroup that each says it belongs to."""
    with limiter.opened_maps() as maps:
        states = {key: layout.unpack_state(value) for key, value in maps.entries(catalog.STATE)}
    return {int(layout.ID.unpack(key)[0]): state.cgroup for key, state in states.items() if state.limit}


def budgets() -> set[int]:
    """The cgroups that have one."""
    return set(keys().values())


def identifier(cgroup: Path) -> int:
    return cgroup.stat().st_ino
