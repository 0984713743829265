# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees of cgroups, which whoever owns one may make as deep and as wide as he likes.

A path may be longer than the kernel takes (PATH_MAX). So below a long one it begins anew, at a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ...core.patterns import Shape, fits
from . import processes

MOST = 100_000  # cgroups that are looked at: some seconds' work
_LONG = 3072  # bytes of a path; a name has 255 at most, and PATH_MAX is 4096


class Tree(t.NamedTuple):
    """A cgroup and all below it, each before those below it, by paths that are valid as long as the tree is open."""

    directories: list[str]
    complete: bool = True  # else there are more than `MOST`, or not all could be opened


@contextlib.contextmanager
def walked(top: str, recursive: bool = True, only_populated: bool = False) -> t.Iterator[Tree]:
    """``only_populated``: without cgroups that have no process, in them or below. Empty where ``top`` is gone."""
    with contextlib.ExitStack() as stack:
        found: list[str] = []
        waiting, left, complete = [top], MOST, True
        while waiting and left:
            directory, left = waiting.pop(), left - 1
            if only_populated and is_empty(directory):
                continue
            found.append(directory)
            names = children(directory) if recursive else []
            if names and len(os.fsencode(directory)) > _LONG:
                try:
                    directory = _anchored(directory, stack)
                except OSError:
                    complete = False
                    continue
            waiting += [f"{directory.rstrip('/')}/{name}" for name in names]
        yield Tree(found, complete and not waiting)


def children(directory: str) -> list[str]:
    """Names of the cgroups in one; none where it is gone."""
    try:
        # Two links and one for each cgroup below: saves listing some twenty files of every leaf.
        if os.stat(directory).st_nlink == 2:
            return []
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def fitting(mount: str, parents: t.Iterable[str], shape: Shape) -> tuple[list[str], list[str]]:
    """The cgroups right below some that a name with a star fits. `MOST` are looked at; then also the one with too many.

    Parents and what is found are paths below the mount; the root is empty.
    """
    found: list[str] = []
    left = MOST
    for above in parents:
        names = children(mount + above)
        found += [f"{above}/{name}" for name in names[:left] if fits(name, shape)]
        if len(names) > left:
            return found, [above or "/"]
        left -= len(names)
    return found, []


def is_empty(directory: str) -> bool:
    """Whether no process is in a cgroup, or below it. The root has no such file, and is never empty."""
    return b"populated 0" in (processes.read_file(f"{directory}/cgroup.events") or b"").split(b"\n")


def _anchored(directory: str, stack: contextlib.ExitStack) -> str:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"
