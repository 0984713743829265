# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the processes of a rule are: in a leaf, a cgroup made for the rule below the one that they were in, or, where
the kernel allows no leaf, in the rule's own cgroup.

Below a cgroup, only what the member map says is a leaf, whatever its name: users may make directories of any name.
"""

from __future__ import annotations

import typing as t

MANAGED = "/speed_limiter"
PREFIX = "speed_limiter."  # of a leaf's name: no file of the kernel begins with it

Leaves = t.Mapping[str, str]  # leaf -> name of its rule


class NoLeaf(t.NamedTuple):
    """Why a leaf is not possible."""

    why: str
    mend: str = ""  # what makes it possible
    in_place: bool = True  # whether the cgroup above it can be limited in place instead


def own_rule(cgroup: str) -> str | None:
    """The rule whose own cgroup is this one or above it."""
    parts = cgroup.split("/")
    return parts[2] if cgroup.startswith(f"{MANAGED}/") else None


def leaf_of(cgroup: str, leaves: t.Container[str]) -> str | None:
    """The leaf that is this cgroup or above it."""
    while cgroup not in ("", "/"):
        if cgroup in leaves:
            return cgroup
        cgroup = cgroup.rpartition("/")[0]
    return None


def rule_of(cgroup: str, leaves: Leaves) -> str | None:
    """The rule that the processes of a cgroup were put in."""
    leaf = leaf_of(cgroup, leaves)
    return own_rule(cgroup) if leaf is None else leaves[leaf]


def home_of(cgroup: str, leaves: t.Container[str]) -> str:
    """The cgroup that a leaf is below; any other is a home itself."""
    leaf = leaf_of(cgroup, leaves)
    return cgroup if leaf is None else leaf.rpartition("/")[0] or "/"


def leaf_for(home: str, name: str) -> str:
    """The leaf of a rule below a cgroup."""
    return f"{home.rstrip('/')}/{PREFIX}{name}"


def unit_of(cgroup: str) -> str | None:
    """The unit of systemd that a cgroup belongs to."""
    kinds = (".service", ".scope", ".socket", ".mount", ".swap")
    return next((part for part in reversed(cgroup.split("/")) if part.endswith(kinds)), None)
