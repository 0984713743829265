# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Places: patterns of cgroup paths that rules limit in place. Nothing need be there when a rule is made. What is made
again is limited again, since it is found by its name.
"""

from __future__ import annotations

import typing as t
import zlib

from .errors import LimiterError
from .patterns import Node, Pattern, compile_graph, may_begin, parse


class Place(t.NamedTuple):
    """Which rule holds for what a pattern names; ``each``: every such cgroup has a budget of its own."""

    rule: str
    each: bool


Places = t.Mapping[str, Place]  # by pattern, as `normal` writes it


class Stored(t.NamedTuple):
    """A place as the kernel has it."""

    rule: int  # its cgroup's id
    each: bool
    pattern: str


def normal(option: str, text: str) -> str:
    """A pattern as it is stored and compared. Raises LimiterError ``bad_cgroup_path``."""
    return str(parse(option, text))


def graph_of(places: Places) -> list[Node]:
    """Raises LimiterError as `compile_graph`. Empty where there are none."""
    patterns = {parse("cgroup_paths", text): place.rule for text, place in places.items()}
    each = {place.rule for place in places.values() if place.each}
    return compile_graph(patterns, each) if patterns else []


def fingerprint(stored: t.Iterable[Stored]) -> int:
    """A checksum of a set of places, 0 of none. By it one sees that a graph was made of another set."""
    lines = sorted(f"{place.rule} {place.each:d} {place.pattern}" for place in stored)
    return (zlib.crc32("\n".join(lines).encode(errors="surrogateescape")) or 1) if lines else 0


def taken(pattern: str, owner: str, rule: str, where: str = "") -> LimiterError:
    return LimiterError(
        "member_taken",
        f"{where}{pattern} cannot be limited by the rule {rule!r}: it is already limited by {owner!r}",
        "a cgroup belongs to one rule",
        "Remove it there first (state=absent with that name and cgroup_paths), or limit one above or below it",
    )


def is_confined(pattern: Pattern) -> bool:
    """Whether the cgroups that a pattern names can be made by root only, as far as their names tell: systemd delegates
    what is below user-UID.slice/user@UID.service to that user.
    """
    ways = zip(pattern.names, pattern.names[1:-1])
    return not any(may_begin("user-", above) and may_begin("user@", name) for above, name in ways)
