# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `limiter` on this host: its package, its starter, its manual page and what a shell completes.

The starter goes by a symbolic link, which is replaced in one step: whoever is killed leaves the command that was there,
or the whole new one. The package before this one stays, since a command that began with it may still import.
"""

from __future__ import annotations

import errno
import os
import py_compile
import re
import shutil
import stat
import tempfile
import typing as t

from ..core.errors import LimiterError
from . import files
from .errnos import errno_text

DIRECTORY = "/usr/lib/speed_limiter"
PACKAGE = "speed_limiter"
STARTER = "/usr/sbin/limiter"
MANUAL = "/usr/share/man/man8/limiter.8"
COMPLETION = "/usr/share/bash-completion/completions/limiter"
MARK = "Installed by the Ansible collection speed_limiter.ebpf"  # in every file beside the package: it is ours

_LINK = f"{DIRECTORY}/python"
_PREFIX = "python-"

STARTER_TEXT = f"""\
#!{{interpreter}} -I
# {MARK}, by its role setup, which also removes it.
import gc
import os
import sys

gc.disable()  # it ends soon
sys.path.insert(0, os.path.realpath("{_LINK}"))
try:
    from {PACKAGE}.front.cli.main import main

    status = main()
except KeyboardInterrupt:
    status = 130
except ImportError as error:
    status = f"limiter: {{error}}: the role setup installs this command anew (broken_command)"
sys.exit(status)
"""


class Command(t.NamedTuple):
    """What is there, or shall be: the text of each file, by its path. Those of the package are below it."""

    package: t.Mapping[str, str]
    files: t.Mapping[str, str]


def look() -> Command:
    """What is there of the command, without what others made. Touches nothing."""
    texts = ((path, _text(path)) for path in (STARTER, MANUAL, COMPLETION))
    return Command(dict(_package(_LINK)), {path: text for path, text in texts if text is not None and MARK in text})


def version() -> str | None:
    """Of what is installed; None where nothing is, or where it does not say."""
    text = _text(f"{_LINK}/{PACKAGE}/generated/version.py") or ""
    said = re.search(r"""^VERSION = ["']([\w.+-]{1,64})["']$""", text, re.MULTILINE)
    return said.group(1) if said else None


def check(wanted: Command) -> None:
    """Raises LimiterError where `install` or `remove` would: ``foreign_command``, ``unsafe_directory``,
    ``cannot_write``.
    """
    for path in wanted.files:
        text = _text(path)
        if text is not None and MARK not in text:
            raise LimiterError(
                "foreign_command",
                f"{path} is in the way",
                "this collection did not make it",
                "Remove it, with the package that it belongs to; or set setup_command=false for the role setup",
            )
    if os.path.lexists(DIRECTORY):
        why = files.distrust(os.stat(DIRECTORY, follow_symlinks=False))
        if why is not None:
            raise LimiterError("unsafe_directory", f"{DIRECTORY} cannot be trusted", why, f"chmod go-w {DIRECTORY}")
    for path in (DIRECTORY, *map(os.path.dirname, wanted.files)):
        existing = path
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        if not os.access(existing, os.W_OK):
            raise _cannot_write(OSError(errno.EROFS, os.strerror(errno.EROFS), existing))


def install(wanted: Command) -> None:
    """Replaces what differs. Raises LimiterError ``cannot_write``."""
    try:
        _make_directory(DIRECTORY)
        if dict(_package(_LINK)) != wanted.package:
            _remove_packages(os.path.realpath(_LINK))  # what a killed run left, and the one before this one
            _replace_package(wanted.package)
        for path, text in wanted.files.items():
            if _text(path) != text:
                _make_directory(os.path.dirname(path))
                files.write(path, text.encode(), 0o755 if path == STARTER else 0o644)
    except OSError as error:
        raise _cannot_write(error) from error


def remove(found: Command) -> None:
    """The starter goes first. Raises LimiterError ``cannot_write``."""
    try:
        for path in (*found.files, _LINK, *_unfinished()):
            if os.path.lexists(path):
                os.unlink(path)
        _remove_packages(None)
    except OSError as error:
        raise _cannot_write(error) from error
    try:
        os.rmdir(DIRECTORY)
    except OSError:
        pass  # the object is in it, or it is a mount point


def leftovers() -> bool:
    """Whether there is anything that `look` does not show: half a package, what a killed run had not finished."""
    return os.path.lexists(_LINK) or bool(_packages() or _unfinished())


def _unfinished() -> list[str]:
    return [path for name in (STARTER, MANUAL, COMPLETION, _LINK) if os.path.lexists(path := f"{name}.new")]


def _replace_package(package: t.Mapping[str, str]) -> None:
    directory = tempfile.mkdtemp(prefix=_PREFIX, dir=DIRECTORY)
    try:
        os.chmod(directory, 0o755)
        for path, text in package.items():
            complete = os.path.join(directory, PACKAGE, path)
            _make_directory(os.path.dirname(complete), directory)
            files.write(complete, text.encode())
            py_compile.compile(complete, doraise=True)  # a start takes half as long, also where nothing can be written
        for parent, directories, _names in os.walk(directory):
            for name in directories:
                os.chmod(os.path.join(parent, name), 0o755)
        unfinished = f"{_LINK}.new"
        if os.path.lexists(unfinished):
            os.unlink(unfinished)
        os.symlink(os.path.basename(directory), unfinished)
        os.replace(unfinished, _LINK)
    except BaseException:
        if os.path.realpath(_LINK) != directory:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _remove_packages(kept: str | None) -> None:
    for directory in _packages():
        if directory != kept:
            shutil.rmtree(directory)


def _packages() -> list[str]:
    if not os.path.isdir(DIRECTORY):
        return []
    return [f"{DIRECTORY}/{name}" for name in sorted(os.listdir(DIRECTORY)) if name.startswith(_PREFIX)]


def _package(directory: str) -> t.Iterator[tuple[str, str]]:
    """Each file of a package with its text; a link or a directory that is missing has none."""
    top = os.path.join(directory, PACKAGE)
    for parent, _directories, names in os.walk(top):
        if os.path.basename(parent) != "__pycache__":
            for name in names:
                path = os.path.join(parent, name)
                yield os.path.relpath(path, top), _text(path) or ""


def _text(path: str) -> str | None:
    """What is not text is not ours."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _make_directory(path: str, top: str = "/") -> None:
    if path != top and not os.path.isdir(path):
        _make_directory(os.path.dirname(path), top)
        os.mkdir(path)
        os.chmod(path, 0o755)  # whatever the task's umask is


def _cannot_write(error: OSError) -> LimiterError:
    return LimiterError(
        "cannot_write",
        f"{error.filename or DIRECTORY} cannot be written",
        errno_text(error),
        "Make it writable, or install the command where the host's image is built; set setup_command=false for the "
        "role setup to go without it",
    )
