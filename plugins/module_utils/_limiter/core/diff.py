# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user reads in a diff: one line per rule, the same in check mode and in a real run. It never shows an id, a
counter or a time.
"""

from __future__ import annotations

import typing as t

from . import policy, stored
from .model import File, Rule


def rule_line(name: str, rule: Rule | None, file: File | None = None) -> str:
    """``backup: 20971520 B/s (168 Mbit/s), bucket 20971520 B, 2 processes, limits /system.slice/backup.service,
    persistent``.
    """
    if rule is None or rule.limit is None:
        return ", ".join([f"{name}: {'unfinished' if rule else 'absent'}", *([stored.show(file)] if file else [])])
    count = len(rule.pids)
    parts = [*policy.show(rule.limit), f"{count} process{'' if count == 1 else 'es'}"]
    parts += [f"limits {'each of ' if rule.each else ''}{place}" for place in rule.places]
    if file is not None:
        same = file == stored.form(rule, file)
        parts.append("persistent" if same else stored.show(file))
    return f"{name}: {', '.join(parts)}"


class Side(t.NamedTuple):
    """The rules before, or after, and their files."""

    rules: t.Mapping[str, Rule]
    files: t.Mapping[str, File]

    def line(self, name: str) -> str:
        return rule_line(name, self.rules.get(name), self.files.get(name))


def texts(names: t.Iterable[str], before: Side, after: Side, replaced: str) -> tuple[str, str]:
    """The two sides of a diff of the rules in ``names``; ``replaced`` says what the program is before it is loaded."""
    old = [f"program: {replaced}"] if replaced else []
    new = ["program: loaded"] if replaced else []
    for name in sorted(set(names)):
        old.append(before.line(name))
        new.append(after.line(name))
    return "".join(f"{line}\n" for line in old), "".join(f"{line}\n" for line in new)
