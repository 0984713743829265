# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that root alone may write, written whole or not at all."""

from __future__ import annotations

import os
import stat


def distrust(status: os.stat_result) -> str | None:
    """Why somebody else than root could have written what is at a path (its ``os.stat`` without following links); None:
    nobody could.
    """
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if status.st_uid != 0:
        return f"its owner is uid {status.st_uid}, not root"
    if status.st_mode & 0o022:
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def distrust_way(path: str) -> str | None:
    """As `distrust`, of a file and of all directories that lead to it: who may write to one of them could put another
    file in its place, after any look. Raises OSError.
    """
    path = os.path.abspath(path)
    why = distrust(os.stat(path, follow_symlinks=False))
    if why is not None:
        return why
    above = {os.path.dirname(path), os.path.realpath(os.path.dirname(path))}
    while above:
        directory = above.pop()
        status = os.stat(directory, follow_symlinks=False)
        # In a sticky directory nobody can rename what is root's; a link has no mode of its own.
        closed = stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022
        if status.st_uid != 0 or not closed:
            return f"others may write to {directory}, and put another file in its place"
        if directory != "/":
            above.add(os.path.dirname(directory))
    return None


def write(path: str, data: bytes, mode: int = 0o644, directory: int | None = None, last: bool = True) -> None:
    """Replaces a file: a reader, a kill and a power failure leave the old one or the whole new one. ``path`` may be
    relative to the open ``directory``. One writer at a time (the host's lock) replaces what a killed one left
    (``.new``). Not the ``last`` one: another one follows in the same directory, or `sync_directory`. Raises OSError.
    """
    unfinished = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(unfinished, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(data)
        put_in_place(unfinished, path, mode, directory, last)
    except BaseException:
        try:
            os.unlink(unfinished, dir_fd=directory)
        except OSError:
            pass
        raise


def put_in_place(
    unfinished: str, path: str, mode: int = 0o644, directory: int | None = None, last: bool = True
) -> None:
    """Gives a finished file to root, and the name that readers know."""
    fd = os.open(unfinished, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fchown(fd, 0, 0)
        os.fchmod(fd, mode)  # whatever the task's umask is
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(unfinished, path, src_dir_fd=directory, dst_dir_fd=directory)
    if last:
        sync_directory(os.path.dirname(path), directory)


def sync_directory(path: str, directory: int | None) -> None:
    """No error: the new file is in its place, and whoever is told that it was not written would undo the rest."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
