# SPDX-License-Identifier: GPL-3.0-or-later
"""limiter top in a real terminal, and where there is none; limiter why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import main
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import PORT
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT, Scene
from ansible_collections.speed_limiter.ebpf.tests.support.terminal import terminal

PACKAGE = Path(main.__file__).parents[3]
# As the starter does, without Ansible.
COMMAND = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(PACKAGE)!r}); from _limiter.front.cli.main import main; sys.exit(main())",
]


def top(*words: str) -> list[str]:
    return [*COMMAND, "top", *words]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def line_of(name: str, lines: list[str]) -> str:
    return next((line for line in lines if re.match(rf". {name}\b", line)), "")


@pytest.fixture
def busy(scene: Scene) -> Iterator[Scene]:
    """Two connections under one rule, and another rule under which nobody sends."""
    cgroup = scene.limited(10 * MBIT, "busy", bucket=str(MBIT))
    limiter.rule(name="silent", rate="1m")
    scene.pair.send_tcp(connections=2, cgroup=cgroup)
    yield scene


def is_held(lines: list[str]) -> bool:
    line = line_of("busy", lines)
    return bool(re.search(r"(9\.\d+|1\d(\.\d)?) Mbit/s +(9\d|1\d\d)%!", line)) and line.split()[-3:] == ["0", "2", "1"]


def test_rules_are_watched_and_connections_are_shown(busy: Scene) -> None:
    with terminal(top("--interval", "0.2")) as shown:
        shown.until(is_held)
        assert shown.read()[1].split() == ["RULE", "LIMIT", "NOW", "USE", "LAST", "MIN", "DROPS", "WAIT", "PROCS"]
        assert "0 bit/s" in line_of("silent", shown.read())
        shown.until(lambda lines: re.search("\u2588 +[\u2581-\u2588]{2}", line_of("busy", lines)))
        shown.press("enter")
        found = shown.until(lambda lines: sum(f"{busy.pair.address}:{PORT}" in line for line in lines) == 2)
        assert found[0].startswith("busy: 10 Mbit/s, now ")
        shown.until(lambda lines: sum(bool(re.search(r"Mbit/s +yes .*Mbit/s", line)) for line in lines) == 2)
        shown.until(
            lambda lines: re.search(r"It holds its senders back for \d+ s, as far as was watched", " ".join(lines))
        )
        shown.press("escape")
        shown.until(is_held)
        shown.press("/", "s", "i", "l", "enter")
        shown.until(lambda lines: line_of("silent", lines) and not line_of("busy", lines))
        shown.press("q")
        assert shown.ended() == 0


@pytest.mark.parametrize("term", ["vt100", "vt220", "linux"])
def test_40_columns_and_10_rows_and_terminals_without_colours(busy: Scene, term: str) -> None:
    with terminal(top("--interval", "0.2"), 40, 10, term, LC_ALL="C", PYTHONCOERCECLOCALE="0", NO_COLOR="1") as shown:
        shown.until(lambda lines: re.search(r"> busy .*Mbit/s +\d+%! #+", lines[2]))
        assert b"\x1b[31m" not in shown.seen
        shown.press("enter")
        shown.until(lambda lines: any(f"{busy.pair.address}:{PORT}" in line for line in lines))
        shown.press("escape")
        shown.shows("> busy")
        shown.resize(80, 24)
        shown.shows("PROCS")


def test_a_rule_that_is_removed_while_it_is_watched(busy: Scene) -> None:
    with terminal(top("--interval", "0.2")) as shown:
        shown.until(is_held)
        shown.press("enter")
        shown.shows(f"{busy.pair.address}:{PORT}")
        limiter.rule(name="busy", state="absent")
        shown.shows("There is no rule busy any more.")
        shown.press("escape")
        shown.until(lambda lines: lines[0].startswith("1 rule ") and line_of("silent", lines))
        limiter.purge("all")
        shown.shows("no program is loaded: nothing limits")
        limiter.program()
        limiter.rule(name="anew", rate="1m")
        shown.until(lambda lines: line_of("anew", lines))


def test_a_wall_clock_that_jumps_changes_nothing(busy: Scene) -> None:
    jumping = "import time, random; time.time = lambda: random.choice([0.0, 4e9]); time.time_ns = lambda: 0; "
    command = [COMMAND[0], COMMAND[1], jumping + COMMAND[2], "top", "--interval", "0.2"]
    with terminal(command) as shown:
        for _time in range(5):
            shown.until(is_held)
        assert "every 0.2 s" in shown.read()[0]


def test_a_time_namespace_whose_clock_is_another_shows_the_same_rate(busy: Scene) -> None:
    if not os.path.exists("/proc/self/ns/time"):
        pytest.skip("this kernel has no time namespaces")
    with terminal(["unshare", "--time", "--monotonic", "100000", "--fork", *top("--interval", "0.2")]) as shown:
        shown.until(lambda lines: re.search(r"(9\.\d+|1\d(\.\d)?) Mbit/s +(9\d|1\d\d)%", line_of("busy", lines)))


def test_what_is_told_of_times_is_right_in_a_time_namespace(busy: Scene) -> None:
    """Programs know no such namespaces; whoever compares their times with his own has to."""
    if not os.path.exists("/proc/self/ns/time"):
        pytest.skip("this kernel has no time namespaces")

    def said(*words: str) -> dict[str, Any]:
        elsewhere = ["unshare", "--time", "--monotonic", "100000", "--fork", *COMMAND]
        found: dict[str, Any] = json.loads(subprocess.check_output([*elsewhere, *words, "--json"]))
        return found

    def is_told() -> bool:
        (rule,) = said("list", "--name", "busy")["rules"]
        return bool(rule["use"]["binds"] and rule["pacing"]["active_connections"] == 2)

    until(is_told)
    traced = said("trace", "--max-events", "1", "--duration", "60")
    assert [0 <= session["seconds"] < 60 for session in traced["sessions"]] == [True]


def test_1000_rules(scene: Scene) -> None:
    limiter.rules(*({"name": f"rule-{number:04}", "rate": "1m"} for number in range(1000)))
    cgroup = scene.limited(10 * MBIT, "busy", bucket=str(MBIT))
    scene.pair.send_tcp(connections=2, cgroup=cgroup)
    with terminal(top("--interval", "0.5")) as shown:
        shown.until(is_held)
        assert shown.read()[0].startswith("1001 rules  1 holds back")
        assert line_of("busy", shown.read()[:3])  # it uses most, so it is the first
        shown.press("end")
        shown.until(lambda lines: lines[-2].startswith("\u25b6 rule-0999"))
        shown.press("/", "0", "5", "0", "enter")
        shown.until(lambda lines: "with '050': 11" in lines[0] and line_of("rule-0500", lines))
        shown.press("escape", "p")
        shown.until(lambda lines: "PAUSED" in lines[0] and "with '050'" not in lines[0])
        shown.press("p", "s")
        shown.until(lambda lines: "  by rate  " in lines[0] and "PAUSED" not in lines[0])
        shown.press("home")
        shown.until(lambda lines: is_held(lines) and line_of("busy", lines[:3]))
        shown.press("s", "s", "s", "s")
        shown.until(lambda lines: "  by name  " in lines[0] and line_of("busy", lines[:3]))
    with terminal([*COMMAND, "trace", "--name", "busy", "--max-events", "3", "--duration", "60"]) as shown:
        assert shown.ended() == 0
        assert "3 packets" in shown.read()
        text = shown.seen.decode()
        assert text.count("SESSION: direction=out ") == text.count("  RULE: name=busy ") == 3
    ended = run("top", "--once", "--interval", "0.2")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 1002


@pytest.mark.parametrize("words", [("top",), ("top", "--once")])
def test_a_pipe_gets_the_table_once(busy: Scene, words: tuple[str, ...]) -> None:
    ended = run(*words)
    assert (ended.returncode, ended.stderr) == (0, "")
    title, first, second = ended.stdout.splitlines()
    assert title.split() == ["RULE", "LIMIT", "NOW", "USE", "DROPS", "WAIT", "PROCS"]
    assert first.startswith("busy") and second.startswith("silent") and ended.stdout.isascii()


def test_json_is_that_of_the_module(busy: Scene) -> None:
    ended = run("top", "--json")
    found = json.loads(ended.stdout)
    assert [rule["name"] for rule in found["use"]] == ["busy", "silent"]
    assert found["use"][0].keys() == limiter.info(gather=["use"])["use"][0].keys()


@pytest.mark.parametrize(
    ("term", "code", "why"),
    [
        ("dumb", "", "the terminal 'dumb' has no cursor"),
        ("nonsense", "", "the terminal 'nonsense' is not known here"),
        ("xterm", "sys.modules['curses'] = None; ", "has no curses"),
    ],
)
def test_a_terminal_that_cannot_be_drawn_on_gets_the_table_once(busy: Scene, term: str, code: str, why: str) -> None:
    command = [COMMAND[0], COMMAND[1], COMMAND[2].replace("from", f"{code}from"), "top", "--interval", "0.2"]
    with terminal(command, term=term) as shown:
        assert shown.ended() == 0
        assert f"{why}" in " ".join(shown.read()) and "this is shown once" in " ".join(shown.read())
        assert any(line.startswith("busy") for line in shown.read())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (None, 0)])
def test_the_terminal_is_given_back_however_it_ends(busy: Scene, number: int | None, status: int) -> None:
    with terminal(top(), term="xterm-256color") as shown:
        shown.shows("busy")
        if number is None:
            shown.press("\x03")  # Ctrl-C
        else:
            shown.process.send_signal(number)
        assert shown.ended() == status
        # The terminal's own screen and keys are back.
        assert b"\x1b[?1049l" in shown.seen and b"\x1b[?1l" in shown.seen and "Traceback" not in "\n".join(shown.read())


@pytest.mark.parametrize("keys", ["", "p"], ids=["", "paused"])
def test_it_ends_with_its_terminal_also_where_nothing_says_that_this_is_gone(busy: Scene, keys: str) -> None:
    with terminal(["env", "--ignore-signal=HUP", *top("--interval", "0.2")]) as shown:
        shown.shows("busy")
        shown.press(*keys)
        shown.until(lambda lines: bool(keys) == ("PAUSED" in lines[0]))
        shown.hang_up()
        shown.ended()


def test_an_interval_that_is_none_is_refused() -> None:
    for given in ("0", "-1", "nan", "x", "1e9"):
        ended = run("top", "--interval", given)
        assert ended.returncode == 2 and "--interval" in ended.stderr


def test_why_prints_the_paragraph_of_the_module(busy: Scene) -> None:
    sender = busy.pair.senders[0]
    with terminal([*COMMAND, "why", str(sender.pid)], 60) as shown:
        assert shown.ended() == 0
        lines = [line for line in shown.read() if line]
    assert lines[0].startswith(f"Process {sender.pid} (") and all(len(line) <= 60 for line in lines)
    ended = run("why", str(sender.pid))
    assert ended.stdout.count("\n") == 1 and "One rule holds for what it sends: busy (10 Mbit/s" in ended.stdout
    assert json.loads(run("why", "--json", str(sender.pid)).stdout)["why"]["binding_rule"] in ("busy", None)
    ended = run("why", str(2**22))
    assert ended.returncode == 1 and "(dead_process)" in ended.stderr


def test_an_upgrade_while_it_is_watched_goes_on_with_the_new_maps(busy: Scene) -> None:
    with terminal(top("--interval", "0.2")) as shown:
        shown.until(is_held)
        limiter.program(state="reloaded", object=build.OBJECT)
        shown.until(is_held)
