# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stored rules: /etc/speed_limiter/rules.d/NAME.json, read by tasks and at boot, written under the host's lock.

Whoever can write there decides what this host may send. So nothing is read that somebody else than root could have
written. Anybody may read it: nothing in it is secret.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import typing as t

from ..core.errors import LimiterError
from ..core.model import File, Refused, Store, StoredRule
from ..core.names import check_rule_name, is_automatic
from ..core.stored import from_json, to_json
from . import files
from .errnos import errno_text

DIRECTORY = "/etc/speed_limiter/rules.d"

_SUFFIX = ".json"
_UNSAFE = "unsafe_rules_directory"
_MOST_BYTES = 1 << 24  # ten thousand patterns of the greatest length fit


def path_of(name: str, directory: str = DIRECTORY) -> str:
    return f"{directory}/{name}{_SUFFIX}"


def read(names: t.Iterable[str] | None = None, directory: str = DIRECTORY) -> Store:
    """The files of these rules; by default all there are. Touches nothing and raises nothing."""
    try:
        fd = _open(directory)
    except LimiterError as error:
        return Store(unsafe=f"{error.what}: {error.why}")
    if fd is None:
        return Store(sealed=_sealed(directory))
    try:
        strange: dict[str, str] = {}
        if names is None:
            names = _names(fd, strange)
        found = {name: file for name in names for file in [_read(fd, name)] if file is not None}
        return Store(found, strange, sealed=_sealed(directory))
    finally:
        os.close(fd)


def contents(names: t.Iterable[str], directory: str = DIRECTORY) -> dict[str, bytes | None]:
    """What `replace` takes to bring these files back; None: no file, or one that is not read."""
    fd = _open(directory)
    if fd is None:
        return dict.fromkeys(names)
    try:
        return {name: text if isinstance(text, bytes) else None for name in names for text in [_text(fd, name)]}
    finally:
        os.close(fd)


def replace(changes: t.Mapping[str, StoredRule | bytes | None], directory: str = DIRECTORY) -> None:
    """Writes, or removes (None), the files of these rules, each as a whole. Raises LimiterError ``not_stored``, and as
    the directory is refused.
    """
    fd = _open(directory, make=any(change is not None for change in changes.values()))
    if fd is None:
        return
    contents = {
        f"{name}{_SUFFIX}": _rendered(change) if isinstance(change, StoredRule) else change
        for name, change in changes.items()
    }
    try:
        _sweep(fd)
        files.replace(fd, contents)
    except OSError as error:
        raise _not_stored(f"{directory}/{error.filename}" if error.filename else directory, error) from error
    finally:
        os.close(fd)


def remove_directory(directory: str = DIRECTORY) -> None:
    """Removes our directories, with what a killed task has left; what is not ours stays, and what it lies in."""
    with contextlib.suppress(LimiterError):
        fd = _open(directory)
        if fd is not None:
            with contextlib.suppress(OSError):
                _sweep(fd)
            os.close(fd)
            with contextlib.suppress(OSError):
                os.rmdir(directory)
                os.rmdir(os.path.dirname(directory))


def _open(directory: str, make: bool = False) -> int | None:
    """A descriptor of the directory; None where it is missing and not to be made.

    Raises LimiterError: ``unsafe_rules_directory`` where somebody else could write to it, or to the one that it lies
    in; ``not_stored`` where it cannot be made or opened.
    """
    fd = None
    for path in (os.path.dirname(directory), directory):
        if fd is not None:
            os.close(fd)
        try:
            if make:
                _make(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _unsafe(path, "it is a symbolic link or a file") from error
            raise _not_stored(path, error) from error
        why = files.distrust(os.fstat(fd))
        if why is not None:
            os.close(fd)
            raise _unsafe(path, why)
    return fd


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    os.chmod(path, 0o755)  # whatever the task's umask is


def _sealed(directory: str) -> str | None:
    """Why nothing can be written there."""
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if os.access(place, os.W_OK):
        return None
    read_only = os.statvfs(place).f_flag & os.ST_RDONLY
    why = "EROFS (Read-only file system)" if read_only else "EPERM (Operation not permitted)"
    return f"{place} cannot be written: {why}"


def _names(directory: int, strange: dict[str, str]) -> list[str]:
    names = []
    for entry in sorted(os.listdir(directory)):
        name, suffix, rest = entry.rpartition(_SUFFIX)
        if not suffix or rest:
            continue
        try:
            check_rule_name("its name", name)
        except LimiterError as error:
            strange[entry] = error.why
            continue
        if is_automatic(name):
            strange[entry] = "a rule of that name belongs to a process, which does not survive a reboot"
        else:
            names.append(name)
    return names


def _read(directory: int, name: str) -> File | None:
    text = _text(directory, name)
    if text is None or isinstance(text, Refused):
        return text
    try:
        return from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        return Refused(f"it is no JSON: {error}")


def _text(directory: int, name: str) -> bytes | Refused | None:
    """What is in a file; None where there is none."""
    try:
        # Not waiting: a pipe that nobody writes to would hold up the host's boot.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"{name}{_SUFFIX}", flags, dir_fd=directory)
        try:
            status = os.fstat(fd)
            why = files.distrust(status)
            if why is not None:
                return Refused(why, kind=_UNSAFE)
            if not stat.S_ISREG(status.st_mode):
                return Refused("it is no regular file")
            if status.st_size > _MOST_BYTES:
                return Refused(f"it is larger than {_MOST_BYTES} bytes")
            return os.read(fd, status.st_size)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Refused("it is a symbolic link", kind=_UNSAFE)
        return Refused(f"it cannot be read: {errno_text(error)}", kind="unreadable_file")


def _rendered(stored: StoredRule) -> bytes:
    return (json.dumps(to_json(stored), indent=1) + "\n").encode()


def _sweep(directory: int) -> None:
    """Removes what a killed task had not finished."""
    for entry in os.listdir(directory):
        if entry.endswith(_SUFFIX + files.UNFINISHED):
            os.unlink(entry, dir_fd=directory)


def _unsafe(path: str, why: str) -> LimiterError:
    return LimiterError(
        _UNSAFE,
        f"{path} is refused",
        why,
        f"Nobody else than root may write there. Look at what is in it, then: chown root {path}; chmod go-w {path}",
    )


def _not_stored(path: str, error: OSError) -> LimiterError:
    return LimiterError(
        "not_stored",
        f"{path} could not be written",
        errno_text(error),
        "Nothing was changed. Make /etc writable, or make room there; or set persistent=false",
    )
