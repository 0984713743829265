# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is asked for and cannot be: an error that says what, why and what to do, the same in check mode, and the
host is as it was.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, zombie
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import (
    Sender,
    nothing,
    purge,
    refused_unchanged,
    rule,
    rules,
    snapshot,
)

NO_PROCESS = 2**22  # the kernel's pids end below


@pytest.fixture(scope="module")
def sender() -> Iterator[Sender]:
    with limiter.senders("/home_of_sender") as (one,), limiter.clean_host():
        yield one


@pytest.fixture
def web(sender: Sender) -> Iterator[Sender]:
    """A host with a rule ``web`` and a process in it."""
    rule(name="web", pid=sender.pid, rate="1m")
    yield sender
    purge()


NEW: dict[str, Any] = {"name": "new", "rate": "1m"}
RATE_FORMS, BUCKET_FORMS = ("Give an integer in bytes per second", "kbit, mbit"), ("Give an integer in bytes,",)
RULE_NAME = "a rule's name has letters, digits and _ . @ : - only"

BAD_OPTIONS = {
    "no such process": ({**NEW, "pid": NO_PROCESS}, "dead_process", [str(NO_PROCESS), "does not exist"]),
    "a pid beyond 64 bits": ({**NEW, "pid": 2**70}, "dead_process", [str(2**70)]),
    "one of several is dead": ({**NEW, "pids": [NO_PROCESS]}, "dead_process", [str(NO_PROCESS)]),
    "pid 0": ({**NEW, "pid": 0}, "bad_pid", ["pid 0", "positive"]),
    "pid -1": ({**NEW, "pids": [-1]}, "bad_pid", ["pid -1", "positive"]),
    "pid 1": ({**NEW, "pid": 1}, "bad_pid", ["pid 1", "init", "units"]),
    "kthreadd": ({**NEW, "pid": 2}, "kernel_thread", ["process 2", "kernel thread"]),
    "rate 0": ({"name": "new", "rate": "0"}, "bad_rate", ["rate: '0'", "8000", "64kbit", *RATE_FORMS]),
    "rate -5m": ({"name": "new", "rate": "-5m"}, "bad_rate", ["rate: '-5m'", *RATE_FORMS]),
    "rate 7999": ({"name": "new", "rate": "7999"}, "bad_rate", ["rate: '7999'", "at least 8000", *RATE_FORMS]),
    "rate 101gbit": ({"name": "new", "rate": "101gbit"}, "bad_rate", ["rate: '101gbit'", "at most 12500000000"]),
    "rate of 400 digits": ({"name": "new", "rate": "9" * 400}, "bad_rate", ["is refused", *RATE_FORMS]),
    "rate 5mb": ({"name": "new", "rate": "5mb"}, "bad_rate", ["rate: '5mb'", "ambiguous", *RATE_FORMS]),
    "rate fast": ({"name": "new", "rate": "fast"}, "bad_rate", ["rate: 'fast'", *RATE_FORMS]),
    "rate ''": ({"name": "new", "rate": ""}, "bad_rate", ["rate: ''", *RATE_FORMS]),
    "no rate for a new rule": ({"name": "new"}, "rate_needed", ["rate is needed", "'new'", "Add rate"]),
    "bucket 100": ({**NEW, "bucket": "100"}, "bad_bucket", ["bucket: '100'", "at least", "full packet", *BUCKET_FORMS]),
    "bucket 1mbit": ({**NEW, "bucket": "1mbit"}, "bad_bucket", ["bucket: '1mbit'", "'mbit'", *BUCKET_FORMS]),
    "bucket -1": ({**NEW, "bucket": "-1"}, "bad_bucket", ["bucket: '-1'", *BUCKET_FORMS]),
    "name a/b": ({**NEW, "name": "a/b"}, "bad_name", ["name 'a/b'", RULE_NAME, "Choose a name"]),
    "name ..": ({**NEW, "name": ".."}, "bad_name", ["name '..'", RULE_NAME]),
    "name ''": ({**NEW, "name": ""}, "bad_name", ["name ''", RULE_NAME]),
    "name of 300 characters": ({**NEW, "name": "n" * 300}, "bad_name", ["300 characters", "128 are the most"]),
    "name of 129 characters": ({**NEW, "name": "n" * 129}, "bad_name", ["129 characters", "128 are the most"]),
    "name memory.max": ({**NEW, "name": "memory.max"}, "bad_name", ["'memory.max'", "kernel's own files"]),
    "name cgroup.procs": ({**NEW, "name": "cgroup.procs"}, "bad_name", ["'cgroup.procs'", "kernel's own files"]),
    "pids and processes": (
        {**NEW, "pid": 5, "processes": {"name": "x"}},
        "bad_options",
        ["pids and processes", "Give one of them"],
    ),
    "name and last": ({**NEW, "last": True}, "bad_options", ["name and last", "Give one of them"]),
    "cgid and cgroup_path": (
        {"cgid": 5, "cgroup_path": "/a"},
        "bad_options",
        ["cgroup_path", "Give name"],
    ),
    "nothing": ({"rate": "1m"}, "bad_options", ["no rule is named", "Give name"]),
    "several processes without a name": ({"pids": [5, 6], "rate": "1m"}, "bad_options", ["needs a name", "Add name"]),
    "no selector": (
        {**NEW, "processes": {}},
        "bad_selector",
        ["nothing is selected", "Give name, exe"],
    ),
    "an empty cmdline": ({**NEW, "processes": {"user": "root", "cmdline": ""}}, "bad_selector", ["cmdline is empty"]),
    "an unknown user's processes": (
        {**NEW, "processes": {"user": "no-such-user"}},
        "unknown_user",
        ["processes: user 'no-such-user' is not known on this host"],
    ),
    "a broken cmdline": ({**NEW, "processes": {"cmdline": "a("}}, "bad_selector", ["'a('", "not a regular expression"]),
    "cgid of nothing": ({"cgid": 2**63, "rate": "1m"}, "no_rule", ["no such rule", "Give name and rate"]),
    "cgid 0": ({"cgid": 0, "rate": "1m"}, "bad_options", ["cgroup_id 0", "speed_limit_info"]),
    "cgid -1": ({"cgid": -1, "rate": "1m"}, "bad_options", ["cgroup_id -1", "speed_limit_info"]),
    "cgid beyond 64 bits": ({"cgid": 2**70, "rate": "1m"}, "bad_options", [str(2**70), "speed_limit_info"]),
    "cgroup_path without name": ({"cgroup_path": "/home_of_sender", "rate": "1m"}, "bad_options", ["Add name"]),
    "two stars": (
        {**NEW, "cgroup_path": "/a*b*"},
        "bad_cgroup_path",
        ["/a*b*", "more than one star", "Each name of a path may have one star; give several paths"],
    ),
    "cgroup_path ''": (
        {**NEW, "cgroup_path": ""},
        "bad_cgroup_path",
        ["cgroup_paths: ''", "it is empty. Leave the option out, or"],
    ),
    "cgroup_path with ..": ({**NEW, "cgroup_path": "/a/../b"}, "bad_cgroup_path", ["/a/../b", "'..' is not accepted"]),
    "a file": ({**NEW, "cgroup_path": "/cgroup.procs"}, "bad_cgroup_path", ["cgroup.procs", "a file, not a cgroup"]),
    "NUL": ({**NEW, "cgroup_path": "/a\0b"}, "bad_cgroup_path", ["NUL"]),
    "300 characters": ({**NEW, "cgroup_path": "/" + "c" * 300}, "bad_cgroup_path", ["/ccc", "255 bytes"]),
    "ours": ({**NEW, "cgroup_path": "/speed_limiter"}, "bad_cgroup_path", ["/speed_limiter/<name>"]),
    "below a rule": ({"cgroup_path": "/speed_limiter/web/x", "rate": "1m"}, "bad_cgroup_path", ["not a rule's cgroup"]),
    "two names": ({**NEW, "cgroup_path": "/speed_limiter/web"}, "bad_options", ["name disagree", "'web'"]),
}


@pytest.mark.parametrize(("options", "kind", "words"), BAD_OPTIONS.values(), ids=list(BAD_OPTIONS))
def test_bad_options(web: Sender, options: dict[str, Any], kind: str, words: list[str]) -> None:
    texts = []
    for check in (True, False):
        with refused_unchanged(kind, *words, pids=(web.pid,)):
            try:
                rule(check=check, **options)
            except LimiterError as error:
                texts.append(str(error))
                raise
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("options", "kind", "words"), BAD_OPTIONS.values(), ids=list(BAD_OPTIONS))
def test_a_bad_rule_in_a_list_is_named_by_its_index_and_nothing_of_the_list_is_done(
    web: Sender, options: dict[str, Any], kind: str, words: list[str]
) -> None:
    with refused_unchanged(kind, "rules[1]", *words, pids=(web.pid,)):
        rules({"name": "first", "rate": "1m", "pid": web.pid}, options)


def test_nothing_is_loaded_for_a_task_that_cannot_succeed(sender: Sender) -> None:
    purge("all")
    empty = nothing(sender.pid)
    for options, kind, _words in BAD_OPTIONS.values():
        with pytest.raises(LimiterError):
            rule(**options)
        assert snapshot(sender.pid) == empty, (options, kind)


def test_a_name_that_comes_twice_is_named_with_both_places(web: Sender) -> None:
    with refused_unchanged("bad_options", "rules[2] ('a'): ", "rules[0] ('a')", "Give each rule once"):
        rules({"name": "a", "rate": "1m"}, {"name": "b", "rate": "1m"}, {"name": "a", "rate": "2m"})


def test_a_zombie_and_a_mere_thread_are_no_processes(web: Sender) -> None:
    with zombie() as pid, refused_unchanged("dead_process", str(pid)):
        rule(name="web", pid=pid)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    thread = next(int(name) for name in os.listdir("/proc/self/task") if int(name) != os.getpid())
    with refused_unchanged("dead_process", str(thread)):
        rule(name="web", pid=thread)


def test_last_where_no_rule_was_ever_set(sender: Sender) -> None:
    purge("all")
    with refused_unchanged("no_rule", "no such rule", "Give name and rate"):
        rule(last=True, rate="1m")


# ---- what changes while the task runs


def dies_before_it_is_moved(monkeypatch: pytest.MonkeyPatch, victim: subprocess.Popen[str]) -> None:
    move = Cgroups.move

    def killing(self: Cgroups, pid: int, cgroup: str) -> None:
        if pid == victim.pid:
            victim.kill()
            victim.wait()
        move(self, pid, cgroup)

    monkeypatch.setattr(Cgroups, "move", killing)


def test_a_process_that_dies_in_between_undoes_the_whole_list(web: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    with child() as victim:
        dies_before_it_is_moved(monkeypatch, victim.process)
        with refused_unchanged("dead_process", str(victim.pid), "ended", pids=(web.pid,)):
            rules(
                {"name": "first", "rate": "1m", "pid": web.pid},
                {"name": "web", "rate": "2m"},
                {"name": "second", "rate": "1m", "pid": victim.pid},
            )
    assert web.charged() == {"web"}


def test_a_selected_process_that_dies_in_between_is_none_of_the_tasks_business(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child("import sys; print('ready', flush=True); sys.stdin.read()  # the victim") as victim:
        dies_before_it_is_moved(monkeypatch, victim.process)
        assert rule(**NEW, processes={"cmdline": "# the victi[m]"})["matched"] == [victim.pid]
    assert snapshot().cgroups == ("/speed_limiter", "/speed_limiter/new")
    purge()


@contextlib.contextmanager
def processes_with_one_pid() -> Iterator[Iterator[int]]:
    """Processes that follow each other under the same pid; each ends when the next is asked for."""
    last = Path("/proc/sys/kernel/ns_last_pid")

    def follow() -> Iterator[int]:
        pid = 0
        while True:
            for _attempt in range(1000):  # others fork, too
                if pid:
                    last.write_text(str(pid - 1))
                with child() as one:
                    if pid in (0, one.pid):
                        pid = one.pid
                        yield pid
                        break

    running = follow()
    try:
        yield running
    finally:
        running.close()  # type: ignore[attr-defined]


def test_another_process_with_the_same_pid_does_not_inherit_its_rule(sender: Sender) -> None:
    with processes_with_one_pid() as running:
        pid = next(running)
        rule(pid=pid, rate="1m")
        assert next(running) == pid
        assert snapshot(pid).places[pid] != f"/speed_limiter/pid-{pid}"
        with refused_unchanged("rate_needed", f"'pid-{pid}'"):
            rule(pid=pid)
        made = rule(pid=pid, rate="2m")
        assert made["rule"]["rate"] == 2 * 1024**2
        assert next(running) == pid
        gone = rule(pid=pid, state="absent")
        assert gone["changed"]
        assert snapshot(pid).cgroups == ("/speed_limiter",)
        assert snapshot(pid).places[pid] == "/"
    purge()


def test_a_rule_of_an_earlier_process_in_which_others_still_run_is_not_taken_over(sender: Sender) -> None:
    with processes_with_one_pid() as running, child() as other:
        pid = next(running)
        rule(pid=pid, rate="1m")
        rule(name=f"pid-{pid}", pid=other.pid)
        assert next(running) == pid
        with refused_unchanged(
            "stale_rule", f"pid-{pid}", "an earlier process", "Give the new rule a name", pids=(other.pid,)
        ):
            rule(pid=pid, rate="2m")
    purge()
