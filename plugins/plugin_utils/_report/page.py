# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as JSON, and as one HTML file that needs nothing else and trusts nothing that it shows.

Strings of hosts get into the page as JSON alone, in which no character has a meaning in HTML, and the script makes text
of them, never markup. A policy in the page (Content-Security-Policy) lets no other script run, and nothing be loaded or
sent.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import typing as t
from pathlib import Path

from .fleet import Fleet
from .hosts import STATES, Host
from .text import headline, line

_PARTS = Path(__file__).parent
_PLACE = re.compile("@([a-z]+)@")


def as_json(fleet: Fleet) -> str:
    return json.dumps(fleet.document(), allow_nan=False) + "\n"


def render(fleet: Fleet) -> str:
    style, script = (_part(name) for name in ("page.css", "page.js"))
    parts = {
        "policy": "; ".join(
            [
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
                "require-trusted-types-for 'script'",
            ]
        ),
        "style": style,
        "script": script,
        "data": _embedded(_compact(fleet)),
        "created": html.escape(fleet.created),
        "when": html.escape(fleet.created.replace("T", " ").replace("Z", " UTC")),
        "summary": html.escape(headline(fleet)),
    }
    # In one pass, so that nothing in one part is taken for the place of another.
    return _PLACE.sub(lambda place: parts[place[1]], _part("page.html"))


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(value: object) -> str:
    """JSON that neither ends a script element nor begins a comment in it, in ASCII alone."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _shown(text: str) -> str:
    return "\n".join(map(line, text.split("\n")))


class _Table:
    """Values that many hosts have, each written once."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._places: dict[object, int] = {}

    def place(self, value: object) -> int:
        if value not in self._places:
            self._places[value] = len(self.values)
            self.values.append(value)
        return self._places[value]


def _compact(fleet: Fleet) -> dict[str, t.Any]:
    """What page.js reads: lists instead of objects, and texts by their places in tables. A rule of a host has its own
    figures and the place of its kind, which is what the rule has in common with those of other hosts.
    """
    groups = fleet.groups()
    group_of = {name: number for number, group in enumerate(groups) for name in group.hosts}
    kinds, kernels, missing = _Table(), _Table(), _Table()

    def rows(host: Host) -> list[list[float | None]]:
        return [
            [
                kinds.place(
                    (
                        line(rule.name),
                        rule.rate,
                        rule.bucket,
                        rule.mode,
                        rule.reason and _shown(rule.reason),
                        int(bool(rule.each)),
                    )
                ),
                rule.processes,
                rule.use,
                rule.utilization,
                None if rule.binds is None else int(rule.binds),
                rule.packets,
                rule.dropped_packets,
            ]
            for rule in host.rules
        ]

    hosts = [
        [
            line(host.name),
            STATES.index(host.state),
            group_of.get(host.name, -1),
            kernels.place(line(host.kernel or "")),
            missing.place(tuple(map(_shown, host.missing))),
            list(map(line, host.extra)),
            int(host.wants_none),
            rows(host),
            list(map(line, host.forgotten)),
            list(map(_shown, host.boot)),
            host.left_out,
        ]
        for host in fleet.hosts
    ]
    return {
        "states": STATES,
        "groups": [
            [
                STATES.index(group.state),
                list(map(_shown, group.reasons)),
                [[line(old), line(new)] for old, new in group.changes],
            ]
            for group in groups
        ],
        "rules": [[line(rule.name), *rule[1:]] for rule in fleet.rules()],
        "kinds": kinds.values,
        "kernels": kernels.values,
        "missing": missing.values,
        "hosts": hosts,
    }
