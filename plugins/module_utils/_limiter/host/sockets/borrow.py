# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that were open before their process came under a rule: each keeps the cgroup that it was made in.

They are borrowed with pidfd_getfd(2), one at a time (a server may have more than our own limit of open files), given to
``tag_one``, and closed. This does not reach connections that wait to be accepted, sockets that are on their way from
one process to another, and those of a thread that does not share its process's files.
"""

from __future__ import annotations

import errno
import os
import socket
import typing as t

from ...core.errors import LimiterError
from ..errnos import errno_text

# The same on all architectures but alpha. Python has no pidfd_getfd, and its pidfd_open only if built on a new kernel.
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438

# A process that opens connections without end must not hold us for ever; new ones are made in the new cgroup anyway.
_PASSES = 8

_INTERNET = (socket.AF_INET, socket.AF_INET6)


def open_sockets(pid: int) -> t.Iterator[int]:
    """Our own copy of each IPv4 and IPv6 socket of a process, one at a time: closed when the next one is asked for.

    What vanishes meanwhile is left out, the whole process too. LimiterError ``no_pidfd`` where the kernel refuses:
    before Linux 5.6, or where tracing is forbidden.
    """
    syscall = _syscall()
    try:
        pidfd = syscall(_PIDFD_OPEN, pid, 0, 0)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # the latter two: a thread, not a process
            return
        raise _no_pidfd(error) from None
    try:
        for number in _socket_numbers(pid):
            try:
                fd = syscall(_PIDFD_GETFD, pidfd, number, 0)
            except OSError as error:
                if error.errno in (errno.EBADF, errno.ESRCH):  # closed, or ended, since it was listed
                    continue
                raise _no_pidfd(error) from None
            try:
                if _option(fd, socket.SO_DOMAIN) in _INTERNET:
                    yield fd
            finally:
                os.close(fd)
    finally:
        os.close(pidfd)


def tag(pids: t.Iterable[int], tag_one: t.Callable[[int], None]) -> int:
    """Calls ``tag_one`` once with a descriptor of every open internet socket of these processes; how many they were.

    Listeners come first, since what they accept inherits from them; then all are looked at again until nothing is new.
    What vanishes meanwhile is left out, and so is a socket that can't be tagged (its owner may have used up the memory
    for its options): the others are tagged, then its error is raised. LimiterError ``no_pidfd`` where the kernel lends
    no socket at all: then only new connections are limited.
    """
    pids = list(pids)
    tagged: set[int] = set()
    refusal: LimiterError | None = None
    untagged: LimiterError | None = None
    for listeners_only in (True, *[False] * _PASSES):
        before = len(tagged)
        for pid in pids:
            sockets = open_sockets(pid)
            while True:
                try:
                    fd = next(sockets)
                except StopIteration:
                    break
                except LimiterError as error:
                    refusal = error
                    break
                inode = os.fstat(fd).st_ino
                if inode in tagged or (listeners_only and not _option(fd, socket.SO_ACCEPTCONN)):
                    continue
                tagged.add(inode)
                try:
                    tag_one(fd)
                except LimiterError as error:
                    untagged = error
        if not listeners_only and len(tagged) == before:
            break
    if refusal is not None and not tagged:
        raise refusal
    if untagged is not None:
        raise untagged
    return len(tagged)


def _socket_numbers(pid: int) -> list[int]:
    """The descriptors of a process that are sockets of any kind."""
    directory = f"/proc/{pid}/fd"
    found = []
    try:
        for name in os.listdir(directory):
            try:
                if os.readlink(f"{directory}/{name}").startswith("socket:"):
                    found.append(int(name))
            except PermissionError:
                found.append(int(name))  # who tries to borrow it is told why not
            except OSError:
                continue
    except PermissionError as error:
        raise _no_pidfd(error) from None
    except OSError:
        pass
    return found


def _option(fd: int, option: int) -> int | None:
    """A number that getsockopt(2) gives; None if the descriptor became something else before it was borrowed."""
    # With family, type and protocol given, Python does not ask the kernel for them.
    try:
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:  # ENOTSOCK
        return None
    try:
        return borrowed.getsockopt(socket.SOL_SOCKET, option)
    except OSError:
        return None
    finally:
        borrowed.detach()


def _syscall() -> t.Callable[[int, int, int, int], int]:
    import ctypes  # 2 ms that most tasks need not spend

    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long] * 4

    def call(number: int, first: int, second: int, third: int) -> int:
        result: int = function(number, first, second, third)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    return call


def _no_pidfd(error: OSError) -> LimiterError:
    return LimiterError(
        "no_pidfd",
        "connections that are open already cannot be limited",
        f"the kernel lends no sockets of other processes: {errno_text(error)}",
        "New connections are limited. Open ones need Linux 5.6 or newer, and no seccomp or kernel.yama.ptrace_scope=3",
    )
