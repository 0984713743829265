# SPDX-License-Identifier: GPL-3.0-or-later
"""Cgroups that processes are at home in, for tests of what a rule does to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from . import limiter
from .children import until

Make = Callable[[str], Path]

HOME = "/tight.slice/a.service"
LEAF = f"{HOME}/speed_limiter.web"


class Service(NamedTuple):
    parent: limiter.Sender
    child: limiter.Sender

    @property
    def pids(self) -> list[int]:
        return sorted(sender.pid for sender in self)


@contextlib.contextmanager
def making(cgroups: Cgroups) -> Iterator[Make]:
    """Makes cgroups; at the end they and all below them are gone, and so are all rules."""
    made: list[str] = []

    def make(path: str) -> Path:
        os.mkdir(cgroups.absolute(path))
        made.append(path)
        return Path(cgroups.absolute(path))

    try:
        yield make
    finally:
        limiter.purge()
        for path in reversed(made):
            until(lambda path=path: not cgroups.pids(path))  # type: ignore[misc]
            cgroups.remove(path)


@contextlib.contextmanager
def service_in_a_slice(make: Make) -> Iterator[Service]:
    """Two processes in HOME, in a slice that the rule ``tight`` limits."""
    make("/tight.slice")
    with limiter.senders(HOME, 2) as (parent, child):
        limiter.rule(name="tight", cgroup_paths=["/tight.slice"], rate="10mbit")
        try:
            yield Service(parent, child)
        finally:
            limiter.purge()


def place(pid: int) -> str | None:
    """The cgroup of a process."""
    return limiter.snapshot(pid).places[pid]
