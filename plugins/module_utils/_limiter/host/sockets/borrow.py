# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets of other processes, borrowed with pidfd_getfd(2) one at a time: a server may have more than our own limit of
open files allows.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import typing as t

from .. import apart
from ..errnos import errno_text
from .syscalls import syscall
from .tables import CannotLendError, Entry, Finder, Table

_INTERNET = (socket.AF_INET, socket.AF_INET6)

NO_THREADS = "before Linux 6.9 the kernel lends no socket of a thread whose process's first thread does not share it"

Alive = t.Callable[[], None]


class SlowError(Exception):
    """The time for a look at descriptors is used up."""


def ended() -> str:
    """That it is used up for a task that changes something."""
    return (
        f"the look at descriptors was ended after {apart.LOOKS:g} s of a processor: some sockets may not have been seen"
    )


class Lent(t.NamedTuple):
    """Our own copy of a socket: closed when the next one is asked for."""

    fd: int
    entry: Entry
    table: Table


class Borrower:
    """Finds and borrows the sockets of processes; notes what it could not borrow.

    After ``seconds`` of the processor it raises SlowError. ``alive`` is called now and then, with the process that is
    looked at.
    """

    def __init__(self, seconds: float, alive: t.Callable[[int], None] = lambda pid: None) -> None:
        self._syscall = syscall()
        self._end = time.process_time() + seconds
        self._alive = alive
        self.refused: dict[tuple[int, str], set[int]] = {}  # process and reason -> sockets, as far as they are known

    def tables(self, pids: t.Iterable[int]) -> list[Table]:
        """Of all their threads, each once; small ones first, so that no large one can keep others from being seen."""
        found = []
        for table in Finder(self._syscall, self._alive).tables(pids):
            self.check_time()
            found.append(table)
        return sorted(found, key=Table.size)

    def check_time(self) -> None:
        if time.process_time() > self._end:
            raise SlowError

    def entries(self, table: Table) -> t.Iterator[Entry]:
        """As Table.entries; nothing where that is not ours to look at."""

        def alive() -> None:
            self._alive(table.process)
            self.check_time()

        try:
            yield from table.entries(alive)
        except PermissionError as error:
            self._refuse(table, [], error)

    def lend(self, table: Table, entries: t.Iterable[Entry]) -> t.Iterator[Lent]:
        """Our own copy of each, one at a time; what is gone meanwhile is left out."""
        try:
            with table.lender(self._syscall) as borrow:
                for count, entry in enumerate(entries):
                    if count % 64 == 0:
                        self._alive(table.process)
                        self.check_time()
                    try:
                        fd = borrow(entry.number)
                    except OSError as error:
                        if error.errno not in (errno.EBADF, errno.ESRCH):  # closed, or ended, since it was listed
                            self._refuse(table, [entry], error)
                        continue
                    try:
                        if os.fstat(fd).st_ino == entry.inode:  # else the descriptor is something else by now
                            yield Lent(fd, entry, table)
                    finally:
                        os.close(fd)
        except CannotLendError as error:
            if not error.gone:
                self._refuse(table, entries, error.cause)

    def _refuse(self, table: Table, entries: t.Iterable[Entry], error: OSError) -> None:
        if error.errno == errno.EINVAL and table.thread != table.process:
            why = NO_THREADS
        else:
            why = f"the kernel lends no sockets of other processes: {errno_text(error)}"
        sockets = self.refused.setdefault((table.process, why), set())
        sockets.update(entry.inode for entry in entries if entry.inode and table.is_internet(entry.number))


def is_internet(fd: int) -> bool:
    return option(fd, socket.SO_DOMAIN) in _INTERNET


def is_unix(fd: int) -> bool:
    return option(fd, socket.SO_DOMAIN) == socket.AF_UNIX


def listens(fd: int) -> bool:
    return bool(option(fd, socket.SO_ACCEPTCONN))


def option(fd: int, name: int) -> int | None:
    """A number that getsockopt(2) gives; None if the descriptor became something else before it was borrowed."""
    # With family, type and protocol given, Python does not ask the kernel for them.
    try:
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:  # ENOTSOCK
        return None
    try:
        return borrowed.getsockopt(socket.SOL_SOCKET, name)
    except OSError:
        return None
    finally:
        borrowed.detach()
