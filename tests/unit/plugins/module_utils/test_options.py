# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a file against an argument specification: as Ansible takes a task's, with words that say where."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.argspec import rule_spec
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.options import checked

DEFAULTS = {"state": "present", "children": True, "everything": False}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"name": "web", "rate": "5m"}, {"name": "web", "rate": "5m"}),
        ({"name": "web", "rate": 5000000}, {"name": "web", "rate": "5000000"}),
        ({"name": 7}, {"name": "7"}),
        ({"pid": 5}, {"pids": [5]}),
        ({"pids": ["5", 6]}, {"pids": [5, 6]}),
        ({"cgid": 5, "bucket": None}, {"cgroup_id": 5}),
        ({"cgroup_path": "/a"}, {"cgroup_paths": ["/a"]}),
        ({"processes": {"name": "x", "user": None}}, {"processes": {"name": "x"}}),
        ({"last": True, "state": "absent", "children": False}, {"last": True, "state": "absent", "children": False}),
    ],
)
def test_what_is_given(given: dict[str, t.Any], meant: dict[str, t.Any]) -> None:
    assert checked(rule_spec(), given, "") == {**DEFAULTS, **meant}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("web", "rules[1]: 'web' is refused: it is no mapping of options. Give name and rate, say."),
        ({"nme": "web"}, "rules[1]: there is no option 'nme'. Options are name, state, rate, "),
        ({3: "web"}, "rules[1]: there is no option 3."),
        ({"pid": 5, "pids": [6]}, "rules[1]: pids is given twice"),
        ({"pids": ["x"]}, "rules[1]: pids[0]: 'x' is refused: it is not a whole number."),
        ({"pids": True}, "rules[1]: pids[0]: True is refused: it is not a whole number."),
        ({"pids": 1.5}, "rules[1]: pids[0]: 1.5 is refused"),
        ({"name": ["web"]}, "rules[1]: name: ['web'] is refused: it is not a single value."),
        ({"name": {"a" * 99: 1}}, "..."),
        ({"state": "gone"}, "rules[1]: state: 'gone' is refused. Give one of present, absent."),
        ({"last": "yes"}, "rules[1]: last: 'yes' is refused: it is not true or false."),
        ({"processes": "x"}, "rules[1]: processes: 'x' is refused: it is no mapping"),
        ({"processes": {"nme": "x"}}, "rules[1]: processes: there is no option 'nme'. Options are name, exe,"),
    ],
)
def test_what_is_refused(given: object, words: str) -> None:
    with pytest.raises(LimiterError) as raised:
        checked(rule_spec(), given, "rules[1]: ")
    assert raised.value.kind == "bad_options" and words in str(raised.value)


def test_what_is_required() -> None:
    with pytest.raises(LimiterError, match="name is missing. Give name"):
        checked({"name": {"type": "str", "required": True}}, {}, "")
