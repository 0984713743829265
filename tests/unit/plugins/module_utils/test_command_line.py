# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command limiter, from its arguments to what it asks of the modules' work, and from their result to its output."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.argspec import rule_spec
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import commands, main, parser
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.completion import completion
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.files import requests_of
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.manual import manual
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules import (
    info,
    program,
    purge,
    rule,
    rules,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.generated.version import VERSION

Asked = list[tuple[str, dict[str, t.Any], bool]]
Captured = pytest.CaptureFixture[str]
NOTHING: dict[str, t.Any] = {
    **dict.fromkeys(("changed", "previous", "program")),
    **{part: [] for part in ("warnings", "unseen", "rules", "processes", "hook")},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the modules were asked for: nothing is done."""
    calls: Asked = []
    monkeypatch.setattr(main, "_listen", lambda: None)
    for name, module in (("info", info), ("program", program), ("purge", purge), ("rule", rule)):

        def work(call: t.Any, name: str = name, **options: t.Any) -> dict[str, t.Any]:
            calls.append((name, {**call.params, **options}, call.check_mode))
            return dict(NOTHING)

        monkeypatch.setattr(module, "work", work)
    return calls


@pytest.mark.parametrize(
    ("words", "module", "options"),
    [
        ("set --pid 5 --rate 5m", "rule", {"pids": [5], "rate": "5m", "children": True}),
        (
            "set -p 5 -p 6 -r 512k -b 1m --name web",
            "rule",
            {"pids": [5, 6], "rate": "512k", "bucket": "1m", "name": "web"},
        ),
        ("set --name a -r 1m --cgroup-path /a --cgroup-path /b-*", "rule", {"cgroup_paths": ["/a", "/b-*"]}),
        (
            "set --name a -r 1m --unit b --unit c@ --user 1000 --container d",
            "rule",
            {"units": ["b", "c@"], "users": ["1000"], "containers": ["d"]},
        ),
        ("unset --name a --unit b", "rule", {"units": ["b"], "state": "absent"}),
        (
            "set --name a --each --everything --no-children",
            "rule",
            {"each": True, "everything": True, "children": False},
        ),
        (
            "set --name a --unit a --unit b.slice --user 7 --container c",
            "rule",
            {"units": ["a", "b.slice"], "users": ["7"]},
        ),
        ("unset --name a --container c", "rule", {"containers": ["c"], "state": "absent"}),
        ("set --name a -r 1m --persistent", "rule", {"persistent": True}),
        ("move --pid 5 --last", "rule", {"pids": [5], "last": True}),
        ("move -p 5 --cgid 77", "rule", {"pids": [5], "cgroup_id": 77}),
        ("move -p 5 --cgroup-path /speed_limiter/web", "rule", {"pids": [5], "cgroup_paths": ["/speed_limiter/web"]}),
        ("move -p 5 --name web", "rule", {"pids": [5], "name": "web"}),
        ("unset --pid 5", "rule", {"pids": [5], "state": "absent"}),
        ("unset --name web", "rule", {"name": "web", "state": "absent"}),
        ("reload", "program", {"state": "reloaded", "object": None, "cgroup_path": None, "pacing": None}),
        (
            "reload -o /o --cgroup-path /a --no-pacing",
            "program",
            {"object": "/o", "cgroup_path": "/a", "pacing": False},
        ),
        ("reload --bpf-obj /o --pacing", "program", {"object": "/o", "pacing": True}),
        ("unload", "program", {"state": "absent"}),
        ("metrics", "info", {"gather": ["program", "rules"], "name": None, "pid": None, "cgroup_path": None}),
        ("list", "info", {"gather": ["rules"], "name": None, "pid": None, "cgroup_path": None, "files": False}),
        ("list --json", "info", {"gather": ["rules"], "files": True}),
        ("list --pid", "info", {"gather": ["processes"], "pid": None}),
        ("list -p 5", "info", {"gather": ["rules", "processes"], "pid": 5}),
        ("list --bpf", "info", {"gather": ["program", "hook"]}),
        ("list --name web --cgroup-path /a", "info", {"name": "web", "cgroup_path": "/a"}),
        ("purge", "purge", {"scope": "rules"}),
        ("purge --scope all", "purge", {"scope": "all"}),
    ],
)
def test_what_a_command_asks_for(asked: Asked, words: str, module: str, options: dict[str, t.Any]) -> None:
    assert main.main(words.split()) == 0
    ((name, given, check),) = asked
    assert name == module and options.items() <= given.items()
    assert check == (module == "info")
    if module == "rule":
        assert given.keys() <= rule_spec().keys()
        assert given["state"] == options.get("state", "present")


@pytest.mark.parametrize("words", ["set --name a -r 1m", "move -p 5 --last", "unset -p 5", "reload", "unload", "purge"])
def test_check(asked: Asked, words: str) -> None:
    assert main.main([*words.split(), "--check"]) == 0
    assert asked[0][2]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", "no command is given"),
        ("limit", "argument COMMAND: invalid choice: 'limit'"),
        ("set --pid x", "argument -p/--pid: invalid int value: 'x'"),
        ("set --pi 5", "unrecognized arguments: --pi 5"),
        ("set web", "unrecognized arguments: web"),
        ("move -p 5", "one of the arguments --name --cgroup-path --cgid --last is required"),
        ("move --last", "the following arguments are required: -p/--pid"),
        ("move -p 5 --last --name web", "argument --name: not allowed with argument --last"),
        ("list --pid --bpf", "argument --bpf: not allowed with argument -p/--pid"),
        ("apply", "the following arguments are required: FILE"),
        ("purge --scope most", "argument --scope: invalid choice: 'most'"),
    ],
)
def test_a_wrong_command_line_is_2(asked: Asked, capsys: Captured, words: str, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(words.split())
    captured = capsys.readouterr()
    assert ended.value.code == 2 and not asked and not captured.out
    lines = captured.err.splitlines()
    known = words.split()[:1] if words not in ("", "limit") else []
    assert lines[-2].startswith(f"limiter: {text}") and lines[-1] == f"Try '{' '.join(['limiter', *known])} --help'."


def test_an_error_is_1_with_its_kind(asked: Asked, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: argparse.Namespace) -> dict[str, t.Any]:
        raise LimiterError("dead_process", "the process 5 does not exist", "", "Name\x1b[2J another")

    monkeypatch.setattr(commands, "run", refuse)
    text = "the process 5 does not exist. Name?[2J another."
    assert main.main(["set", "-p", "5"]) == 1
    assert capsys.readouterr() == ("", f"limiter: {text} (dead_process)\n")
    assert main.main(["set", "-p", "5", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "dead_process" and json.loads(captured.out)["failed"]
    assert captured.err == f"limiter: {text} (dead_process)\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LimiterError("other_schema", "the maps are of another version"), f"This command is of version {VERSION};"),
        (
            OSError(28, "No space left on device", "/a"),
            "/a could not be used: ENOSPC (No space left on device). What was",
        ),
        (OSError("text"), "a file of the host could not be used"),
        (ZeroDivisionError("one"), "this is a defect of limiter: ZeroDivisionError: one (test_command_line.py, line"),
    ],
)
def test_every_error_is_told_in_words(
    asked: Asked, capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(arguments: argparse.Namespace) -> dict[str, t.Any]:
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert main.main(["list"]) == 1
    captured = capsys.readouterr()
    assert not captured.out and words in captured.err and "Traceback" not in captured.err


def test_an_interrupt_is_130(asked: Asked, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(arguments: argparse.Namespace) -> dict[str, t.Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", interrupt)
    assert main.main(["list"]) == 130
    assert "(interrupted)" in capsys.readouterr().err


def test_version(asked: Asked, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_schema_of_host", lambda: 99)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main.main(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"limiter {VERSION} (speed_limiter.ebpf), schema ")
    assert second == "what limits on this host is of a newer version, schema 99"


@pytest.mark.parametrize(
    ("choice", "error", "text"),
    [
        (
            "--name web",
            ("rate_needed", "rate is needed", "it does not exist yet", "Add rate"),
            "there is no rule 'web'.",
        ),
        (
            "--cgroup-path /speed_limiter/web",
            ("rate_needed", "rate is needed", "it does not exist yet", "Add rate"),
            "there is no rule 'web'.",
        ),
        (
            "--last",
            ("no_rule", "there is no such rule", "no rule was set yet", "Give name and rate"),
            "there is no such rule: no rule was set yet.",
        ),
    ],
)
def test_nothing_is_moved_to_a_rule_that_is_not_there(
    asked: Asked, capsys: Captured, monkeypatch: pytest.MonkeyPatch, choice: str, error: t.Any, text: str
) -> None:
    def refuse(call: t.Any) -> t.NoReturn:
        raise LimiterError(*error)

    monkeypatch.setattr(rule, "work", refuse)
    assert main.main(["move", "-p", "5", *choice.split()]) == 1
    remedy = "limiter list shows the rules; limiter set makes one."
    assert capsys.readouterr().err == f"limiter: {text} {remedy} (no_rule)\n"


def test_other_errors_of_move_stay(asked: Asked, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: t.Any) -> t.NoReturn:
        raise LimiterError("dead_process", "process 5 does not exist")

    monkeypatch.setattr(rule, "work", refuse)
    assert main.main(["move", "-p", "5", "--last"]) == 1
    assert capsys.readouterr().err == "limiter: process 5 does not exist. (dead_process)\n"


# ---- files


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_files_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path / "one.json", '[{"name": "a", "rate": "1m"}, {"name": "b", "state": "absent"}]')
    two = write(tmp_path / "two.yml", "rules: [{name: c, rate: 8mbit}]")
    seen: list[t.Any] = []

    def follow(call: t.Any, requests: t.Any, purge: bool) -> dict[str, t.Any]:
        seen.append((call.check_mode, [(one.name, dict(one.given)) for one in requests], purge))
        return dict(NOTHING)

    monkeypatch.setattr(main, "_listen", lambda: None)
    monkeypatch.setattr(rules, "follow", follow)
    assert main.main(["apply", "--purge", "--check", one, two]) == 0
    assert seen == [(True, [("a", {"rate": 1048576}), ("b", {}), ("c", {"rate": 1000000})], True)]


@pytest.mark.parametrize(
    ("name", "text", "kind", "words"),
    [
        ("a.json", "{", "bad_file", "a.json is no JSON: Expecting"),
        ("a.json", "- name: a", "bad_file", "The name of a file in YAML ends with .yml or .yaml."),
        ("a.json", "[" * 100000, "bad_file", "a.json is no JSON"),
        ("a.json", '{"rule": []}', "bad_file", "a.json has no rules. Give a list of rules"),
        ("a.json", "3", "bad_file", "a.json has no rules"),
        (
            "a.json",
            '{"rules": {"a": {"rate": "1m"}}}',
            "bad_file",
            'a.json: rules is a mapping. Give a list, in which each rule has its name: [{"name": "a", ...}].',
        ),
        ("a.yml", "a: [", "bad_file", "a.yml is no YAML"),
        ("a.yml", "", "bad_file", "a.yml has no rules"),
        ("a.json", '[{"name": "a"}, {"nme": "b"}]', "bad_options", "a.json: rules[1]: there is no option 'nme'"),
        ("a.json", '[{"name": "a", "rate": "5mb"}]', "bad_rate", "a.json: rules[0] ('a'): rate: '5mb' is refused"),
        ("a.json", '[{"name": "a"}, {"name": "a"}]', "bad_options", "was already given by"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str, kind: str, words: str) -> None:
    with pytest.raises(LimiterError) as raised:
        requests_of([write(tmp_path / name, text)])
    assert raised.value.kind == kind and words in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "none", "ENOENT"), (tmp_path, "EISDIR")):
        with pytest.raises(LimiterError, match=word) as raised:
            requests_of([str(path)])
        assert raised.value.kind == "unreadable_file"
    (tmp_path / "latin").write_bytes(b'["\xff"]')
    with pytest.raises(LimiterError) as raised:
        requests_of([str(tmp_path / "latin")])
    assert raised.value.kind == "bad_file"


def test_yaml_where_nothing_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(LimiterError, match="Install python3-yaml .* or give JSON") as raised:
        requests_of([write(tmp_path / "a.yaml", "[]")])
    assert raised.value.kind == "no_yaml"


# ---- manual and completion


def every_option() -> t.Iterator[tuple[str, str]]:
    for action in parser.build()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, options in action.choices.items():
                for option in options._actions:
                    yield from ((command, form) for form in option.option_strings)


def test_examples_are_different() -> None:
    lines = [line for line, _meaning in parser.EXAMPLES]
    meanings = [meaning for _line, meaning in parser.EXAMPLES]
    assert len(set(lines)) == len(lines) and len(set(meanings)) == len(meanings)


def test_manual_and_completion_have_every_command_and_option() -> None:
    page, script = manual("the mark"), completion("the mark")
    assert page.startswith('.\\" the mark.\n.TH LIMITER 8') and script.startswith("# the mark.\n")
    for command, option in every_option():
        assert f".SS limiter {command}\n" in page
        if option not in ("-h", "--help"):
            assert option.replace("-", "\\-") in page
        line = next(line for line in script.splitlines() if line.strip().startswith(f"{command}) "))
        assert option in line.split()


def completed(tmp_path: Path, *words: str, printed: str = "") -> list[str]:
    """What bash makes of the last word of a command line, where `compgen -u`, limiter and systemctl print this."""
    (tmp_path / "names").write_text(printed)
    (tmp_path / "script").write_text(
        f'{completion("the mark")}\ncompgen() {{ if [[ $1 = -u ]]; then cat names; else builtin compgen "$@"; fi; }}\n'
        "limiter() { cat names; }\nsystemctl() { cat names; }\n"
        'COMP_WORDS=(limiter "$@") COMP_CWORD=$#\n_limiter limiter "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"\n'
        '[[ ${#COMPREPLY[@]} -eq 0 ]] || printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    command = ["bash", "--norc", "script", *words]
    done = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("option", ["--name", "--unit", "--user"])
def test_the_completion_takes_no_name_for_a_command(tmp_path: Path, option: str) -> None:
    hostile = "$(>obeyed)`>obeyed`$HOME"
    found = completed(tmp_path, "set", option, "", printed=f"{hostile}\nalice\ndev-by\\x2did.device\n")
    assert not (tmp_path / "obeyed").exists()
    # Quoted, so that the command line that was completed means the name.
    words = [word for line in found for word in shlex.split(line)]
    assert words == [hostile, "alice", "dev-by\\x2did.device"]


def test_the_completion_of_what_was_begun(tmp_path: Path) -> None:
    names = "dev-a\\x2d1.mount\ndev-a\\x2d2.mount\nssh.service x\n"
    assert completed(tmp_path, "set", "--unit", "ss", printed=names) == ["ssh.service"]
    # As it is typed, and as a shell was told it.
    for begun in ("dev-a\\", "dev-a\\\\x2d"):
        expected = ["dev-a\\\\x2d1.mount", "dev-a\\\\x2d2.mount"]
        assert completed(tmp_path, "set", "--unit", begun, printed=names) == expected
    assert completed(tmp_path, "rest") == ["restore"]
    assert completed(tmp_path, "set", "--rat") == ["--rate"]
    assert completed(tmp_path, "set", "--rate", "") == []
    assert str(os.getpid()) in completed(tmp_path, "set", "--pid", "")
