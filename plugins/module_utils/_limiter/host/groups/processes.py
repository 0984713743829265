# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads /proc: whether a process lives, where it is, and how it is related to others."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import typing as t

from ...core.errors import LimiterError
from ...core.model import Process
from .. import apart, memory

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB702, 0xB704  # include/uapi/linux/nsfs.h
_NAMESPACES = 1 << 32  # a number that no user has
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h: PROC_PID_INIT_INO

# Fields of /proc/PID/stat, counted from the one behind the name: proc(5) calls the first of them field 3.
_STATE, _PARENT, _FLAGS, _THREADS, _START_TIME, _EXIT_SIGNAL, _ARGUMENTS = 0, 1, 6, 17, 19, 35, 45


def read_file(path: str) -> bytes | None:
    """A whole file of /proc or of a cgroup; None where it is gone. Faster than open(): there may be 10,000."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        chunks: list[bytes] = []
        while True:
            chunk = os.read(fd, 65536)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
    except OSError:  # ESRCH: it died after it was opened
        return None
    finally:
        os.close(fd)


def _stat(pid: int) -> list[bytes] | None:
    text = read_file(f"/proc/{pid}/stat")
    # The name may itself hold parentheses, spaces and line ends.
    return text[text.rindex(b")") + 2 :].split() if text else None


def read(pid: int) -> Process | None:
    """The living process ``pid``; None where there is none: never was, gone, a zombie, or a mere thread of another."""
    stat = _stat(pid)
    # The kernel's own definition of "leads its thread group", that is, "is a process": exit_signal >= 0.
    if stat is None or int(stat[_EXIT_SIGNAL]) < 0:
        return None
    directory = f"/proc/{pid}"
    if stat[_STATE] in (b"Z", b"X", b"x"):
        # The first thread may end before the others: the process lives on, but that thread no longer tells where.
        others = [thread for thread in threads(pid) if thread != pid]
        if int(stat[_THREADS]) < 2 or not others:
            return None
        directory = f"/proc/{pid}/task/{others[0]}"
    cgroups = read_file(f"{directory}/cgroup")
    if cgroups is None:
        return None
    for line in cgroups.split(b"\n"):
        if line.startswith(b"0::"):
            return Process(pid, int(stat[_START_TIME]), os.fsdecode(line[3:]))
    return Process(pid, int(stat[_START_TIME]), "/")  # a kernel without cgroup2: Cgroups.find() says so


def has_host_numbers() -> bool:
    """Whether processes have the numbers here by which programs of the kernel see them, as on a host they have."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except FileNotFoundError:  # a kernel without such namespaces
        return True


def lives(pid: int, start_time: int) -> bool:
    """Whether that very process, and not a later one with its number, still runs."""
    process = read(pid)
    return process is not None and process.start_time == start_time


def leader(thread: int) -> int | None:
    """The process that a thread belongs to."""
    match = re.search(rb"^Tgid:\s+(\d+)$", read_file(f"/proc/{thread}/status") or b"", re.MULTILINE)
    return int(match.group(1)) if match else None


def command(pid: int) -> str:
    """What a message calls a process: its command line, else its name; ``gone`` where it is gone."""
    return commands([pid])[pid]


def commands(pids: t.Iterable[int]) -> dict[int, str]:
    """As `command`, of many."""
    wanted = list(pids)
    living = {pid: process.start_time for pid in wanted for process in [read(pid)] if process}
    said = dict(ask(living, _command_line)[0])
    return {pid: said.get(pid) or name(pid) or "gone" for pid in wanted}


def ask(living: t.Mapping[int, int], look: t.Callable[[int], t.Any]) -> tuple[list[tuple[int, t.Any]], t.Sequence[int]]:
    """What ``look``, which may read processes' memory, says of each, None where it has died; and those that keep it
    waiting. Memory may keep its reader waiting, and with FUSE even from ending. ``living``: their start times.
    """

    def ask_it(pid: int) -> t.Any:
        # A later process with its number may have another owner, who has no claim.
        return look(pid) if lives(pid, living[pid]) else None

    def claim(number: int) -> t.ContextManager[int | None]:
        return apart.only_one(memory.READING, make=False, owner=number, wait=0.0)

    try:
        return apart.each(living, ask_it, owner=owner, claim=claim)
    except LimiterError:
        return [], list(living)


def arguments_are_its_own(pid: int) -> bool:
    """Whether no file has to be read for a process's arguments. A file system of its user's may never answer, and
    nothing ends who waits for that; with other pages that never come, a signal does.
    """
    stat = _stat(pid)
    start = int(stat[_ARGUMENTS]) if stat else 0
    for line in (read_file(f"/proc/{pid}/maps") or b"").splitlines():
        first, _dash, last = line.split(b" ", 1)[0].partition(b"-")
        if int(first, 16) <= start < int(last, 16):
            return line.split()[4] == b"0"  # the inode
    return True  # it has none


def _command_line(pid: int) -> str:
    if not arguments_are_its_own(pid):
        return ""
    text = " ".join(os.fsdecode(read_file(f"/proc/{pid}/cmdline") or b"").replace("\0", " ").split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def name(pid: int) -> str:
    return " ".join(os.fsdecode(read_file(f"/proc/{pid}/comm") or b"").split())


def name_and_user(pid: int) -> str:
    """``nginx, user 33``: what can be read without waiting."""
    uid = user(pid)
    return "gone" if uid is None else f"{name(pid)}, user {uid}"


def user(pid: int) -> int | None:
    """The real user's number."""
    match = re.search(rb"^Uid:\s+(\d+)", read_file(f"/proc/{pid}/status") or b"", re.MULTILINE)
    return int(match.group(1)) if match else None


def executable(pid: int) -> str | None:
    """Its path, also where it was removed since. Nothing is asked of the file system that it is on, which may be a
    user's.
    """
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    return None


def owner(pid: int) -> int:
    """Who answers for a process: its user; the user who made the namespace in which he has other numbers, too; or the
    namespace, where root made it, as for a container.
    """
    uid = user(pid) or 0
    try:
        own = os.stat("/proc/self/ns/user")
        if os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), own):
            return uid
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return uid
    try:
        while True:
            above = fcntl.ioctl(fd, _NS_GET_PARENT)
            if os.path.samestat(os.fstat(above), own):
                os.close(above)
                break
            os.close(fd)
            fd = above
        maker = bytearray(4)
        fcntl.ioctl(fd, _NS_GET_OWNER_UID, maker)
        return int.from_bytes(maker, sys.byteorder) or _NAMESPACES + os.fstat(fd).st_ino
    except OSError:  # a namespace that is not below ours
        return uid
    finally:
        os.close(fd)


def is_kernel_thread(pid: int) -> bool:
    """Kernel threads send for everybody: limiting one is never what was meant."""
    stat = _stat(pid)
    return stat is not None and bool(int(stat[_FLAGS]) & _PF_KTHREAD)


def ancestors(pid: int) -> list[int]:
    """Parent, grandparent ... up to where the pid namespace ends."""
    found: list[int] = []
    stat = _stat(pid)
    while stat is not None:
        parent = int(stat[_PARENT])
        if parent == 0 or parent in found:  # in found: a pid was used again while we looked
            break
        found.append(parent)
        stat = _stat(parent)
    return found


def protected(own_pid: int) -> set[int]:
    """What a selector must never take: the init process, and the task itself with everything that it hangs on."""
    return {1, own_pid, *ancestors(own_pid)}


def descendants(pids: t.Iterable[int], beside: t.Iterable[int] = ()) -> list[int]:
    """Children, their children ... of ``pids``, without these, and without those ``beside`` and their own; zombies may
    be among them.

    A process that forks meanwhile may be missed: who moves them looks again until nothing new is found.
    """
    # The file is there if the kernel has CONFIG_PROC_CHILDREN.
    children = _children if os.path.exists("/proc/thread-self/children") else _children_by_scan()
    waiting = list(dict.fromkeys(pids))
    found = dict.fromkeys((*waiting, *beside))
    roots = set(found)
    while waiting:
        fresh = [child for child in children(waiting.pop()) if child not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return [pid for pid in found if pid not in roots]


def _children(pid: int) -> list[int]:
    # A child belongs to the thread that forked it.
    files = [read_file(f"/proc/{pid}/task/{thread}/children") for thread in threads(pid)]
    return [int(child) for text in files if text for child in text.split()]


def _children_by_scan() -> t.Callable[[int], list[int]]:
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        stat = _stat(pid)
        if stat is not None:
            children.setdefault(int(stat[_PARENT]), []).append(pid)
    return lambda pid: children.get(pid, [])


def threads(pid: int) -> list[int]:
    """The threads of a process, the first one too, even where it has ended; none where the process is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def all_pids() -> list[int]:
    """Every process of this pid namespace, zombies and kernel threads included."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
