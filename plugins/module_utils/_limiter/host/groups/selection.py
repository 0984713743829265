# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which living processes selectors name."""

from __future__ import annotations

import importlib
import os
import re
import sys
import typing as t
import zlib

from ...core.errors import LimiterError
from ...core.model import Selector
from .. import apart, memory
from . import expressions, processes, users

_NAME_LENGTH = 15  # what the kernel keeps of a name
_PATHS = 1 << 33  # and greater numbers: no users, but paths by their checksums, each with a child of its own


class Selected(t.NamedTuple):
    """Processes that a selector names, with their start times, and those of which it is not known, whatever else it
    says fits.
    """

    pids: t.Mapping[int, int]
    slow: t.Sequence[int] = ()  # there was no time to search their command lines
    held_up: t.Sequence[int] = ()  # whoever reads their memory is kept waiting
    unfollowed: str | None = None  # whoever asks where the links of this path lead is


class _Process:
    """What can be read of a process without waiting, each once."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.name = processes.name(pid)

    @property
    def user(self) -> int | None:
        return processes.user(self.pid)

    @property
    def executable(self) -> str | None:
        return processes.executable(self.pid)


class Wanted:
    """A selector that was found to be a good one."""

    def __init__(self, selector: Selector) -> None:
        """Raises LimiterError ``bad_selector``."""
        self.expression = _expression(selector)
        given = {key: value for key, value in selector._asdict().items() if value is not None}
        empty = [key for key, value in given.items() if value == ""]
        if empty or not given:
            # An empty regular expression, from a variable that somebody forgot to set, would match everything.
            what = f"processes: {', '.join(empty)} is empty" if empty else "processes: nothing is selected"
            raise LimiterError(
                "bad_selector", what, "", "Give at least one of name, exe, cmdline, user, and no empty value"
            )
        self.name = selector.name
        self.short_name = None if selector.name is None else " ".join(selector.name[:_NAME_LENGTH].split())
        self.paths = None if selector.exe is None else {selector.exe}  # and where its links lead, once that is known
        self.uid = None if selector.user is None else users.number("processes: user", selector.user)
        # What is cut of a long name is read from the command line, too.
        self.reads_memory = self.expression is not None or len(selector.name or "") >= _NAME_LENGTH

    def may_be(self, process: _Process) -> bool:
        """Whether all fits that can be read without waiting; the cheapest question first."""
        return (
            self.short_name in (None, process.name)
            and (self.uid is None or process.user == self.uid)
            and (self.paths is None or process.executable in self.paths)
        )


class _Said(t.NamedTuple):
    name: str
    line: str


def select(wanted: t.Mapping[Selector, Wanted]) -> dict[Selector, Selected]:
    """The living processes that match all keys of each selector, in ascending order. It takes a bounded time, whatever
    processes call themselves: see `expressions`, `apart`.

    ``name`` as psutil gives it (not cut after 15 characters); ``exe`` the path of the executable as given or where its
    symbolic links lead; ``cmdline`` a regular expression searched in the arguments joined by spaces; ``user`` the real
    user's name or number. Raises LimiterError ``unknown_user``, ``missing_dependency``.
    """
    if not wanted:
        return {}
    try:
        psutil = importlib.import_module("psutil")
    except ImportError as error:
        raise LimiterError(
            "missing_dependency",
            "processes cannot be selected",
            f"{sys.executable} cannot import psutil ({error})",
            "Install the package python3-psutil for that interpreter, or give pid, pids or cgroup_path instead",
        ) from None
    apart.begin()
    unfollowed = _follow_links(wanted)
    candidates: dict[Selector, dict[int, int]] = {selector: {} for selector in wanted}
    for pid in processes.all_pids():
        process = _Process(pid)
        fitting = [selector for selector, one in wanted.items() if one.may_be(process)]
        living = processes.read(pid) if fitting else None
        if living:
            for selector in fitting:
                candidates[selector][pid] = living.start_time
    # Memory is read once for all selectors, and of no process that none of them needs it of.
    to_read = {
        pid: start_time
        for selector, found in candidates.items()
        if wanted[selector].reads_memory
        for pid, start_time in found.items()
    }

    def look(pid: int) -> tuple[str, str] | bool | None:
        if not processes.arguments_are_its_own(pid):
            return False
        try:
            asked = psutil.Process(pid)
            return asked.name(), " ".join(asked.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie is a NoSuchProcess too
            return None

    answers, late = processes.ask(to_read, look) if to_read else ([], ())
    said = {pid: _Said(*answer) for pid, answer in answers if answer}
    held_up = {*late, *(pid for pid, answer in answers if answer is False)}
    owners: dict[int, int] = {}
    return {
        selector: _selected(one, candidates[selector], said, held_up, owners)._replace(
            unfollowed=selector.exe if selector.exe in unfollowed else None
        )
        for selector, one in wanted.items()
    }


def _follow_links(wanted: t.Mapping[Selector, Wanted]) -> set[str]:
    """Adds to each path where its links lead. A path may go through a file system that never answers, and who waits for
    that cannot always be ended. Returns the paths for which that is so.
    """

    def claim(number: int) -> t.ContextManager[int | None]:
        return apart.only_one(memory.READING, make=False, owner=number, wait=0.0)

    paths = sorted({selector.exe for selector in wanted if selector.exe is not None})
    if not paths:
        return set()
    try:
        found, late = apart.each(
            paths, os.path.realpath, owner=lambda path: _PATHS + zlib.crc32(os.fsencode(path)), claim=claim
        )
    except LimiterError:
        return set(paths)
    real = dict(found)
    for selector, one in wanted.items():
        if one.paths is not None and selector.exe in real:
            one.paths.add(real[selector.exe])
    return set(late)


def _selected(
    wanted: Wanted,
    found: t.Mapping[int, int],
    said: t.Mapping[int, _Said],
    held_up: t.AbstractSet[int],
    owners: dict[int, int],
) -> Selected:
    if not wanted.reads_memory:
        return Selected(dict(sorted(found.items())))
    named = {pid: said[pid] for pid in sorted(found) if pid in said and wanted.name in (None, said[pid].name)}
    unread = sorted(held_up & found.keys())
    if wanted.expression is None:
        return Selected({pid: found[pid] for pid in named}, (), unread)
    lines = {pid: one.line for pid, one in named.items() if one.line}
    for pid in lines.keys() - owners.keys():
        owners[pid] = processes.owner(pid)
    matched, slow = expressions.search(wanted.expression, lines, owners)
    return Selected({pid: found[pid] for pid in sorted(matched)}, sorted(slow), unread)


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
