# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The argument specifications that modules share."""

from __future__ import annotations

import typing as t

from ..core.policy import FIELDS

Spec = dict[str, dict[str, t.Any]]


# What excludes what, for tools that read the specification. `last: false` says nothing, which cannot be declared.
# core/request.py refuses the same and more, and its words are what a user reads: they name the rule of a list.
RULE_CHECKS: dict[str, t.Any] = {
    "mutually_exclusive": [
        ["pids", "processes"],
        ["name", "cgroup_id"],
        *([option, "cgroup_id"] for option in ("cgroup_paths", "units", "users", "containers")),
    ],
    "required_one_of": [["name", "cgroup_id", "last", "cgroup_paths", "pids", "processes"]],
}


def rule_spec() -> Spec:
    """The options of one rule, for speed_limit_rule and for the items of speed_limit_rules."""
    return {
        "name": {"type": "str"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        **{field.name: dict(field.option) for field in FIELDS},
        "pids": {"type": "list", "elements": "int", "aliases": ["pid"]},
        "processes": {
            "type": "dict",
            "options": {
                "name": {"type": "str"},
                "exe": {"type": "str"},
                "cmdline": {"type": "str"},
                "user": {"type": "str"},
            },
        },
        "children": {"type": "bool", "default": True},
        "cgroup_paths": {"type": "list", "elements": "str", "aliases": ["cgroup_path"]},
        "units": {"type": "list", "elements": "str", "aliases": ["unit"]},
        "users": {"type": "list", "elements": "str", "aliases": ["user"]},
        "containers": {"type": "list", "elements": "str", "aliases": ["container"]},
        "everything": {"type": "bool", "default": False},
        "cgroup_id": {"type": "int", "aliases": ["cgid"]},
        "last": {"type": "bool"},
    }
