# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names a rule may have. The name becomes a directory in cgroup2, beside the kernel's own files."""

from __future__ import annotations

import re

from .errors import LimiterError

MAX_LENGTH = 128
_AUTOMATIC = re.compile(r"pid-[0-9]+")
_RULE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]*", re.ASCII)

# Every file of cgroup2 is called <one of these>.<something>. A newer kernel may add such files, so every name of this
# form is refused: a rule named memory.peak could not be made after the upgrade that brings this file.
_CONTROLLERS = frozenset(
    ("cgroup", "cpu", "cpuset", "debug", "devices", "dmem", "freezer", "hugetlb")
    + ("io", "irq", "memory", "misc", "perf_event", "pids", "rdma")
)


def controller_file(name: str) -> bool:
    """Whether the cgroup core or a controller may have a file of this name (``cgroup.procs``, ``memory.max``)."""
    controller, dot, rest = name.partition(".")
    return bool(dot and rest) and controller in _CONTROLLERS


def check_rule_name(option: str, value: str) -> None:
    """Raises LimiterError ``bad_name`` unless ``value`` can be the name of a rule. ``option`` begins the text."""
    if not _RULE_NAME.fullmatch(value):
        why = "a rule's name has letters, digits and _ . @ : - only, and does not begin with one of . @ : -"
    elif len(value) > MAX_LENGTH:
        why = f"it has {len(value)} characters, and {MAX_LENGTH} are the most"
    elif controller_file(value):
        why = "the kernel's own files in a cgroup have such names"
    else:
        return
    shown = value if len(value) <= MAX_LENGTH else f"{value[:40]}..."
    raise LimiterError("bad_name", f"{option} {shown!r} is refused", why, "Choose a name such as 'backup' or 'web-1'")


def is_automatic(name: str) -> bool:
    """Whether this is the name of an automatic rule, one for a single process: ``pid-1234``."""
    return _AUTOMATIC.fullmatch(name) is not None
