# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads /proc: whether a process lives, where it is, and how it is related to others."""

from __future__ import annotations

import importlib
import os
import re
import sys
import typing as t

from ...core.errors import LimiterError
from ...core.model import Process, Selector
from .. import apart, memory
from . import expressions, users

_NAME_LENGTH = 15  # what the kernel keeps of a name
_PF_KTHREAD = 0x00200000  # include/linux/sched.h

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
    """As `command`, of many. A command line lies in its process's memory, which may keep its reader waiting, and with
    FUSE even from ending.
    """
    wanted = list(pids)
    said = dict(_ask(wanted, _command_line)[0])
    return {pid: said.get(pid) or _name(pid) or "gone" for pid in wanted}


def _ask(pids: t.Sequence[int], look: t.Callable[[int], t.Any]) -> tuple[list[tuple[int, t.Any]], t.Sequence[int]]:
    """What ``look``, which may read processes' memory, says of each; and those that keep it waiting."""
    try:
        with apart.only_one(memory.READING, make=False) as claim:
            return apart.each(pids, look, claim=claim)
    except (apart.HeldError, LimiterError):
        return [], pids


def _arguments_are_its_own(pid: int) -> bool:
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
    if not _arguments_are_its_own(pid):
        return ""
    text = " ".join(os.fsdecode(read_file(f"/proc/{pid}/cmdline") or b"").replace("\0", " ").split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _name(pid: int) -> str:
    return " ".join(os.fsdecode(read_file(f"/proc/{pid}/comm") or b"").split())


def name_and_user(pid: int) -> str:
    """``nginx, user 33``: what can be read without waiting."""
    match = re.search(rb"^Uid:\s+(\d+)", read_file(f"/proc/{pid}/status") or b"", re.MULTILINE)
    return f"{_name(pid)}, user {int(match.group(1))}" if match else "gone"


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


def descendants(pids: t.Iterable[int]) -> list[int]:
    """Children, their children ... of ``pids``, without these; zombies may be among them.

    A process that forks meanwhile may be missed: who moves them looks again until nothing new is found.
    """
    # The file is there if the kernel has CONFIG_PROC_CHILDREN.
    children = _children if os.path.exists("/proc/thread-self/children") else _children_by_scan()
    found = dict.fromkeys(pids)
    roots = set(found)
    waiting = list(found)
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


class Selected(t.NamedTuple):
    """Processes that a selector names, with their start times, and those whose command lines took too long."""

    pids: t.Mapping[int, int]
    undecided: t.Sequence[int]


def select(selector: Selector) -> Selected:
    """The living processes that match all keys of the selector, in ascending order. It takes a bounded time, whatever
    processes call themselves: see `expressions`.

    ``name`` as psutil gives it (not cut after 15 characters); ``exe`` the path of the executable as given or where its
    symbolic links lead; ``cmdline`` a regular expression searched in the arguments joined by spaces; ``user`` the real
    user's name or number. Raises LimiterError ``bad_selector``, ``unknown_user``, ``missing_dependency``.
    """
    expression = _expression(selector)
    tests = _tests(selector)  # before psutil: a bad selector is the user's to mend, whatever the host lacks
    try:
        psutil = importlib.import_module("psutil")
    except ImportError as error:
        raise LimiterError(
            "missing_dependency",
            "processes cannot be selected",
            f"{sys.executable} cannot import psutil ({error})",
            "Install the package python3-psutil for that interpreter, or give pid, pids or cgroup_path instead",
        ) from None
    found: dict[int, int] = {}
    lines: dict[int, str] = {}

    def look(pid: int) -> tuple[int, str] | None:
        """Its start time and command line, if it passes the tests."""
        try:
            process = psutil.Process(pid)
            if selector.name and _name(pid) != " ".join(selector.name[:_NAME_LENGTH].split()):
                return None
            # What is cut of a long name is read from the command line, too.
            if (expression or selector.name) and not _arguments_are_its_own(pid):
                return 0, ""
            living = read(pid) if all(test(process) for test in tests) else None
            return living and (living.start_time, " ".join(process.cmdline()) if expression else "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie is a NoSuchProcess too
            return None

    answers, held_up = _ask(all_pids(), look)
    undecided = list(held_up)
    for pid, (start_time, line) in ((pid, answer) for pid, answer in answers if answer):
        if not start_time:
            undecided.append(pid)
            continue
        found[pid] = start_time
        lines[pid] = line
    if expression is None:
        return Selected(dict(sorted(found.items())), sorted(undecided))
    matched, slow = expressions.search(expression, {pid: line for pid, line in lines.items() if line})
    return Selected({pid: found[pid] for pid in sorted(matched)}, sorted([*undecided, *slow]))


def _expression(selector: Selector) -> re.Pattern[str] | None:
    if not selector.cmdline:
        return None
    try:
        return re.compile(selector.cmdline)
    except (re.error, RecursionError, OverflowError) as error:
        raise LimiterError(
            "bad_selector",
            f"processes: cmdline {selector.cmdline!r} is not a regular expression",
            str(error),
            "It is Python's syntax; write \\ before . * + ? ( ) [ ] { } ^ $ | where they stand for themselves",
        ) from None


def _tests(selector: Selector) -> list[t.Callable[[t.Any], bool]]:
    """What is asked of a psutil.Process, but for its command line; the cheapest question first."""
    given = {key: value for key, value in selector._asdict().items() if value is not None}
    empty = [key for key, value in given.items() if value == ""]
    if empty or not given:
        # An empty regular expression, from a variable that somebody forgot to set, would match everything.
        what = f"processes: {', '.join(empty)} is empty" if empty else "processes: nothing is selected"
        raise LimiterError(
            "bad_selector", what, "", "Give at least one of name, exe, cmdline, user, and no empty value"
        )
    tests: list[t.Callable[[t.Any], bool]] = []
    if selector.name is not None:
        tests.append(lambda process: bool(process.name() == selector.name))
    if selector.user is not None:
        uid = users.number("processes: user", selector.user)
        tests.append(lambda process: bool(process.uids().real == uid))
    if selector.exe is not None:
        paths = {selector.exe, os.path.realpath(selector.exe)}
        tests.append(lambda process: process.exe() in paths)
    return tests
