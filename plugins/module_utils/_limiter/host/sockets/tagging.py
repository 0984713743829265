# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that were open before their process came under a rule: each keeps the cgroup that it was made in, so it is
tagged.

What no descriptor leads to cannot be tagged: connections that wait to be accepted, sockets that are on their way from
one process to another, files that only an io_uring has. It is counted, and told.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
import typing as t

from ...core.errors import LimiterError
from .. import apart
from ..bpf.libbpf import closing_fd, enter_network_namespace
from ..groups import processes
from . import diag
from .borrow import Borrower, SlowError, ended, is_internet, is_unix, listens
from .tables import BUSY, Entry, Table

# A process that opens connections without end must not hold us for ever; new ones are made in the new cgroup anyway.
_PASSES = 8
_WAIT_SECONDS = 0.1  # what waits longer to be accepted or received is told

_SILENCES = 1.0, 3.0  # of one process; whoever kept us waiting is tried again, and for longer
_MOST_NAMED = 3

SIOCGSKNS = 0x894C  # linux/sockios.h: a descriptor of the network namespace that a socket is in
_BACKLOG = 24  # tcpi_unacked in struct tcp_info: of a listener, how many connections wait
_BACKLOG_SIZE = 28


class Tags(t.NamedTuple):
    """How a socket is tagged, by a descriptor of our own; and the tag, and the descriptor of the map that has it, by
    which it is found with sockets that have no descriptor.
    """

    tag: t.Callable[[int], None]
    value: bytes = b""
    map_fd: int | None = None


class Tagged(t.NamedTuple):
    sockets: int
    missed: list[str]  # what was not tagged, and why


class _Tagging:
    """One look at the open sockets of processes, however many passes it takes."""

    def __init__(self, tags: t.Mapping[int, Tags], borrower: Borrower) -> None:
        self._tags, self._borrower = tags, borrower
        self._tagged: set[int] = set()
        self._others: set[int] = set()  # sockets that are not the internet's
        self._failed: dict[tuple[int, str], set[int]] = {}
        self._waiting: dict[int, tuple[int, int]] = {}  # listener -> process, connections that wait to be accepted
        self._in_flight: dict[int, tuple[int, int]] = {}  # UNIX socket -> process, descriptors in its queue
        self._registered: dict[int, set[int | str]] = {}  # process -> sockets that its io_urings have
        self._listeners: set[int] = set()

    def run(self) -> Tagged:
        slow = []
        give_up = 0.0
        try:
            for _pass in range(_PASSES):
                before = len(self._tagged)
                self._waiting, self._in_flight, self._registered = {}, {}, {}
                self._pass(self._borrower.tables(self._tags))
                if len(self._tagged) > before:
                    continue
                give_up = give_up or time.monotonic() + _WAIT_SECONDS
                if not (self._waiting or self._in_flight or self._is_busy()) or time.monotonic() > give_up:
                    break
                time.sleep(0.01)
        except SlowError:
            slow = [ended()]
        return Tagged(len(self._tagged), [*slow, *self._missed()])

    def _is_busy(self) -> bool:
        return any(BUSY in sockets for sockets in self._registered.values())

    def _pass(self, tables: t.Iterable[Table]) -> None:
        """Listeners come first, since what they accept inherits from them."""
        later: list[tuple[Table, list[Entry]]] = []
        for table in tables:
            entries, others = [], []
            for entry in self._borrower.entries(table):
                if entry.inode is None:
                    self._registered.setdefault(table.process, set()).update(table.registered(entry.number))
                elif entry.inode in self._others:
                    others.append(entry)
                elif entry.inode not in self._tagged or entry.inode in self._listeners:
                    entries.append(entry)
            self._look_into(table, others)
            rest = []
            for lent in self._borrower.lend(table, entries):
                inode = lent.entry.inode or 0
                if not is_internet(lent.fd):
                    self._others.add(inode)
                    if is_unix(lent.fd):
                        self._look_into(table, [lent.entry])
                elif listens(lent.fd):
                    self._listeners.add(inode)
                    self._tag(lent.fd, inode, table)
                    self._count_waiting(lent.fd, inode, table)
                else:
                    rest.append(lent.entry)
            later.append((table, rest))
        for table, entries in later:
            for lent in self._borrower.lend(table, entries):
                self._tag(lent.fd, lent.entry.inode or 0, table)

    def _tag(self, fd: int, inode: int, table: Table) -> None:
        if inode in self._tagged:
            return
        self._tagged.add(inode)
        try:
            self._tags[table.process].tag(fd)
        except LimiterError as error:  # its owner may have used up the memory for its options
            self._failed.setdefault((table.process, str(error)), set()).add(inode)

    def _look_into(self, table: Table, entries: t.Iterable[Entry]) -> None:
        for entry in entries:
            inside = table.in_flight(entry.number)
            if inside:
                self._in_flight[entry.inode or 0] = table.process, inside

    def _count_waiting(self, listener: int, inode: int, table: Table) -> None:
        tags = self._tags[table.process]
        if inode in self._waiting or tags.map_fd is None:
            return
        with contextlib.suppress(OSError, LimiterError):
            with contextlib.closing(socket.socket(fileno=os.dup(listener))) as copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG_SIZE)
                backlog = struct.unpack_from("=I", info, _BACKLOG)[0]
                if not backlog:
                    return
                family, port = copy.family, copy.getsockname()[1]
                with closing_fd(fcntl.ioctl(listener, SIOCGSKNS)) as namespace:
                    enter_network_namespace(namespace)
            states = diag.ESTABLISHED, diag.CLOSE_WAIT
            found = diag.tcp_at(family, port, states, tags.map_fd)
            count = sum(not answer.inode and answer.stored() != tags.value for answer in found)
            if count:
                self._waiting[inode] = table.process, min(count, backlog)

    def _missed(self) -> t.Iterator[str]:
        for (pid, why), sockets in [*self._borrower.refused.items(), *self._failed.items()]:
            left = sockets - self._tagged if (pid, why) not in self._failed else sockets
            if left or not sockets:
                yield f"{_number(len(left), 'open socket') if left else 'open sockets'} of {_named(pid)}: {why}"
        for pid, count in self._waiting.values():
            yield f"{_number(count, 'connection')} that {_named(pid)} has not accepted yet"
        for pid, count in self._in_flight.values():
            yield (
                f"sockets among {_number(count, 'descriptor')} that {_named(pid)} was sent through a UNIX socket and "
                "has not received yet"
            )
        for pid, inodes in self._registered.items():
            unreached = inodes - self._tagged - {BUSY}
            if BUSY in inodes:
                yield f"sockets that {_named(pid)} may have in an io_uring, which is busy whenever it is looked at"
            if unreached:
                yield f"{_number(len(unreached), 'socket')} that {_named(pid)} has in an io_uring without a descriptor"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _named(pid: int) -> str:
    return f"process {pid} ({processes.name_and_user(pid)})"


def _some(pids: t.Sequence[int]) -> str:
    more = len(pids) - _MOST_NAMED
    named = ", ".join(map(_named, pids[:_MOST_NAMED]))
    return f"{named} and {more} more" if more > 0 else named


def tag(
    pids: t.Iterable[int], tags: Tags | t.Mapping[int, Tags], alive: t.Callable[[int], None] = lambda pid: None
) -> Tagged:
    """Tags every open internet socket of these processes once; ``tags`` are those of all, or of each.

    Then all are looked at again until nothing is new. What vanishes meanwhile is left out; what cannot be tagged does
    not keep the others from it.
    """
    each = dict.fromkeys(pids, tags) if isinstance(tags, Tags) else {pid: tags[pid] for pid in pids}
    return _Tagging(each, Borrower(apart.looks(), alive)).run()


def tag_apart(pids: t.Iterable[int], tags: Tags | t.Mapping[int, Tags], keep: t.Iterable[int]) -> Tagged:
    """As `tag`, by a child, for which the descriptors ``keep`` stay open.

    Who keeps it waiting is left out, and told; so is for whom the task has no time left.
    """
    rest = list(pids)
    held_up: list[int] = []
    kept_waiting: set[int] = set()
    total = 0
    missed: list[str] = []
    for number, silence in enumerate(_SILENCES):
        deadline = time.monotonic() + apart.looks_by_clock() / (len(_SILENCES) - number)
        while rest and apart.looks() > 0 and apart.patience() > 0 and time.monotonic() < deadline:

            def work(tell: apart.Tell, rest: t.Sequence[int] = tuple(rest)) -> None:
                begin = time.process_time()
                done = tag(rest, tags, lambda pid: tell([pid, time.process_time() - begin]))
                tell([*done, time.process_time() - begin])

            began = time.monotonic()
            outcome = apart.run(work, keep, deadline - began, silence)
            last: list[t.Any] = outcome.said[-1] if outcome.said else [0, 0.0]
            apart.has_looked(last[-1], time.monotonic() - began)
            if outcome.complete:
                count, texts, _seconds = last
                total, missed, rest = total + count, [*missed, *texts], []
            elif not outcome.late:
                missed.append(f"open sockets of {_some(rest)}: {outcome.why}")
                rest = []
            elif last[0] in rest and apart.patience() > 0 and time.monotonic() < deadline:
                held_up.append(last[0])
                kept_waiting.add(last[0])
                rest.remove(last[0])
        rest, held_up = [*rest, *held_up], []
    missed += [
        f"open sockets of {_named(pid)}, which keeps whoever looks at it waiting" for pid in rest if pid in kept_waiting
    ]
    untried = [pid for pid in rest if pid not in kept_waiting]
    if untried and not apart.looks():
        missed.append(ended())
    elif untried:
        missed.append(f"open sockets of {_some(untried)}: the look at them was not done in time")
    return Tagged(total, missed)
