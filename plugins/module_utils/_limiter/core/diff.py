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
    parts = [*policy.show(rule.limit), count(rule.pids), *policy.show_places(rule.in_place, rule.places)]
    if file is not None:
        same = file == stored.form(rule, file)
        parts.append(policy.PERSISTENT.show(True) if same else stored.show(file))
    return f"{name}: {', '.join(parts)}"


class Side(t.NamedTuple):
    """The rules before, or after, and their files."""

    rules: t.Mapping[str, Rule]
    files: t.Mapping[str, File]

    def line(self, name: str) -> str:
        return rule_line(name, self.rules.get(name), self.files.get(name))


def count(processes: t.Sized) -> str:
    return f"{len(processes)} process{'' if len(processes) == 1 else 'es'}"


def lost(rules: t.Iterable[Rule], limits: t.Iterable[str]) -> str:
    """What no longer holds for processes that leave a cgroup: the tightest rule first."""
    held = sorted((rule.limit, rule.name) for rule in rules if rule.limit)
    parts = [f"the rule {name!r} ({policy.show(limit)[0]})" for limit, name in held]
    return ", ".join([*parts, *limits, "what stops or filters that cgroup"])


def texts(
    names: t.Iterable[str],
    before: Side,
    after: Side,
    replaced: str,
    remarks: t.Mapping[str, t.Iterable[str]],
) -> tuple[str, str]:
    """The two sides of a diff of the rules in ``names``; ``replaced`` says what the program is before it is loaded,
    ``remarks`` what happens to other things than the rules.
    """
    old = [f"program: {replaced}"] if replaced else []
    new = ["program: loaded"] if replaced else []
    for name in sorted(set(names)):
        old.append(before.line(name))
        new += [after.line(name), *(f"{name}: {remark}" for remark in remarks.get(name, ()))]
    return "".join(f"{line}\n" for line in old), "".join(f"{line}\n" for line in new)
