# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads in a diff: one line per rule, the same in check mode and in a real run. It never shows an id, a
counter or a time.
"""

from __future__ import annotations

import typing as t

from . import policy
from .model import Rule


def rule_line(name: str, rule: Rule | None) -> str:
    """``backup: 20971520 B/s (168 Mbit/s), bucket 20971520 B, 2 processes, limits /system.slice/backup.service``."""
    if rule is None:
        return f"{name}: absent"
    if rule.limit is None:
        return f"{name}: unfinished"
    count = len(rule.pids)
    parts = [*policy.show(rule.limit), f"{count} process{'' if count == 1 else 'es'}"]
    parts += [f"limits {'each of ' if rule.each else ''}{place}" for place in rule.places]
    return f"{name}: {', '.join(parts)}"


def texts(
    names: t.Iterable[str], before: t.Mapping[str, Rule], after: t.Mapping[str, Rule], replaced: str
) -> tuple[str, str]:
    """The two sides of a diff of the rules in ``names``; ``replaced`` says what the program is before it is loaded."""
    old = [f"program: {replaced}"] if replaced else []
    new = ["program: loaded"] if replaced else []
    for name in sorted(set(names)):
        old.append(rule_line(name, before.get(name)))
        new.append(rule_line(name, after.get(name)))
    return "".join(f"{line}\n" for line in old), "".join(f"{line}\n" for line in new)
