# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of open descriptors. They belong to threads: those of a process share one as a rule, and so may processes.

A thread may have its own (unshare(CLONE_FILES)), and threads live on where the first one has ended. So each thread's
table is found, and each table once, however many share it (kcmp).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import typing as t

from ..groups import processes
from .syscalls import Syscall

# The same on all architectures but alpha.
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_PIDFD_THREAD = os.O_EXCL  # since 6.9
_KCMP_FILES = 2
_KCMP = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "loongarch64": 272,
    "ppc64": 354,
    "ppc64le": 354,
    "s390x": 343,
}

_SOCKET, _RING = "socket:[", "anon_inode:[io_uring]"
_PROTOCOL = re.compile(rb"(TCP|UDP|UDP-?Lite|MPTCP|RAW|PING|SCTP|DCCP)(v6)?\b")
_RING_FILE = re.compile(rb"^ *(\d+): (?:socket:\[(\d+)\]|" + _PROTOCOL.pattern + rb")$", re.M)
_RING_FILES = re.compile(rb"^UserFiles:\s+(\d+)\n((?: *\d+: .*\n)*)", re.M)
BUSY = "busy"
_OFTEN = 256  # descriptors


class Entry(t.NamedTuple):
    """A descriptor that is a socket of any kind, with the socket's number; or an io_uring, without."""

    number: int
    inode: int | None


class CannotLendError(Exception):
    """The kernel lends nothing of a table, for that ``cause``; ``gone``: because its thread has ended."""

    def __init__(self, cause: OSError, gone: bool) -> None:
        self.cause, self.gone = cause, gone
        super().__init__(cause)


class Table:
    """One table. ``process`` and ``thread`` are of the first that was found to have it."""

    def __init__(self, process: int, thread: int) -> None:
        self.process, self.thread = process, thread
        self._directory = f"/proc/{process}/task/{thread}"

    def size(self) -> int:
        """Room for descriptors, which tells how long a look at them may take."""
        match = re.search(rb"^FDSize:\s+(\d+)", processes.read_file(f"{self._directory}/status") or b"", re.M)
        return int(match.group(1)) if match else 0

    def entries(self, alive: t.Callable[[], None] = lambda: None) -> t.Iterator[Entry]:
        """Calls ``alive`` now and then. OSError EACCES where a process is not ours to look at."""
        try:
            directory = os.open(f"{self._directory}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            with os.scandir(directory) as listed:
                for count, item in enumerate(listed):
                    if count % _OFTEN == 0:
                        alive()
                    try:
                        target = os.readlink(item.name, dir_fd=directory)
                    except (FileNotFoundError, ProcessLookupError):  # closed since it was listed
                        continue
                    if target.startswith(_SOCKET):
                        yield Entry(int(item.name), int(target[len(_SOCKET) : -1]))
                    elif target == _RING:
                        yield Entry(int(item.name), None)
        except (FileNotFoundError, ProcessLookupError):
            return
        finally:
            os.close(directory)

    def is_internet(self, number: int) -> bool:
        """Whether a socket that cannot be borrowed is one of the internet's, by its protocol's name."""
        with contextlib.suppress(OSError):
            return bool(_PROTOCOL.match(os.getxattr(f"{self._directory}/fd/{number}", "system.sockprotoname")))
        return False

    def registered(self, ring: int) -> set[int | str]:
        """The internet sockets among the files of an io_uring: their numbers, or where they are on a kernel that does
        not tell these. BUSY where the ring is in use at this moment, and tells nothing.
        """
        text = processes.read_file(f"{self._directory}/fdinfo/{ring}")
        if text is None:
            return set()
        match = re.search(rb"^ino:\s+(\d+)$", text, re.M)
        itself = match.group(1).decode() if match else ""
        files = _RING_FILES.search(text)
        if files is None or (int(files.group(1)) and not files.group(2)):
            return {BUSY}
        sockets = _RING_FILE.findall(files.group(2))
        return {int(inode) if inode else f"{itself}:{slot.decode()}" for slot, inode, *_name in sockets}

    def in_flight(self, number: int) -> int:
        """How many descriptors are in the queue of a UNIX socket, on their way to whoever reads it."""
        text = processes.read_file(f"{self._directory}/fdinfo/{number}") or b""
        match = re.search(rb"^scm_fds: (\d+)$", text, re.MULTILINE)
        return int(match.group(1)) if match else 0

    @contextlib.contextmanager
    def lender(self, syscall: Syscall) -> t.Iterator[t.Callable[[int], int]]:
        """A function that gives our own copy of a descriptor. Raises CannotLendError.

        Before Linux 6.9 the kernel lends nothing of a thread that is not the first of its process: EINVAL.
        """
        flags = 0 if self.thread == self.process else _PIDFD_THREAD
        try:
            pidfd = syscall(_PIDFD_OPEN, self.thread, flags, 0)
        except OSError as error:
            raise CannotLendError(error, not os.path.exists(self._directory)) from None
        try:
            yield lambda number: syscall(_PIDFD_GETFD, pidfd, number, 0)
        finally:
            os.close(pidfd)


class Finder:
    """Finds each table once, also over several calls."""

    def __init__(self, syscall: Syscall, alive: t.Callable[[int], None] = lambda pid: None) -> None:
        self._syscall, self._alive = syscall, alive
        # In the kernel's own order, so that one is found by halves.
        self._known: list[int] = []
        self._kcmp = _KCMP.get(os.uname().machine) if struct.calcsize("P") == 8 else None

    def tables(self, pids: t.Iterable[int]) -> t.Iterator[Table]:
        """First those of first threads, since an older kernel lends from no other."""
        pids = list(pids)
        for pid in pids:
            self._alive(pid)
            if self._is_new(pid):
                yield Table(pid, pid)
        for pid in pids:
            self._alive(pid)
            for thread in processes.threads(pid):
                if thread != pid and not self._same(thread, pid) and self._is_new(thread):
                    yield Table(pid, thread)

    def _is_new(self, thread: int) -> bool:
        low, high = 0, len(self._known)
        while low < high:
            middle = (low + high) // 2
            order = self._compare(thread, self._known[middle])
            if order == 0:
                return False
            if order is None:  # one of them has ended, or is not ours to look at
                break
            low, high = (low, middle) if order == 1 else (middle + 1, high)
        self._known.insert(low, thread)
        return True

    def _same(self, one: int, other: int) -> bool:
        return self._compare(one, other) == 0

    def _compare(self, one: int, other: int) -> int | None:
        """0: the same table; 1: before, 2: behind the other one; None: not known."""
        if self._kcmp is None:
            return None
        try:
            order = self._syscall(self._kcmp, one, other, _KCMP_FILES)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                self._kcmp = None
            return None
        return order if order in (0, 1, 2) else None
