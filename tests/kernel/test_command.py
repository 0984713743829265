# SPDX-License-Identifier: GPL-3.0-or-later
"""The command limiter, as it is installed on a host: each command on the running kernel, what it refuses, and how it
ends where somebody stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import main
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import load
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.lock import host_lock
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.root import check_root
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, until
from ansible_collections.speed_limiter.ebpf.tests.support.faults import End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, purge, rule, snapshot
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import steps

STARTER = "/usr/sbin/limiter"
NO_PROCESS = 2**22


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    with limiter.stand_in():
        build.build(limiter.run_command)
        limiter.task("speed_limit_command")
        yield
        limiter.task("speed_limit_command", state="absent")


@pytest.fixture(autouse=True)
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


class Ended:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.errors = done.returncode, done.stderr
        self.lines = done.stdout.splitlines()
        assert "Traceback" not in self.errors


def command(*words: str, **options: Any) -> Ended:
    return Ended(subprocess.run([STARTER, *words], capture_output=True, text=True, check=False, **options))


def done(words: str, **options: Any) -> list[str]:
    """The output of a command that must succeed, and has nothing to warn of."""
    ended = command(*words.split(), **options)
    assert (ended.status, ended.errors) == (0, "")
    return ended.lines


def rows(words: str) -> list[list[str]]:
    """Of a table, without the header."""
    return [line.split() for line in done(words)[1:]]


# ---- what the tool that this one replaces could do


def test_set_a_process_its_rate_and_its_bucket(cgroups: Cgroups) -> None:
    with child() as process:
        name = f"pid-{process.pid}"
        line = f"{name}: 5242880 B/s (41.9 Mbit/s), bucket 5242880 B, 1 process"
        assert f"changed: {line}" in done(f"set --pid {process.pid} --rate 5m")
        assert snapshot(process.pid).places == {process.pid: f"/speed_limiter/{name}"}
        assert done(f"set -p {process.pid} -r 5M") == ["unchanged"]
        assert done(f"set -p {process.pid} -r 512K -b 1m --diff") == [
            f"- {line}",
            f"+ {name}: 524288 B/s (4.19 Mbit/s), bucket 1048576 B, 1 process",
        ]
        assert rule(pid=process.pid, rate="512k", bucket="1m")["changed"] is False
        assert done(f"unset --pid {process.pid}") == [f"changed: {name}: absent"]
        assert snapshot(process.pid).places == {process.pid: "/"} and not info(gather=["rules"])["rules"]


def test_move_by_the_cgroup_its_id_the_name_and_the_last_one(cgroups: Cgroups) -> None:
    identifier = rule(name="web", rate="1m")["rule"]["cgroup_id"]
    for choice in ("--cgroup-path /speed_limiter/web", f"--cgid {identifier}", "--name web", "--last"):
        with child() as process:
            done(f"move --pid {process.pid} {choice}")
            assert snapshot(process.pid).places == {process.pid: "/speed_limiter/web"}, choice
            done(f"unset -p {process.pid}")


def test_reload_keeps_what_it_is_not_told_and_unload(cgroups: Cgroups) -> None:
    Path(cgroups.absolute("/below")).mkdir()
    try:
        assert done("reload")[-1] == f"done: loaded {build.OBJECT}, attached to /"
        done("reload --cgroup-path /below --no-pacing")
        again = f"done: loaded {build.OBJECT}, attached to /below, without pacing"
        changed, loaded = done("reload")
        assert changed.endswith("attached to /below, pacing off, loaded again") and loaded == again
        assert again in done(f"reload -o {build.OBJECT} --diff")
        found = info(gather=["program"])["program"]
        assert (found["cgroup"], found["pacing"]["state"]) == ("/below", "off")
        assert "done: unloaded the program from /below" in done("unload")
        assert info(gather=["program"])["program"] is None
        assert done("unload") == ["unchanged"]
    finally:
        purge("all")
        Path(cgroups.absolute("/below")).rmdir()


def test_lists(cgroups: Cgroups) -> None:
    assert done("list") == ["RULE  RATE  BUCKET  NOW  BINDS  PIDS  IN PLACE"]
    assert done("list --bpf")[0] == "No program is loaded: nothing limits."
    with child() as process:
        done(f"set --name web -p {process.pid} -r 8mbit")
        done("set --name slice -r 1m --cgroup-path /a.slice --cgroup-path /b-*.slice")
        web = ["web", "8", "Mbit/s", "977", "KiB", "0", "bit/s", "no", "1"]
        place = ["/a.slice", "(absent),", "/b-*.slice", "(absent)"]
        assert rows("list") == [["slice", "8.39", "Mbit/s", "1", "MiB", "0", "bit/s", "no", "0", *place], web]
        assert rows("list --name web") == [web]
        (line,) = rows("list --pid")
        assert line[:3] == [str(process.pid), "web", "/speed_limiter/web"] and line[3] == sys.executable
        one, _empty, header, limits = done(f"list -p {process.pid}")[1:]
        assert one.split()[:2] == line[:2] and header.startswith("RULE") and limits.split() == web
        shown = done("list --bpf")
        assert shown[1:3] == ["attached  /", "pacing    on"] and "limit_egress" in shown[-1]
        assert json.loads("\n".join(done("list --json")))["rules"][1]["name"] == "web"
        assert done("_names") == ["slice", "web"]
        done(f"unset -p {process.pid}")


def test_purge_in_its_scopes(cgroups: Cgroups) -> None:
    with child() as process:
        done(f"set --name web -p {process.pid} -r 1m")
        assert done("purge --scope stale") == ["unchanged"]
        assert done("purge --check") == [
            "would change: web: absent",
        ]
        assert done("purge") == ["changed: web: absent"]
        assert snapshot(process.pid).places == {process.pid: "/"}
    assert "changed: program: absent" in done("purge --scope all")
    assert snapshot() == limiter.nothing()


# ---- beyond it


def test_what_limits_nothing_or_changes_nothing_says_why(cgroups: Cgroups, tmp_path: Path) -> None:
    absent = " (absent: limited as soon as it is there)"
    _loaded, made = done("set --name web -r 8mbit --cgroup-path /absent.slice")[:2]
    assert made.endswith(f"limits /absent.slice{absent}")
    with child() as process:
        assert done(f"unset -p {process.pid}") == [f"unchanged: no rule took process {process.pid}"]
        moved = command("move", "-p", str(process.pid), "--name", "nosuch")
        remedy = "limiter list shows the rules; limiter set makes one."
        assert moved.status == 1 and moved.errors == f"limiter: there is no rule 'nosuch'. {remedy} (no_rule)\n"
        assert done("unset --name wbe") == ["unchanged: there is no rule 'wbe'"]
        assert done("unset --name web --cgroup-path /b.slice") == ["unchanged: 'web' does not limit /b.slice"]
        done(f"set -p {process.pid} -r 8mbit")
        file = tmp_path / "none.json"
        file.write_text("[]")
        assert done(f"apply --purge {file}") == ["changed: web: absent", f"kept: pid-{process.pid}"]
        command("unload")
        listed = command("list")
        reloading = "limiter reload loads it."
        assert listed.errors == f"limiter: warning: no program is loaded: nothing limits. {reloading}\n"
        assert listed.lines[1].startswith(f"pid-{process.pid} ") and listed.status == 0
        done(f"unset -p {process.pid}")


def test_apply_makes_the_rules_of_files_and_no_others(cgroups: Cgroups, tmp_path: Path) -> None:
    done("set --name old -r 1m")
    one, two = tmp_path / "one.json", tmp_path / "two.yaml"
    one.write_text('[{"name": "web", "rate": "1m"}]')
    two.write_text("rules: [{name: mirror, rate: 8mbit, cgroup_path: /mirror.slice}]")
    before = snapshot()
    expected = [
        "- mirror: absent",
        "+ mirror: 1000000 B/s (8 Mbit/s), bucket 1000000 B, 0 processes, limits /mirror.slice",
        "- old: 1048576 B/s (8.39 Mbit/s), bucket 1048576 B, 0 processes",
        "+ old: absent",
        "- web: absent",
        "+ web: 1048576 B/s (8.39 Mbit/s), bucket 1048576 B, 0 processes",
    ]
    words = f"apply --purge --diff {one} {two}"
    assert done(f"{words} --check") == expected and snapshot() == before
    assert done(words) == expected
    assert done(words) == ["unchanged"]
    assert [found["name"] for found in info(gather=["rules"])["rules"]] == ["mirror", "web"]
    assert done("apply -", input='[{"name": "mirror", "state": "absent"}]') == ["changed: mirror: absent"]


def test_nothing_of_the_files_is_done_where_one_rule_is_wrong(cgroups: Cgroups, tmp_path: Path) -> None:
    done("set --name web -r 1m")
    file = tmp_path / "rules.json"
    file.write_text(json.dumps([{"name": "new", "rate": "1m"}, {"name": "web", "pid": NO_PROCESS}]))
    before = snapshot()
    ended = command("apply", str(file))
    assert ended.status == 1 and ended.errors.endswith("(dead_process)\n") and snapshot() == before
    assert ended.errors.startswith(f"limiter: {file}: rules[1] ('web'): ")


def test_json_is_what_the_module_returns(cgroups: Cgroups) -> None:
    shown = json.loads("\n".join(done("set --name web -r 1m --json")))
    again = json.loads("\n".join(done("set --name web -r 1m --json --check")))
    module = rule(name="web", rate="1m", check=True)
    assert shown["changed"] and again == json.loads(json.dumps(module))


REFUSED = {
    "no such process": f"set -p {NO_PROCESS} -r 1m",
    "init": "set -p 1 -r 1m",
    "no rate for a new rule": "set --name new",
    "an ambiguous rate": "set --name new -r 5mb",
    "a small bucket": "set --name new -r 5m -b 1",
    "a name that is none": "set --name a/b -r 5m",
    "several processes without a name": "set -p 5 -p 6 -r 5m",
    "a cgroup that holds the connection": "set --name new -r 5m --cgroup-path /",
    "a trace without a program": "trace",
    "a trace of no address": "trace --address nobody",
    "no rule of that id": "move -p 5 --cgid 99999999",
    "no last rule": "move -p 5 --last",
    "an object that is none": "reload -o /etc/passwd",
    "no such rule": "list --name nothing",
    "no such cgroup": "list --cgroup-path /nothing",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "no such process": {"pid": NO_PROCESS, "rate": "1m"},
    "a cgroup that holds the connection": {"name": "new", "rate": "5m", "cgroup_path": "/"},
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=list(REFUSED))
def test_what_is_refused_changes_nothing(cgroups: Cgroups, words: str) -> None:
    before = snapshot()
    texts = set()
    for check in ([], ["--check"]) if not words.startswith(("list", "trace")) else ([],):
        ended = command(*words.split(), *check)
        assert ended.status == 1 and not ended.lines and snapshot() == before
        texts.add(ended.errors)
    (text,) = texts
    assert text.startswith("limiter: ") and text.endswith(")\n")


@pytest.mark.parametrize("name", list(OPTIONS))
def test_it_is_refused_in_the_words_of_the_module(cgroups: Cgroups, name: str) -> None:
    with pytest.raises(LimiterError) as raised:
        rule(**OPTIONS[name])
    assert command(*REFUSED[name].split()).errors == f"limiter: {raised.value} ({raised.value.kind})\n"


@pytest.mark.parametrize("words", ["set --name web -r 1m", "list", "trace", "purge", "unload"])
def test_only_root_may(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.setattr(main, "_listen", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert main.main(words.split()) == 1
    with pytest.raises(LimiterError) as raised:
        check_root()
    assert capsys.readouterr() == ("", f"limiter: {raised.value} (not_root)\n")


def test_what_a_newer_version_made_is_left_alone(cgroups: Cgroups) -> None:
    done("set --name web -r 1m")
    maps = Maps.open(load())
    assert maps is not None
    with maps:
        control = maps.control()
        maps.write_control(control._replace(schema=99))
        before = cgroups.rule_names()
        ended = command("set", "--name", "web", "-r", "2m")
        assert ended.status == 1 and ended.errors.endswith("(other_schema)\n")
        for words in ("schema is 99", "Run that version, which is newer", "This command is of version"):
            assert words in ended.errors
        listed = command("list")
        assert listed.status == 0 and listed.lines[1].split()[0] == "web" and "schema is 99" in listed.errors
        assert done("--version")[1] == "what limits on this host is of a newer version, schema 99"
        assert cgroups.rule_names() == before
        maps.write_control(control)


# ---- who stops it, and who waits


@contextlib.contextmanager
def waiting(words: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it cannot have the lock, which is free again at the end. It listens to signals already."""
    with host_lock(0.0):
        process = subprocess.Popen([STARTER, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: catches(process.pid, signal.SIGHUP))
        yield process
    process.communicate()


def catches(pid: int, number: signal.Signals) -> bool:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_it_waits_for_whoever_changes_the_host(cgroups: Cgroups) -> None:
    with waiting("set --name web -r 1m") as process:
        assert not rows("list")  # whoever only looks does not wait
        assert process.poll() is None
    assert process.returncode == 0 and rows("list")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(cgroups: Cgroups, number: signal.Signals) -> None:
    before = snapshot()
    with waiting("set --name web -r 1m") as process:
        process.send_signal(number)
        output, errors = process.communicate()
    assert (process.returncode, output) == (128 + number, "")
    assert errors == "limiter: interrupted: what was begun is undone (interrupted)\n"
    assert snapshot() == before


def test_what_a_killed_one_began_the_next_one_completes(cgroups: Cgroups) -> None:
    words = ["set", "--name", "web", "-r", "1m", "--cgroup-path", "/a.slice"]

    def work() -> dict[str, Any]:
        assert main.main(words) == 0
        return {"warnings": []}

    assert main.main(words) == 0
    wanted = snapshot()
    purge()
    killed = 0
    for step in steps(200, 5):
        end, _text = run_with(Fault.KILLED, step, work)
        assert command(*words).status == 0
        assert snapshot()._replace(remembered=wanted.remembered) == wanted, step
        if end is End.DONE:
            break
        killed += 1
        purge()
    assert killed


def test_whoever_reads_may_stop_early(cgroups: Cgroups) -> None:
    for close in ("| true", ">&-", "2>&-", ">&- 2>&-"):
        shell = f"set -o pipefail; {STARTER} list {close}"
        ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert ended.stderr == "" and ended.returncode in (0, main.READER_GONE), close


def test_what_cannot_be_written_is_told(cgroups: Cgroups) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        ended = subprocess.run([STARTER, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1 and "ENOSPC" in ended.stderr and "Traceback" not in ended.stderr


def test_a_narrow_terminal(cgroups: Cgroups) -> None:
    done(f"set --name {'n' * 128} -r 1m --cgroup-path /{'a' * 200}.slice")
    for words, locale, more in (("list", "C.UTF-8", "\u2026"), ("list", "C", "...")):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "LC_ALL": locale}
        environment.pop("COLUMNS", None)
        subprocess.run([STARTER, words], stdout=theirs, check=True, env=environment)
        os.close(theirs)
        text = ""
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 65536):
                text += chunk.decode()
        os.close(ours)
        lines = text.splitlines()
        assert len(lines) == 2 and more in lines[1] and max(map(len, lines)) <= 80
