# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network namespaces of a host, entered one after the other by a child process that ends there."""

from __future__ import annotations

import glob
import os
import typing as t

from ...core.errors import LimiterError
from ..bpf.libbpf import closing_fd, enter_network_namespace
from ..groups import processes

_OWN = "/proc/self/ns/net"
# Of namespaces without a process: `ip netns` and Docker keep them here.
_NAMED = ("/run/netns/*", "/run/docker/netns/*")


class Namespace(t.NamedTuple):
    path: str  # empty: our own
    inode: int


def entered(pids: t.Iterable[int] | None, tell: t.Callable[[str], None]) -> t.Iterator[Namespace]:
    """Our own, then those of ``pids``; None: all that can be found. Each once. What vanishes meanwhile is left out,
    why another one cannot be entered is told.
    """
    own = os.stat(_OWN)
    yield Namespace("", own.st_ino)
    done = {own.st_ino}
    for path in _paths(pids):
        try:
            found = os.stat(path)
            # Another device: a file that is left of a namespace that was unmounted.
            if found.st_dev != own.st_dev or found.st_ino in done:
                continue
            with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                enter_network_namespace(fd)
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or not ours to look at
            continue
        except (OSError, LimiterError) as error:
            tell(f"{path}: {error}")
            continue
        done.add(found.st_ino)
        yield Namespace(path, found.st_ino)


def _paths(pids: t.Iterable[int] | None) -> t.Iterator[str]:
    if pids is None:
        for pattern in _NAMED:
            yield from glob.glob(pattern)
        pids = processes.all_pids()
    yield from (f"/proc/{pid}/ns/net" for pid in pids)
