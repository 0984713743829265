# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file for others, in a directory that may be theirs, as the textfile collector's of node_exporter often is.

Whoever owns the directory can put anything in the way: a link to a file of root's, a pipe that blocks whoever opens it.
So nothing that lies there is opened, only a file that was made here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from ..core.errors import LimiterError
from .errnos import errno_text


def publish(path: str, data: bytes) -> None:
    """Replaces the file in one step, readable for all. Raises LimiterError: ``cannot_write``, or ``locked`` where
    another process writes.
    """
    name = os.path.basename(path)
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _replace(directory, name, data)
        finally:
            os.close(directory)
    except BlockingIOError:
        raise LimiterError(
            "locked", f"{path} cannot be written", "another process holds a lock of its directory", "Run again"
        ) from None
    except OSError as error:
        raise LimiterError(
            "cannot_write", f"{path} cannot be written", errno_text(error), "Give a file in a directory that exists"
        ) from None


def _replace(directory: int, name: str, data: bytes) -> None:
    # Not waited for: others can hold it as long as they like.
    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unfinished = f".{name}.new"  # what ends with .prom is read
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished, dir_fd=directory)  # of a run that was killed
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.replace(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=directory)
        raise
