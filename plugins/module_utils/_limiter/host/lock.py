# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One writer at a time on a host. The kernel gives the lock back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import typing as t

from ..core.errors import LimiterError
from . import apart, memory
from .errnos import errno_text
from .groups import processes

_RETRY_SECONDS = 0.05


@contextlib.contextmanager
def host_lock(seconds: float, directory: str = memory.DIRECTORY) -> t.Iterator[None]:
    """Holds the lock of this host, waiting for it ``seconds`` at most.

    Raises LimiterError ``locked``, which names the holder, and those of memory.open_directory().
    """
    deadline = time.monotonic() + seconds
    while True:
        fd = _open(directory)
        if _taken(fd) and _current(fd, directory):
            break
        holder = os.pread(fd, 32, 0)
        os.close(fd)
        if time.monotonic() >= deadline:
            raise _locked(holder, seconds, directory)
        time.sleep(_RETRY_SECONDS)
    apart.begin()
    try:
        _sign(fd, b"%d\n" % os.getpid())
        yield
    finally:
        _sign(fd, b"")
        os.close(fd)


def _sign(fd: int, holder: bytes) -> None:
    """Who holds the lock is for the message only: where it cannot be written, the lock holds all the same."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder, 0)


def _open(directory: str) -> int:
    while True:
        parent = memory.open_directory(directory, make=True)
        if parent is None:
            continue  # removed since it was made, by a run that forgot everything
        try:
            return os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LimiterError(
                "unusable_state_directory",
                f"{directory}/lock could not be opened",
                errno_text(error),
                "Check the file system /run",
            ) from None
        finally:
            os.close(parent)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _current(fd: int, directory: str) -> bool:
    """Whether the file that was locked is still the one that others would lock: memory.remove() deletes it."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(f"{directory}/lock"))
    except FileNotFoundError:
        return False


def _locked(holder: bytes, seconds: float, directory: str) -> LimiterError:
    pid = int(holder) if holder.strip().isdigit() else 0
    if pid:
        why = f"the process {pid} ({processes.command(pid)}) is changing it"
        remedy = f"Wait for it; or find out what blocks it, end it (kill {pid}) and run again: nothing stays locked"
    else:
        why = "another task is changing it"
        remedy = f"Run again; `fuser -v {directory}/lock` shows who holds the lock"
    return LimiterError("locked", f"this host's limits have been locked for {seconds:g} s", why, remedy)
