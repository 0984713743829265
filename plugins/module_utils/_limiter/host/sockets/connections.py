# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the TCP connections of a host, and measures some of them. Touches nothing.

The look locks no socket: sock_diag(7) tells each with what our programs keep of it. How much a socket has sent only
TCP_INFO tells, which waits for who keeps the socket locked; so it is asked of single sockets, each by a child that may
be left behind.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import typing as t

from ...core.connections import TCP_INFO_SIZE, Gathered, Seen, Sent, Summary, seen, sent
from ...core.errors import LimiterError
from .. import apart, clock, memory
from ..errnos import errno_text
from ..groups import processes
from . import diag, namespaces
from .borrow import Borrower, SlowError, option
from .syscalls import Syscall, syscall
from .tables import CannotLendError, Table

_LOOK_SECONDS, _LOOK_SILENCE = 4.0, 2.0
_DUMP_SECONDS = 2.5  # of those: anybody can make network namespaces, and many connections
_HOLDERS_SECONDS = 0.5
_MEASURE_SECONDS = 1.0
_OFTEN = 1000  # connections

StatesOf = t.Callable[[int], t.Collection[int]]


class Holder(t.NamedTuple):
    """A descriptor that leads to a socket."""

    inode: int
    process: int
    thread: int
    number: int


class Look(t.NamedTuple):
    at_ns: int = 0  # CLOCK_MONOTONIC
    summaries: t.Mapping[int, Summary] = {}  # by the state
    kept: t.Mapping[int, t.Sequence[Seen]] = {}
    holders: t.Mapping[int, Holder] = {}  # by the socket's inode
    problems: tuple[str, ...] = ()  # why there may be more


def look(
    storage: int,
    states_of: StatesOf,
    wanted: t.Container[int] | None,
    most: int,
    pids_of: t.Callable[[t.Iterable[int]], t.Iterable[int]],
    known: t.Mapping[int, Holder] | None = None,
    process: int | None = None,
) -> Look:
    """All connections that are charged to the ``wanted`` states; None: to any. ``most`` of each state are kept; of
    those of a ``process``, if one is given.

    ``storage`` is the open map rate_limit_pacing_map. ``states_of`` a cgroup: what a socket that was made in it is
    charged to. ``pids_of`` cgroups: the processes that may have the sockets that were made in them. ``known``: where
    descriptors were found before.
    """

    def work(tell: apart.Tell) -> None:
        problems: list[str] = []
        own = None if process is None else _sockets(process, tell, problems.append)
        gathered = Gathered(most, now, own)
        for connection, states in _connections(storage, states_of, tell, problems.append):
            gathered.add(connection, [state for state in states if wanted is None or state in wanted])
        kept = gathered.kept()
        tell([list(gathered.summaries.items()), list(kept.items()), problems])
        connections = {one.inode: one for several in kept.values() for one in several if one.inode}
        holders, slow = _find(connections, pids_of, own or known or {}, tell)
        tell([list(holders.values()), slow])

    now = clock.now()
    outcome = apart.run(work, [storage], _LOOK_SECONDS, _LOOK_SILENCE)
    said = [one for one in outcome.said if one]
    late = "looking at the connections of this host took too long"
    problems = [] if outcome.complete else [late if outcome.late else outcome.why]
    if not said:
        return Look(now, problems=tuple(problems))
    summaries, kept, told = said[0]
    holders, slow = said[1] if len(said) > 1 else ([], [])
    return Look(
        now,
        {
            state: Summary(count, why, {int(key): number for key, number in waits.items()})
            for state, (count, why, waits) in summaries
        },
        {
            state: [Seen._make(one)._replace(states=tuple(one[Seen._fields.index("states")])) for one in several]
            for state, several in kept
        },
        {holder[0]: Holder._make(holder) for holder in holders},
        (*problems, *told, *slow),
    )


def _connections(
    storage: int, states_of: StatesOf, tell: apart.Tell, problem: t.Callable[[str], None]
) -> t.Iterator[tuple[Seen, t.Collection[int]]]:
    """Our own network namespace's first. One that does not tell its connections keeps nobody from the others."""
    end = time.monotonic() + _DUMP_SECONDS
    untold: list[str] = []
    for namespace in namespaces.entered(None, problem):
        tell("")  # it goes on
        try:
            for count, answer in enumerate(diag.connections(storage), 1):
                if count % _OFTEN == 0:
                    tell("")
                    if time.monotonic() > end:
                        break
                stored = answer.stored()
                cgroup = answer.cgroup_id or 0
                states = states_of(cgroup) if stored is None else ()
                if stored is None and not states:
                    continue
                connection = seen(answer.inode, namespace.inode, answer.ends, cgroup, stored)
                yield connection, connection.states or states
        except OSError as error:
            untold.append(errno_text(error))
        if time.monotonic() > end:
            problem(f"the look at the connections was ended after {_DUMP_SECONDS:g} s: there are more of them")
            break
    if untold:
        problem(f"the kernel does not tell the connections of {len(untold)} network namespaces: sock_diag: {untold[0]}")


def _find(
    wanted: t.Mapping[int, Seen],
    pids_of: t.Callable[[t.Iterable[int]], t.Iterable[int]],
    known: t.Mapping[int, Holder],
    tell: apart.Tell,
) -> tuple[dict[int, Holder], list[str]]:
    """Descriptors of these sockets, as far as they are found in time."""
    found = {inode: holder for inode, holder in known.items() if inode in wanted and _leads(holder)}
    left = wanted.keys() - found.keys()
    if not left:
        return found, []
    borrower = Borrower(_HOLDERS_SECONDS, lambda pid: tell(""))
    likely = pids_of({wanted[inode].cgroup for inode in left})
    # Once: a process that went elsewhere took its sockets along.
    anybody = () if known else processes.all_pids()
    try:
        for pids in (likely, anybody):
            for holder in _held(borrower, pids) if left else ():
                if holder.inode in left:
                    found[holder.inode] = holder
                    left.discard(holder.inode)
                if not left:
                    break
    except SlowError:
        return found, [f"the look for the processes of {len(left)} connections was ended after {_HOLDERS_SECONDS:g} s"]
    return found, []


def _sockets(process: int, tell: apart.Tell, problem: t.Callable[[str], None]) -> dict[int, Holder]:
    """All that a process has descriptors of, internet or not, as far as they are found in time."""
    found: dict[int, Holder] = {}
    borrower = Borrower(_HOLDERS_SECONDS, lambda pid: tell(""))
    try:
        found.update((holder.inode, holder) for holder in _held(borrower, [process]))
    except SlowError:
        problem(f"the look for the sockets of process {process} was ended after {_HOLDERS_SECONDS:g} s")
    return found


def _held(borrower: Borrower, pids: t.Iterable[int]) -> t.Iterator[Holder]:
    """The sockets that processes have descriptors of. Raises SlowError."""
    for table in borrower.tables(pids):
        for entry in borrower.entries(table):
            if entry.inode:
                yield Holder(entry.inode, table.process, table.thread, entry.number)


def _leads(holder: Holder) -> bool:
    try:
        target = os.readlink(f"/proc/{holder.process}/task/{holder.thread}/fd/{holder.number}")
    except OSError:
        return False
    return target == f"socket:[{holder.inode}]"


def measure(holders: t.Iterable[Holder]) -> tuple[dict[int, Sent], set[int]]:
    """What these sockets have sent, by their inodes; and those that keep whoever looks at them waiting."""
    call = syscall()

    def claim(owner: int) -> t.ContextManager[int | None]:
        return apart.only_one(memory.MEASURING, make=False, owner=owner, wait=0.0)

    wanted = list(holders)
    owners = {pid: processes.owner(pid) for pid in {holder.process for holder in wanted}}
    try:
        found, held_up = apart.each(
            wanted,
            lambda holder: _measured(call, holder),
            _MEASURE_SECONDS,
            owner=lambda holder: owners[holder.process],
            claim=claim,
        )
    except LimiterError:
        return {}, set()
    said = {holder.inode: Sent._make(answer) for holder, answer in found if answer}
    return said, {holder.inode for holder in held_up}


def _measured(call: Syscall, holder: Holder) -> Sent | None:
    """None where it is gone, or is not lent."""
    try:
        with Table(holder.process, holder.thread).lender(call) as borrow:
            fd = borrow(holder.number)
    except CannotLendError:
        return None
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ESRCH, errno.EPERM, errno.EINVAL):
            return None
        raise
    try:
        if os.fstat(fd).st_ino != holder.inode:
            return None
        ipv6 = option(fd, socket.SO_DOMAIN) == socket.AF_INET6
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(fd)) as copy:
            info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        return sent(info, ipv6, time.monotonic_ns()) if len(info) == TCP_INFO_SIZE else None
    except OSError:
        return None
    finally:
        os.close(fd)
