# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries whether sockets that are opened now belong to a cgroup: see core/association.py.

A new socket of our own is looked up through sock_diag(7), which has told the id of a socket's cgroup since Linux 5.9.
That takes a tenth of a millisecond, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import typing as t

from ...core import association
from ...core.association import Association
from ...core.errors import LimiterError
from .. import kernel, mounts
from ..groups import processes
from ..groups.cgroups import Cgroups
from . import diag

LOG = "/dev/kmsg"

_TIMEOUT = 1.0  # seconds; the kernel answers at once
_MOST_CGROUPS = 1000  # of cgroup v1, that are looked through for values
_SAID = b"disabling cgroup2 socket matching"


def look(
    cgroups: Cgroups,
    inside: t.Sequence[str] = (),
    guard: t.Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Association:
    """What is known of this host's sockets. ``inside``: cgroups in one of which a child process may try it, which is
    needed where this process itself is in the root, whose sockets tell nothing; ``guard`` keeps others from removing
    them meanwhile, or raises LimiterError.
    """
    if not association.can_be_lost(kernel.version(), controllers()):
        return Association(association.KEPT)
    state = try_here(cgroups)
    # Where nothing is told of a socket at all, no child learns more.
    if state == association.UNKNOWN and cgroup_of_new_socket() is not None:
        there = next((cgroup for cgroup in inside if cgroups.exists(cgroup)), None)
        if there:
            with contextlib.suppress(LimiterError, OSError), guard():
                state = _try_inside(cgroups, there)
    if state == association.LOST:
        return Association(state, "a socket that was opened as a test has no cgroup")
    return Association(state) if state == association.KEPT else _traces()


def controllers() -> set[str]:
    """The controllers of cgroup v1 and v2 that the kernel was built with and that are not disabled."""
    text = (processes.read_file("/proc/cgroups") or b"").decode("ascii", "replace")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {row[0] for row in rows if len(row) == 4 and row[3] == "1"}


def try_here(cgroups: Cgroups) -> str:
    """By a socket of this very process, wherever it is: KEPT, LOST or UNKNOWN."""
    own, found = _own_cgroup(cgroups), cgroup_of_new_socket()
    return association.judge(own, found) if own == _own_cgroup(cgroups) else association.UNKNOWN


def _own_cgroup(cgroups: Cgroups) -> int | None:
    for line in (processes.read_file("/proc/self/cgroup") or b"").splitlines():
        if line.startswith(b"0::"):
            return cgroups.identifier(os.fsdecode(line[3:]))
    return None


def cgroup_of_new_socket() -> int | None:
    """The id of the cgroup that the kernel takes a socket for that is opened now; None where it does not tell.

    It is a UDP socket that is connected to itself, so that nobody else can send to it, and so that it is found: for one
    that is not, sock_diag takes the two ends for each other.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        new = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        new.bind(("127.0.0.1", 0))
        new.connect(new.getsockname())
        answer = diag.udp_to_itself(socket.inet_aton("127.0.0.1"), new.getsockname()[1])
        return answer.cgroup_id if answer else None
    return None


def _try_inside(cgroups: Cgroups, cgroup: str) -> str:
    """As `try_here`, by a child that goes into the cgroup for it and ends there.

    A cgroup may be frozen, and the child with it: it is not waited for, and holds nothing that is ours, the lock least.
    """
    answers = {state[0].encode(): state for state in (association.KEPT, association.LOST)}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _close_all_but(writing)
            with open(f"{cgroups.absolute(cgroup)}/cgroup.procs", "wb", buffering=0) as file:
                file.write(b"0")  # the writer itself
            os.write(writing, try_here(cgroups)[0].encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with open(reading, "rb", buffering=0) as pipe:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            answer = pipe.read(1) if poll.poll(_TIMEOUT * 1000) else b""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return answers.get(answer, association.UNKNOWN)


def _close_all_but(fd: int) -> None:
    for other in map(int, os.listdir("/proc/self/fd")):
        if other != fd:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(other)


def _traces() -> Association:
    """What a use of the controllers has left, where it could not be tried what came of it."""
    if _kernel_said_so():
        return Association(association.LOST, "the kernel's log says so: disabling cgroup2 socket matching")
    for place in _hierarchies():
        trace = _trace(place)
        if trace:
            return Association(association.SUSPECTED, f"{trace}, and its effect could not be tested")
    return Association(association.UNKNOWN)


def _kernel_said_so() -> bool:
    """By its log, as far as that goes back. Records begin with priority + 8 * facility, which is 0 for the kernel."""
    with contextlib.suppress(OSError):
        fd = os.open(LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    record = os.read(fd, 8192)
                except BrokenPipeError:  # this one was overwritten meanwhile
                    continue
                if not record:  # containers may have /dev/null there
                    return False
                if _SAID in record and re.match(rb"[0-7],", record):
                    return True
        finally:
            os.close(fd)
    return False


def _hierarchies() -> list[str]:
    """Where net_cls and net_prio are mounted."""
    wanted = set(association.CONTROLLERS)
    return [mount.point for mount in mounts.listed() if mount.kind == "cgroup" and wanted & set(mount.options)]


def _trace(hierarchy: str) -> str | None:
    """The first trace of a use in a hierarchy, in words; as many cgroups as can be looked through are.

    A use is a value that is written, and with net_prio also a process that is moved (commit 090e28b229af,
    Linux 5.7).
    """
    for seen, (directory, _below, files) in enumerate(os.walk(hierarchy)):
        for name in sorted({"net_cls.classid", "net_prio.ifpriomap"} & set(files)):
            path = f"{directory}/{name}"
            if association.used((processes.read_file(path) or b"").decode("ascii", "replace")):
                return f"{path} has a value"
        if (
            "net_prio.ifpriomap" in files
            and directory != hierarchy
            and processes.read_file(f"{directory}/cgroup.procs")
        ):
            return f"{directory} of net_prio has processes"
        if seen == _MOST_CGROUPS:
            break
    return None
