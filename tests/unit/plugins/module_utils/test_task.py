# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module makes of its options before it looks at the host."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils import basic
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_request
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front import call, task
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.argspec import RULE_CHECKS, rule_spec
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules import info, rule, rules

Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A module's answer, which it gives before it looks at anything."""

    def answer(main: t.Callable[[], None], **options: t.Any) -> dict[str, t.Any]:
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            main()
        found: dict[str, t.Any] = json.loads(capsys.readouterr().out)
        return found

    return answer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "web", "pids": [5], "processes": {"name": "x"}}, "pids and processes exclude each other. Give one"),
        ({"name": "web", "pid": 5, "processes": {"name": "x"}}, "pids and processes exclude each other. Give one"),
        ({"name": "web", "cgroup_id": 5}, "name and cgroup_id exclude each other. Give one of them."),
        ({"cgid": 5, "cgroup_path": "/a"}, "cgroup_paths goes with name, not with cgroup_id or last"),
        ({"rate": "5m"}, "no rule is named. Give name, cgroup_id, last, cgroup_paths or pids."),
    ],
)
def test_what_is_declared_is_refused_in_our_words(run: Run, options: dict[str, t.Any], words: str) -> None:
    one = run(rule.main, **options)
    assert one["kind"] == "bad_options" and one["msg"].startswith(words)
    many = run(rules.main, rules=[{"name": "fine"}, options])
    named = f" ({options['name']!r})" if "name" in options else ""
    assert many["kind"] == "bad_options" and many["msg"].startswith(f"rules[1]{named}: {words}")


def test_what_ansible_refuses_besides_is_said_as_ansible_says_it(run: Run) -> None:
    answer = run(rule.main, name="web", cgroup_id=5, pids=["nonsense"])
    assert "kind" not in answer and "mutually exclusive: name|cgroup_id" in answer["msg"]
    assert "must be one or more of" in run(info.main, gather=["nonsense"])["msg"]


def test_null_is_not_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def work(module: basic.AnsibleModule) -> call.Result:
        seen.append(parse_request(module.params))
        return {"changed": False}

    def main() -> None:
        task.run(work, rule_spec(), root=False, parse=parse_request, **RULE_CHECKS)

    monkeypatch.setattr(task, "_find_interpreter", lambda needs: "")
    nothing = {"state": None, "cgroup_id": None, "processes": None, "rate": None}
    assert run(main, name="web", pids=[5], **nothing)["changed"] is False
    assert seen[0].present and seen[0].pids == (5,) and seen[0].given == {}


def test_null_is_not_given_in_a_list_of_rules_either() -> None:
    rules = [{"name": "web", "bucket": None, "processes": {"name": "x", "exe": None}}]
    spec = {"rules": {"type": "list", "elements": "dict", "options": rule_spec()}}
    assert task.given({"rules": rules}, spec) == {"rules": [{"name": "web", "processes": {"name": "x"}}]}


def test_what_is_no_dictionary_is_refused_in_words(run: Run) -> None:
    """Ansible's own check ends with a traceback there."""
    assert "cgroup_id" in run(rule.main, cgroup_id=float("inf"))["msg"]
    for answer in (run(rule.main, name="web", processes=False), run(rules.main, rules=[{"name": "a", "processes": 5}])):
        assert answer["failed"] and "dictionary requested" in answer["msg"], answer
