# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command limiter shows of a result: tables, changes, warnings."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import pacing
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import commands, main

Captured = pytest.CaptureFixture[str]
NOTHING: dict[str, t.Any] = {
    **dict.fromkeys(("changed", "previous", "program")),
    **{part: [] for part in ("warnings", "unseen", "rules", "processes", "hook")},
}

BACKUP: dict[str, t.Any] = {
    "name": "backup",
    "rate": 20971520,
    "bucket": 1048576,
    "cgroup_path": "/sys/fs/cgroup/speed_limiter/backup",
    "members": ["/sys/fs/cgroup/speed_limiter/backup", "/sys/fs/cgroup/a.slice", "/sys/fs/cgroup/b-*.slice"],
    "each": None,
    "waiting": ["/sys/fs/cgroup/b-*.slice"],
    "pids": [4, 5],
    "use": {"rate": 12500000, "binds": True},
    "pacing": {"mode": "paced", "reason": None},
    "unlimited": [],
}
UNSEEN = {
    **BACKUP,
    "name": "unseen",
    **dict.fromkeys(("rate", "bucket", "members", "waiting", "use", "pacing", "unlimited")),
}
LONG = {**BACKUP, "name": "r" * 128, "each": True}


def show(monkeypatch: pytest.MonkeyPatch, words: str = "list", **result: t.Any) -> int:
    monkeypatch.setattr(main, "_listen", lambda: None)
    monkeypatch.setattr(commands, "run", lambda arguments: {**NOTHING, **result})
    return main.main(words.split())


def test_the_table_of_rules(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, rules=[BACKUP, UNSEEN], processes=None, hook=None, warnings=["look out"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "RULE          RATE  BUCKET         NOW  BINDS  PIDS  IN PLACE",
        "backup  168 Mbit/s   1 MiB  100 Mbit/s  yes       2  /a.slice, /b-*.slice (absent)",
        "unseen           -       -           -  -         2",
    ]
    assert captured.err == "limiter: warning: look out\n"


def test_leaves_are_not_in_place(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = "/sys/fs/cgroup/a.slice/speed_limiter.backup"
    taken = {**BACKUP, "members": [*BACKUP["members"], leaf]}
    assert show(monkeypatch, rules=[taken], processes=None, hook=None) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("2  /a.slice, /b-*.slice (absent)")


def test_rules_that_limit_nothing_are_warned_of(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = {**BACKUP, "pacing": {"mode": "none", "reason": pacing.NO_PROGRAM}}
    assert show(monkeypatch, rules=[idle, {**idle, "name": "web"}]) == 0
    said = "limiter: warning: no program is loaded: nothing limits. limiter reload loads it.\n"
    assert capsys.readouterr().err == said
    assert show(monkeypatch, "list --json", rules=[idle]) == 0
    assert capsys.readouterr().err == said
    unfinished = {**idle, "pacing": {"mode": "none", "reason": "the rule is unfinished: run its task again"}}
    assert show(monkeypatch, rules=[unfinished, BACKUP, UNSEEN]) == 0
    assert capsys.readouterr().err == "limiter: warning: backup: the rule is unfinished: run its task again\n"


@pytest.mark.parametrize(("locale", "more"), [("C.UTF-8", "…"), ("C", "..."), ("en_US.ISO-8859-1", "...")])
def test_a_terminal_gets_what_fits(capsys: Captured, monkeypatch: pytest.MonkeyPatch, locale: str, more: str) -> None:
    monkeypatch.setattr(main, "_width", lambda: 80)
    monkeypatch.setenv("LC_ALL", locale)
    process = {
        "pid": 4194304,
        "rule": "r" * 128,
        "cgroup": "/speed_limiter/" + "r" * 128,
        "command": "限速\n\x1b[2J" * 50,
    }
    assert show(monkeypatch, rules=[LONG], processes=[process], hook=None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("4194304  rrr") and more in lines[1] and "\x1b" not in lines[1]
    assert lines[4].startswith("rrrr") and more in lines[4] and "168 Mbit/s" in lines[4]
    for line in lines:
        assert sum(2 if letter in "限速" else 1 for letter in line) <= 80


def test_programs(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    pacing = {"state": "off", "reason": "pacing is switched off", "open_connections_reason": None}
    departure = {"state": "off", "reason": "departure times are switched off", "devices": ["eth0"]}
    in_place = {"found_by": "id", "reason": "the kernel forbids it"}
    loaded = {"identity": "source:01", "cgroup": "/", "pacing": pacing, "departure": departure, "in_place": in_place}
    hook = [{"id": 7, "name": "limit_egress", "ours": True, "attach_flags": "multi", "cgroup": "/"}]
    nothing = {"rules": None, "processes": None}
    assert show(monkeypatch, "list --bpf", hook=hook, program=loaded, **nothing) == 0
    assert capsys.readouterr().out.splitlines() == [
        "loaded    source:01",
        "attached  /",
        "pacing    off",
        "          pacing is switched off",
        "waiting   off, with fq: eth0",
        "          departure times are switched off",
        "in place  found by id",
        "          the kernel forbids it",
        "",
        "ID  NAME          OURS  FLAGS  CGROUP",
        " 7  limit_egress  yes   multi  /",
    ]
    assert show(monkeypatch, "list --bpf", hook=[], program=None, **nothing) == 0
    assert capsys.readouterr().out.startswith("No program is loaded: nothing limits.\n")


CHANGE = {
    "changed": True,
    "diff": {"before": "a: 1 B/s\nb: 1 B/s\n", "after": "a: 1 B/s\nb: absent\n"},
    "program_actions": ["loaded it"],
}


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("purge", ["changed: b: absent", "done: loaded it"]),
        ("purge --check", ["would change: b: absent", "would be done: loaded it"]),
        ("purge --diff", ["- b: 1 B/s", "+ b: absent", "done: loaded it"]),
    ],
)
def test_a_change(capsys: Captured, monkeypatch: pytest.MonkeyPatch, words: str, lines: list[str]) -> None:
    assert show(monkeypatch, words, **CHANGE) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_no_change(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, "unload") == 0
    assert capsys.readouterr().out == "unchanged\n"


ABSENT = " (absent: limited as soon as it is there)"


@pytest.mark.parametrize(
    ("places", "waiting", "line"),
    [
        ("limits /a, limits /ab", ["/ab"], f"limits /a, limits /ab{ABSENT}"),
        ("limits each of /a-*", ["/a-*"], f"limits each of /a-*{ABSENT}"),
        ("limits /a, persistent", ["/a"], f"limits /a{ABSENT}, persistent"),
        ("limits /a", [], "limits /a"),
    ],
)
def test_a_cgroup_that_is_not_there_is_told(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, places: str, waiting: list[str], line: str
) -> None:
    rule = {**BACKUP, "waiting": [f"/sys/fs/cgroup{path}" for path in waiting]}
    diff = {"before": "backup: absent\n", "after": f"backup: 1 B/s, {places}\n"}
    assert show(monkeypatch, "set --name backup", changed=True, diff=diff, rule=rule) == 0
    assert capsys.readouterr().out == f"changed: backup: 1 B/s, {line}\n"
    assert show(monkeypatch, "set --name backup --diff", changed=True, diff=diff, rule=rule) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"+ backup: 1 B/s, {places}"


@pytest.mark.parametrize(
    ("words", "previous", "why"),
    [
        ("--name guest", None, "there is no rule 'guest'"),
        ("--name guest --unit nginx", None, "there is no rule 'guest'"),
        ("--cgroup-path /speed_limiter/guest", None, "there is no rule with the cgroup /speed_limiter/guest"),
        ("--name backup --unit varnihs", BACKUP, "'backup' does not limit varnihs.service"),
        ("--name backup --cgroup-path /a --user joe", BACKUP, "'backup' does not limit /a, joe"),
        ("-p 31779", None, "no rule took process 31779"),
        ("-p 5 -p 6", None, "no rule took processes 5, 6"),
        ("-p 5 --name backup", BACKUP, "'backup' did not take process 5"),
    ],
)
def test_nothing_to_unset_is_told(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, words: str, previous: t.Any, why: str
) -> None:
    assert show(monkeypatch, f"unset {words}", previous=previous) == 0
    assert capsys.readouterr().out == f"unchanged: {why}\n"


def test_rules_that_a_purge_spares_are_told(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, "apply --purge a.json", kept=["pid-5", "pid-6"]) == 0
    assert capsys.readouterr().out == "unchanged\nkept: pid-5, pid-6\n"
    assert show(monkeypatch, "apply --purge a.json", **CHANGE, kept=["pid-5"]) == 0
    assert capsys.readouterr().out.splitlines() == ["changed: b: absent", "done: loaded it", "kept: pid-5"]


def test_a_change_that_the_diff_does_not_show(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"before": "program: x\n", "after": "program: x\n"}
    assert show(monkeypatch, "purge --scope stale", changed=True, diff=same) == 0
    assert capsys.readouterr().out == "changed\n"
    uneven = {"before": "a: 1 B/s\n", "after": "a: absent\nprogram: absent\n"}
    assert show(monkeypatch, "purge --diff", changed=True, diff=uneven) == 0
    assert capsys.readouterr().out.splitlines() == ["- a: 1 B/s", "+ a: absent", "+ program: absent"]


def test_json_is_the_result(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(monkeypatch, "purge --json", **CHANGE, warnings=["look out"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {**NOTHING, **CHANGE, "warnings": ["look out"]}
    assert captured.err == "limiter: warning: look out\n"
