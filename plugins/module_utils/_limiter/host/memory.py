# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be remembered beside the kernel's own state: /run/speed_limiter/state.json, valid until the next boot.

Losing it loses little (processes go back to ``/`` instead of where they came from): a broken file never stops a task.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import typing as t

from ..core.errors import LimiterError
from ..core.model import Memory, Origin
from . import files
from .errnos import errno_text

DIRECTORY = "/run/speed_limiter"
EMPTY: t.Final = Memory(origins={}, automatic={}, homes={}, last=None)

_FILE, _BROKEN, _NEW, _LOCK = "state.json", "state.json.broken", "state.json.new", "lock"
# What a child that was left behind was doing: it keeps a byte of this file locked, and so the next task knows of it.
SETTLING, READING, MEASURING, TRACING = CLAIMS = "settling", "reading", "measuring", "tracing"

_LOCKED = struct.Struct("hhqqi0q")  # struct flock

FILE, BROKEN_FILE = f"{DIRECTORY}/{_FILE}", f"{DIRECTORY}/{_BROKEN}"


class _BrokenError(Exception):
    pass


def open_directory(path: str, make: bool) -> int | None:
    """A file descriptor of our directory in /run; None where it is missing and not to be made.

    Whoever can write there could tell us to move processes anywhere. So LimiterError ``unsafe_state_directory`` unless
    it is a directory, ours, and nobody else's to write.
    """
    if make:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise _failed("unusable_state_directory", path, "made", error) from None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise _unsafe(path, "it is a symbolic link or a file") from None
    except OSError as error:
        raise _failed("unusable_state_directory", path, "opened", error) from None
    status = os.fstat(fd)
    why = files.distrust(status)
    if why is None:
        return fd
    os.close(fd)
    raise _unsafe(path, why)


def open_claim(name: str, make: bool, directory: str = DIRECTORY) -> int | None:
    """The file of which children for this work keep bytes locked, one of CLAIMS; None where our directory is
    missing and not to be made.

    Raises LimiterError ``unsafe_state_directory``, ``unusable_state_directory``.
    """
    fd = open_directory(directory, make)
    if fd is None:
        return None
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except OSError as error:
        raise _failed("unusable_state_directory", f"{directory}/{name}", "opened", error) from None
    finally:
        os.close(fd)


def claim(fd: int, byte: int = 0, length: int = 1) -> bool:
    """Locks bytes of an open file, for all who have this descriptor. Whether nobody else has. ``length`` 0: all."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCKED.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0))
    except BlockingIOError:
        return False
    return True


def claims(fd: int) -> int:
    """How many bytes others keep locked, of a file of which nobody locks more than one at a time."""
    count, byte = 0, 0
    while True:
        asked = _LOCKED.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 0, 0)
        kind, _whence, start, length, _pid = _LOCKED.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return count
        count, byte = count + 1, start + length


def read(directory: str = DIRECTORY) -> tuple[Memory, list[str]]:
    """What is remembered of this boot, and warnings. Touches nothing.

    Raises LimiterError ``unsafe_state_directory``, ``unusable_state_directory``.
    """
    fd = open_directory(directory, make=False)
    if fd is None:
        return EMPTY, []
    try:
        return _load(fd), []
    except _BrokenError as error:
        return EMPTY, [
            f"{directory}/{_FILE} is broken ({error}) and counts as empty: processes that were moved before "
            f"now go back to the root cgroup. The next change keeps it as {_BROKEN}."
        ]
    finally:
        os.close(fd)


def write(memory: Memory, directory: str = DIRECTORY) -> None:
    """Replaces what is remembered, whole or not at all. A broken file is kept aside.

    Raises LimiterError ``unsafe_state_directory``, ``unusable_state_directory``.
    """
    text = json.dumps(
        {
            "boot_id": _boot_id(),
            "origins": {pid: [origin.start_time, origin.cgroup] for pid, origin in memory.origins.items()},
            "automatic": dict(memory.automatic),
            "homes": dict(memory.homes),
            "last": memory.last,
            "unsettled": list(memory.in_transit),
            "settling": memory.settling,
        }
    )
    fd = open_directory(directory, make=True)
    if fd is None:
        raise _gone(directory)
    try:
        try:
            _load(fd)
        except _BrokenError:
            os.replace(_FILE, _BROKEN, src_dir_fd=fd, dst_dir_fd=fd)
        files.write(_FILE, text.encode(), 0o600, directory=fd)
    except OSError as error:
        raise _failed("unusable_state_directory", f"{directory}/{_FILE}", "written", error) from None
    finally:
        os.close(fd)


def remove(directory: str = DIRECTORY) -> None:
    """Forgets everything: our files (the lock too: its holder may), and the directory if nothing else is in it.

    What a child that was left behind keeps locked stays: by it the next task knows of the child.
    """
    fd = open_directory(directory, make=False)
    if fd is None:
        return
    try:
        free = [name for name in CLAIMS if not _is_locked(fd, name)]
        for name in (_FILE, _BROKEN, _NEW, _LOCK, *free):
            try:
                os.unlink(name, dir_fd=fd)
            except FileNotFoundError:
                pass
        try:
            os.rmdir(directory)
        except OSError:
            pass  # somebody else's file is in it
    except OSError as error:
        raise _failed("unusable_state_directory", directory, "removed", error) from None
    finally:
        os.close(fd)


def _is_locked(directory: int, name: str) -> bool:
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        return not claim(fd, length=0)
    finally:
        os.close(fd)


def _load(directory: int) -> Memory:
    try:
        fd = os.open(_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return EMPTY
    except OSError as error:
        raise _BrokenError(errno_text(error)) from None
    try:
        with open(fd, encoding="utf-8") as file:
            data = json.load(file)
        if data["boot_id"] != _boot_id():
            return EMPTY
        origins = {
            int(pid): Origin(_typed(start_time, int), _typed(cgroup, str))
            for pid, (start_time, cgroup) in data["origins"].items()
        }
        return Memory(
            origins=origins,
            automatic={name: _typed(start_time, int) for name, start_time in data["automatic"].items()},
            homes={name: _typed(cgroup, str) for name, cgroup in data["homes"].items()},
            last=None if data["last"] is None else _typed(data["last"], str),
            in_transit=tuple(_typed(pid, int) for pid in data["unsettled"]),
            settling=_typed(data["settling"], bool),
        )
    except OSError as error:
        raise _BrokenError(errno_text(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _BrokenError(f"{type(error).__name__}: {error}") from None


_Value = t.TypeVar("_Value", int, str, bool)


def _typed(value: t.Any, kind: type[_Value]) -> _Value:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not of the type {kind.__name__}")
    return value


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _unsafe(path: str, why: str) -> LimiterError:
    return LimiterError(
        "unsafe_state_directory",
        f"{path} is refused",
        why,
        f"Nobody else may write there. Find out who made it, then remove it (rm -r {path}) and run again",
    )


def _gone(directory: str) -> LimiterError:
    return LimiterError("unusable_state_directory", f"{directory} is gone", "it was removed meanwhile", "Run again")


def _failed(kind: str, path: str, verb: str, error: OSError) -> LimiterError:
    remedy = (
        "Run the task as root (become: true)" if isinstance(error, PermissionError) else "Check the file system /run"
    )
    return LimiterError(kind, f"{path} could not be {verb}", errno_text(error), remedy)
