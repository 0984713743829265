# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as text, for a terminal."""

from __future__ import annotations

import typing as t
import unicodedata

from .fleet import Fleet

_WORDS = {
    "as_wanted": "as wanted",
    "differs": "differ",
    "failed": "failed",
    "unreachable": "unreachable",
    "not_limited": "not limited",
    "cannot": "cannot",
}
# Told only where there are some: whoever reads the first line by a program knows the others.
_RARE = ("not_limited", "cannot")
_NOTHING_READ = "they are to have none, or variables that are meant for them are not read"
# Of another kind than control characters, and as misleading: they change the order of what is shown.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def line(text: str) -> str:
    """One line, with what a terminal or a page would obey written out: hosts choose their messages themselves."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character == "\t":
        return character
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
        return ascii(character)[1:-1]
    return character


def headline(fleet: Fleet) -> str:
    told = [state for state in _WORDS if fleet.counts[state] or state not in _RARE]
    hosts = "1 host" if len(fleet.hosts) == 1 else f"{len(fleet.hosts)} hosts"
    return f"{hosts}: {', '.join(f'{fleet.counts[state]} {_WORDS[state]}' for state in told)}"


def render(fleet: Fleet) -> str:
    parts = [f"{headline(fleet)}\n"]
    parts += [_paragraph(_WORDS[group.state], group.hosts, group.text) for group in fleet.groups()]
    extra = [(host.name, ", ".join(host.extra)) for host in fleet.hosts if host.extra]
    parts += _together("with rules that no variable names", extra)
    unread = [(host.name, _NOTHING_READ) for host in fleet.hosts if host.wants_none]
    parts += _together("for which no variable names a rule", unread)
    unpaced = [(host.name, "\n".join(host.unpaced)) for host in fleet.hosts if host.unpaced]
    parts += _together("with rules whose connections are not all paced", unpaced)
    forgotten = [(host.name, ", ".join(host.forgotten)) for host in fleet.hosts if host.forgotten]
    parts += _together("with rules that do not survive a reboot", forgotten)
    left_out = [(host.name, f"{host.left_out} rules") for host in fleet.hosts if host.left_out]
    parts += _together("with more rules than this report has room for", left_out)
    boot = [(host.name, "\n".join(host.boot)) for host in fleet.hosts if host.boot]
    parts += _together("of which not all stored rules are applied, or will be", boot)
    return "\n".join(parts)


def _together(title: str, hosts: t.Iterable[tuple[str, str]]) -> list[str]:
    """A paragraph for each text, that of the most hosts first."""
    alike: dict[str, list[str]] = {}
    for name, text in hosts:
        alike.setdefault(text, []).append(name)
    ordered = sorted(alike.items(), key=lambda item: (-len(item[1]), item[0]))
    return [_paragraph(title, names, text) for text, names in ordered]


def _paragraph(title: str, names: t.Sequence[str], text: str) -> str:
    told = "".join(f"    {line(row)}\n" for row in text.split("\n"))
    return f"{len(names)} {title}: {', '.join(map(line, names))}\n{told}"
