# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring sockets that are open already in line with the rules: paced where a rule holds, released where none does.

The kernel does it, one network namespace at a time: to read the pinned iterator is to run it in the reader's namespace.
Where a kernel has no such iterator (before 6.1), sockets are released one by one, as they can be borrowed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
import typing as t

from ...core import catalog
from ...core.errors import LimiterError
from .. import apart, kernel, memory
from ..bpf import pins
from ..bpf.libbpf import closing_fd, enter_network_namespace
from ..bpf.maps import Maps
from ..groups import processes
from . import holders, namespaces
from .borrow import Borrower, SlowError, ended, is_internet
from .tagging import SIOCGSKNS

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
    return _settle_in(None if pids is None else list(pids))


def _settle_in(pids: t.Sequence[int] | None) -> list[str]:
    """The kernel waits for each socket that its owner keeps locked, and cannot be interrupted. So a child does it; it
    enters the namespaces, too.
    """

    def work(tell: apart.Tell) -> None:
        apart.sign(one)
        _settle_each(pids, tell)

    try:
        with apart.only_one(memory.SETTLING) as one:
            outcome = apart.run(work, [one])
    except apart.HeldError as held:
        return [_held(held)]
    except LimiterError as error:
        return [str(error)]
    return _unfinished(outcome)


def _unfinished(outcome: apart.Outcome) -> list[str]:
    """What a child told, and what it did not do."""
    problems = [str(problem) for problem in outcome.said if problem]
    blamed = holders.who() if outcome.late else ""
    # Whom the kernel makes wait for a lock cannot be ended: without such a child, this host was merely too busy.
    if outcome.late and not blamed and not outcome.left:
        problems.append("the look at open sockets was not done in time: some may not have been seen")
    elif outcome.late:
        stays = f"; process {outcome.left} stays behind, as long as that lasts" if outcome.left else ""
        problems.append(f"{_locked_by(blamed)}{stays}")
    elif not outcome.complete:
        problems.append(outcome.why)
    return list(dict.fromkeys(problems))


def _held(held: apart.HeldError) -> str:
    return f"{_locked_by(holders.who())}, and process {held.pid} of an earlier task waits for it still"


def _locked_by(blamed: str) -> str:
    return f"{blamed or 'a process that the kernel does not name'} keeps a socket locked"


def _settle_each(pids: t.Sequence[int] | None, tell: apart.Tell) -> None:
    for namespace in namespaces.entered(pids, tell):
        try:
            _run(tell)
        except OSError as error:
            tell(f"{namespace.path or pins.path(catalog.SETTLE.link)}: {error.strerror}")
            if not namespace.path:
                return


def _run(tell: apart.Tell) -> None:
    with closing_fd(os.open(pins.path(catalog.SETTLE.link), os.O_RDONLY | os.O_CLOEXEC)) as fd:
        while True:
            tell("")  # it goes on
            try:
                if not os.read(fd, 65536):
                    return
            except BlockingIOError:  # after a million sockets: there is more
                continue


class Released(t.NamedTuple):
    problems: list[str]
    refusal: str  # the kernel lends no socket at all, for that reason


def release_one_by_one(maps: Maps) -> Released:
    """Gives every socket of every process that was told how fast to send the rate back that its process wants.

    Not reached: what no descriptor leads to.
    """

    def work(tell: apart.Tell) -> None:
        apart.sign(one)
        released = _release_each(maps, lambda pid: tell(""), tell)
        tell([*released, time.process_time()])

    try:
        with apart.only_one(memory.SETTLING) as one:
            began = time.monotonic()
            outcome = apart.run(work, [one, maps.of(catalog.PACING).fd])
    except apart.HeldError as held:
        return Released([_held(held)], "")
    except LimiterError as error:
        return Released([str(error)], "")
    took = time.monotonic() - began
    if outcome.complete:
        problems, refusal, seconds = outcome.said[-1]
        apart.has_looked(seconds, took)
        return Released(problems, refusal)
    apart.has_looked(0.0, took)
    return Released(_unfinished(outcome), "")


def _release_each(maps: Maps, alive: t.Callable[[int], None], tell: apart.Tell) -> Released:
    problems: dict[str, None] = {}
    settled: set[int] = set()
    lends = False
    borrower = Borrower(apart.looks(), alive)
    try:
        for table in borrower.tables(processes.all_pids()):
            entries = [entry for entry in borrower.entries(table) if entry.inode]
            for lent in borrower.lend(table, entries):
                lends = True
                try:
                    if is_internet(lent.fd):
                        _release(maps, lent.fd, settled, tell)
                except (OSError, LimiterError) as error:
                    problems[f"a socket of process {table.process}: {error}"] = None
    except SlowError:
        problems[ended()] = None
    # Of a single process it is one that is not ours to look at.
    refusal = "" if lends else next((why for _pid, why in borrower.refused), "")
    return Released(list(problems), refusal)


def _release(maps: Maps, fd: int, settled: set[int], tell: apart.Tell) -> None:
    pacing = maps.pacing(fd)
    if pacing is None or not pacing.set:
        return
    if can_settle():  # that gives everything back, its congestion window, too
        with closing_fd(fcntl.ioctl(fd, SIOCGSKNS)) as namespace:
            inode = os.fstat(namespace).st_ino
            if inode not in settled:
                settled.add(inode)
                enter_network_namespace(namespace)
                _run(tell)
        if maps.pacing(fd) is None:
            return
    with contextlib.closing(socket.socket(fileno=os.dup(fd))) as copy:
        actual = copy.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _LONG.size)
        if actual == _LONG.pack(min(pacing.set, _LONG_MOST)):  # else its process has set another since
            copy.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _LONG.pack(min(pacing.own, _LONG_MOST)))
    maps.forget_pacing(fd)  # afterwards: who is killed in between does it again
