# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted where, as this process sees it."""

from __future__ import annotations

import os
import re
import typing as t


class Mount(t.NamedTuple):
    """A line of /proc/PID/mountinfo, as far as it matters here."""

    point: str
    kind: str  # of file system
    root: str  # of the file system's tree: "/" where all of it is mounted
    device: str  # "major:minor"
    options: tuple[str, ...] = ()  # of the file system; a hierarchy of cgroup v1 names its controllers there

    @property
    def visible(self) -> bool:
        """Whether it is what one finds at its mount point: a mount on a directory above may hide it."""
        try:
            device = os.stat(self.point).st_dev
        except OSError:
            return False
        return f"{os.major(device)}:{os.minor(device)}" == self.device


def listed() -> list[Mount]:
    """Every mount point of this mount namespace, with what was mounted there last: that covers what was before."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return parse(lines)


def parse(lines: t.Iterable[str]) -> list[Mount]:
    last: dict[str, Mount] = {}
    for line in lines:
        fields = line.split(" ")
        # Optional fields, any number of them, end with a lone "-".
        end = fields.index("-", 6)
        point, options = _unescape(fields[4]), " ".join(fields[end + 3 :]).rstrip("\n").split(",")
        last[point] = Mount(point, fields[end + 1], fields[3], fields[2], tuple(options))
    return list(last.values())


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, line end and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
