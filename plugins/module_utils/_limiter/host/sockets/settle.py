# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring sockets that are open already in line with the rules: paced where a rule holds, released where none does.

The kernel does it, one network namespace at a time: to read the pinned iterator is to run it in the reader's namespace.
Where a kernel has no such iterator (before 6.1), sockets are released one by one, as `borrow.open_sockets` lends them.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import socket
import struct
import threading
import typing as t

from ...core import catalog
from ...core.errors import LimiterError
from .. import kernel
from ..bpf import pins
from ..bpf.libbpf import closing_fd, enter_network_namespace
from ..bpf.maps import Maps
from ..groups import processes
from . import borrow

_OWN = "/proc/self/ns/net"
# Of namespaces without a process: `ip netns` and Docker keep them here.
_NAMED = ("/run/netns/*", "/run/docker/netns/*")

_SIOCGSKNS = 0x894C  # linux/sockios.h: a descriptor of the network namespace that a socket is in
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python has no name for it
_LONG = struct.Struct("@L")
_LONG_MOST = (1 << 8 * _LONG.size) - 1


def can_settle() -> bool:
    """Whether the kernel can do it."""
    return pins.exists(catalog.SETTLE.link)


def can_adopt() -> bool:
    """Whether it paces connections that are older than their rule, too: since Linux 6.12, as the kernel's types say."""
    try:
        with open(kernel.BTF, "rb") as types:
            return b"\0TCP_BPF_SOCK_OPS_CB_FLAGS\0" in types.read()
    except OSError:
        return False


def settle(pids: t.Iterable[int] | None = None) -> list[str]:
    """Settles the TCP sockets in our own network namespace and in those of ``pids``; None: in all that can be found.

    Returns why it failed somewhere. What vanishes meanwhile is left out; nothing happens where `can_settle` is False.
    """
    if not can_settle():
        return []
    if pids is None:
        paths = [path for pattern in _NAMED for path in glob.glob(pattern)]
        paths += [f"/proc/{pid}/ns/net" for pid in processes.all_pids()]
    else:
        paths = [f"/proc/{pid}/ns/net" for pid in pids]
    return _settle_in(paths)


def _settle_in(paths: t.Iterable[str]) -> list[str]:
    problems: dict[str, None] = {}
    # Only a thread enters a namespace, and the thread ends: the task itself never can be left in a foreign one.
    thread = threading.Thread(target=_settle_each, args=(paths, problems), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no more threads allowed
        return [str(error)]
    thread.join()
    return list(problems)


def _settle_each(paths: t.Iterable[str], problems: dict[str, None]) -> None:
    try:
        own = os.stat(_OWN)
        _run()
    except OSError as error:
        problems[f"{pins.path(catalog.SETTLE.link)}: {error.strerror}"] = None
        return
    seen = {own.st_ino}
    for path in paths:
        try:
            found = os.stat(path)
            # Another device: a file that is left of a namespace that was unmounted.
            if found.st_dev != own.st_dev or found.st_ino in seen:
                continue
            with closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                enter_network_namespace(fd)
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or not ours to look at
            continue
        except (OSError, LimiterError) as error:
            problems[f"{path}: {error}"] = None
            continue
        seen.add(found.st_ino)
        try:
            _run()
        except OSError as error:
            problems[f"{path}: {error.strerror}"] = None


def _run() -> None:
    with closing_fd(os.open(pins.path(catalog.SETTLE.link), os.O_RDONLY | os.O_CLOEXEC)) as fd:
        while True:
            try:
                if not os.read(fd, 65536):
                    return
            except BlockingIOError:  # after a million sockets: there is more
                continue


def release_one_by_one(maps: Maps) -> list[str]:
    """Gives every socket of every process that was told how fast to send the rate back that its process wants.

    Returns why it failed somewhere. Not reached: what waits to be accepted. LimiterError ``no_pidfd`` where the kernel
    lends no socket at all.
    """
    problems: dict[str, None] = {}
    settled: set[int] = set()
    refusal: LimiterError | None = None
    lends = False
    for pid in processes.all_pids():
        lent = borrow.open_sockets(pid)
        while True:
            try:
                fd = next(lent)
            except StopIteration:
                break
            except LimiterError as error:
                refusal = error
                break
            lends = True
            try:
                _release(maps, fd, settled)
            except (OSError, LimiterError) as error:
                problems[f"a socket of process {pid}: {error}"] = None
    if refusal is not None and not lends:  # else it is one process that is not ours to look at
        raise refusal
    return list(problems)


def _release(maps: Maps, fd: int, settled: set[int]) -> None:
    pacing = maps.pacing(fd)
    if pacing is None or not pacing.set:
        return
    if can_settle():  # that gives everything back, its congestion window, too
        with closing_fd(fcntl.ioctl(fd, _SIOCGSKNS)) as namespace:
            inode = os.fstat(namespace).st_ino
            if inode not in settled:
                settled.add(inode)
                _settle_in([f"/proc/self/fd/{namespace}"])
        if maps.pacing(fd) is None:
            return
    with contextlib.closing(socket.socket(fileno=os.dup(fd))) as copy:
        actual = copy.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _LONG.size)
        if actual == _LONG.pack(min(pacing.set, _LONG_MOST)):  # else its process has set another since
            copy.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _LONG.pack(min(pacing.own, _LONG_MOST)))
    maps.forget_pacing(fd)  # afterwards: who is killed in between does it again
