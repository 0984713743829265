# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that root alone may write, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

UNFINISHED = ".new"  # ends the name of a file that is not in its place yet


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


def write(path: str, data: bytes, mode: int = 0o644, directory: int | None = None) -> None:
    """Replaces a file: a reader, a kill and a power failure leave the old one or the whole new one. ``path`` may be
    relative to the open ``directory``. One writer at a time (the host's lock) replaces what a killed one left
    (``.new``). Raises OSError.
    """
    unfinished = path + UNFINISHED
    try:
        _write(unfinished, data, directory)
        put_in_place(unfinished, path, mode, directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=directory)
        raise


def replace(directory: int, contents: t.Mapping[str, bytes | None], mode: int = 0o644) -> None:
    """Replaces files of an open directory, each as `write` does, or removes them (None). Where one cannot be written,
    none is touched. Raises OSError, with the file's name.
    """

    def begin(name: str) -> None:
        _write(name + UNFINISHED, contents[name] or b"", directory)

    def finish(name: str) -> None:
        _finish(name + UNFINISHED, mode, directory)

    fresh = [name for name, data in contents.items() if data is not None]
    try:
        # All are on their way to the disk before the first is waited for. To flush the whole file system would take
        # less time, unless somebody else has written gigabytes to it.
        for do in (begin, finish):
            for name in fresh:
                try:
                    do(name)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, name) from error
        for name in contents:
            if name in fresh:
                os.replace(name + UNFINISHED, name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
    except BaseException:
        for name in fresh:
            with contextlib.suppress(OSError):
                os.unlink(name + UNFINISHED, dir_fd=directory)
        raise
    _sync_directory("", directory)


def put_in_place(unfinished: str, path: str, mode: int = 0o644, directory: int | None = None) -> None:
    """Gives a finished file to root, and the name that readers know."""
    _finish(unfinished, mode, directory)
    os.replace(unfinished, path, src_dir_fd=directory, dst_dir_fd=directory)
    _sync_directory(os.path.dirname(path), directory)


def _write(path: str, data: bytes, directory: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(data)
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write it, and does not wait


def _finish(path: str, mode: int, directory: int | None) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fchown(fd, 0, 0)
        os.fchmod(fd, mode)  # whatever the task's umask is
        os.fsync(fd)  # before it gets its name: a power failure would leave an empty file
    finally:
        os.close(fd)


def _sync_directory(path: str, directory: int | None) -> None:
    """No error: the new file is in its place, and whoever is told that it was not written would undo the rest."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
