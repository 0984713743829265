# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces where something is refused or cannot be seen, and the command that shows one."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, tracing
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import main
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import tracing as port
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import KernelError, Libbpf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused, until
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import OURS
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, program, rule, snapshot
from ansible_collections.speed_limiter.ebpf.tests.support.refusing import forbidding_looks
from ansible_collections.speed_limiter.ebpf.tests.support.traces import (
    UNTRACED,
    Running,
    attached,
    trace,
)


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Iterator[None]:
    with limiter.stand_in():
        yield


@pytest.fixture(autouse=True)
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


# ---- another PID namespace

SENDS = """
import socket, sys, time
kept, *ports = (int(port) for port in sys.argv[1:])
open_before = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    if kept:
        open_before.sendto(b"x", ("127.0.0.1", kept))
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as new:
            new.sendto(b"x", ("127.0.0.1", port))
    time.sleep(0.005)
"""


def test_in_a_pid_namespace_nobody_is_taken_for_the_process_with_the_same_number() -> None:
    """The host knows the process by another number, and has one of its own with the number that was asked for."""
    program()
    kept, new, strangers = 40001, 40002, 40003
    with subprocess.Popen([sys.executable, "-c", SENDS, "0", str(strangers)]) as stranger:
        try:
            number = stranger.pid
            script = (
                f"echo {number - 1} >/proc/sys/kernel/ns_last_pid\n"
                f'"$0" -c "$SENDS" {kept} {new} & test $! = {number}\n'
                # Its socket is there.
                f'until ls -l /proc/{number}/fd | grep -q socket:; do sleep 0.1; done; "$@"'
            )
            prefix = ["env", f"SENDS={SENDS}", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
            call = f"task('speed_limit_trace', pid={number}, max_events=20, duration=60.0, direction='out')"
            said = elsewhere.said([*prefix, "sh", "-euc", script, sys.executable], call)
        finally:
            stranger.kill()
    found = ast.literal_eval(said.splitlines()[-1])
    assert found["ended"] == "max_events"
    assert {session["target_port"] for session in found["sessions"]} == {kept}
    (warning,) = found["warnings"]
    assert warning.startswith("sockets that the process makes during the trace are not told")
    assert "PID namespace" in warning


# ---- what is refused


def test_without_a_program_there_is_nothing_to_trace() -> None:
    for check in (False, True):
        with refused("no_program", "no program is loaded", "speed_limit_program"):
            limiter.task("speed_limit_trace", check=check)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"duration": 0.0}, "bad_options", "duration 0.0 is refused"),
        ({"duration": float("nan")}, "bad_options", "duration nan is refused"),
        ({"max_events": 10_001}, "bad_options", "Give 1 to 10000"),
        ({"port": 65536}, "bad_options", "port 65536 is refused"),
        ({"address": "nobody"}, "bad_options", "Give an address or a network"),
        ({"rule": "web", "direction": "in"}, "bad_options", "exclude each other"),
        ({"rule": "a/b"}, "bad_name", "a/b"),
        ({"rule": "nosuch"}, "no_rule", "there is no rule 'nosuch'"),
        ({"pid": 0}, "bad_pid", "pid 0"),
        ({"pid": 2**22}, "dead_process", f"process {2**22} does not exist"),
        ({"reason": "bored"}, "options", "bored"),
        ({"cgroup_path": "/a/../b"}, "bad_cgroup_path", "/a/../b"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_changed(options: Any, kind: str, words: str) -> None:
    program()
    before = snapshot()
    for check in (False, True):
        with refused(kind, words):
            limiter.task("speed_limit_trace", check=check, **{"duration": 0.1, **options})
    assert snapshot() == before


def test_check_mode_traces_nothing() -> None:
    program()
    before = snapshot()
    found = limiter.task("speed_limit_trace", check=True)
    assert (found["sessions"], found["changed"]) == ([], False)
    assert snapshot() == before


def test_without_the_object_that_was_loaded_there_is_no_trace(tmp_path: Path) -> None:
    program()
    os.rename(build.OBJECT, f"{build.OBJECT}.kept")
    try:
        with refused("untraceable", build.OBJECT, "name in object what was loaded"):
            trace(duration=0.1)
        assert trace(duration=0.1, object=f"{build.OBJECT}.kept", check=False)["ended"] == "duration"
    except LimiterError as error:
        assert error.kind == "untraceable"  # it was built here, and its identity is that of its source
    finally:
        os.rename(f"{build.OBJECT}.kept", build.OBJECT)
    program(object=build.OBJECT)
    assert trace(duration=0.1, object=build.OBJECT)["ended"] == "duration"


def test_an_object_of_an_earlier_version_has_nothing_that_traces(compiled: Callable[[str], str]) -> None:
    path = f"{os.path.dirname(build.OBJECT)}/earlier.o"
    program()
    shutil.copy(compiled(OURS), path)
    try:
        program(object=path)
        before = snapshot()
        with refused("untraceable", f"{path} has nothing that traces", "Run speed_limit_program"):
            trace(duration=0.1, object=path)
        assert snapshot() == before
    finally:
        os.unlink(path)


def test_of_more_cgroups_than_can_be_watched_some_are_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_CGROUPS", 1)
    program()
    with limiter.senders("/many_a"), limiter.senders("/many_b"):
        found = trace(duration=0.3, cgroup_paths=["/many_*"])
    assert found["warnings"] == ["not all cgroups are traced that fit /many_*: there are too many"]


def test_without_memory_for_the_ring_buffer_nothing_is_changed() -> None:
    program()
    before = snapshot()
    real = Libbpf.call

    def call(libbpf: Libbpf, name: str, *arguments: Any) -> int:
        if name == "bpf_object__load":
            raise KernelError("the kernel did not load the BPF program", errno.ENOMEM)
        return real(libbpf, name, *arguments)

    with mock.patch.object(Libbpf, "call", call), refused("no_memory", "ENOMEM", "6 MiB"):
        trace(duration=0.1)
    assert snapshot() == before


def test_where_the_kernel_hides_its_symbols_what_others_drop_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    program()
    monkeypatch.setattr(port, "_SYMBOLS", "/dev/null")
    found = trace(duration=0.1)
    assert (found["other_drops_seen"], found["warnings"]) == (False, [])
    asked = trace(duration=0.1, reason="other_program")
    assert "look as if they had passed" in asked["warnings"][0]
    assert "/proc/kallsyms" in asked["warnings"][0]


def test_where_the_kernel_forbids_looks_into_its_memory_there_is_a_trace_without() -> None:
    with forbidding_looks():
        program(state="reloaded")
    running = Running(max_events=1, reason="empty")
    code = subprocess.check_output(["bpftool", "prog", "dump", "xlated", "id", str(attached()["id"])], text=True)
    running.kill()
    assert "call bpf_ringbuf" in code
    assert "call bpf_probe_read" not in code


def test_where_no_packet_can_list_its_programs_the_kernel_is_asked_for_them() -> None:
    with forbidding_looks():
        program(state="reloaded")
    with limiter.senders("/home") as [sender]:
        rule(name="web", rate="1m", cgroup_path="/home")
        running = Running(max_events=1, rule="web")
        sender.charged()
        (session,) = running.result()["sessions"]
    assert session["programs_from"] == "query"
    assert [(one["name"], one["ours"], one["cgroup"]) for one in session["programs"]] == [
        ("limit_and_trace", True, "/")
    ]


def test_where_what_was_told_cannot_be_read_the_untraced_program_has_its_place_again() -> None:
    program()
    before = attached()
    real = Libbpf.pointer

    def pointer(libbpf: Libbpf, name: str, *arguments: Any) -> Any:
        if name == "ring_buffer__new":
            assert attached()["name"] == catalog.TRACE.name
            raise KernelError("the ring buffer cannot be read", errno.ENOMEM)
        return real(libbpf, name, *arguments)

    with mock.patch.object(Libbpf, "pointer", pointer), refused("kernel", "the ring buffer cannot be read", "ENOMEM"):
        trace(duration=0.1)
    assert attached() == before
    assert not os.path.exists(UNTRACED)
    assert info(gather=["program"])["program"]["trace"] is None


@pytest.mark.parametrize("row", catalog.TRACERS[1:], ids=[row.name for row in catalog.TRACERS[1:]])
def test_what_the_kernel_refuses_of_the_rest_is_told_and_the_trace_goes_on(row: catalog.ProgramRow) -> None:
    program()
    before = snapshot()
    real = Libbpf.call

    def call(libbpf: Libbpf, name: str, *arguments: Any) -> int:
        if name == "bpf_object__load" and not refusals:
            refusals.append(1)
            raise KernelError("the kernel did not load the BPF program", errno.EACCES)
        return real(libbpf, name, *arguments)

    refusals: list[int] = []
    said = mock.patch.object(Libbpf, "log", return_value=f"libbpf: prog '{row.name}': BPF program load failed: EACCES")
    with mock.patch.object(Libbpf, "call", call), said:
        found = trace(duration=0.1, direction="both", pid=os.getpid(), reasons=["other_program", "passed"])
    assert found["ended"] == "duration"
    assert found["warnings"][0].startswith(f"{row.refused}, because the kernel refuses {row.name}: EACCES")
    assert found["other_drops_seen"] == (row is not catalog.TRACE_REFUSAL)
    assert snapshot() == before


def test_what_the_kernel_does_not_attach_of_the_rest_is_told() -> None:
    program()
    real = Libbpf.call

    def call(libbpf: Libbpf, name: str, *arguments: Any) -> int:
        if name == "bpf_raw_tracepoint_open":
            raise KernelError("the BPF program cannot be attached", errno.EPERM)
        return real(libbpf, name, *arguments)

    with mock.patch.object(Libbpf, "call", call):
        found = trace(duration=0.1, reason="other_program")
    assert "because the kernel refuses trace_refusal: EPERM" in found["warnings"][0]
    assert not found["other_drops_seen"]


# ---- the command


def test_a_terminal_shows_sessions_as_they_come_until_somebody_ends_it() -> None:
    """Through the command as it is installed."""
    limiter.task("speed_limit_command")
    with limiter.senders("/home") as [sender]:
        rule(name="web", rate="1m", cgroup_path="/home")
        before = attached()
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv("/usr/sbin/limiter", ["limiter", "trace", "--cgroup-path", "/home", "--duration", "600"])
        text = ""
        os.set_blocking(terminal, False)

        def shown(what: str) -> bool:
            nonlocal text
            with contextlib.suppress(OSError):  # nothing yet, or no more
                text += os.read(terminal, 65536).decode()
            return what in text

        def shows_a_session() -> bool:
            sender.charged()
            return shown("VERDICT: passed reason=passed rule=web")

        until(shows_a_session)
        os.write(terminal, b"\x03")
        until(lambda: shown("interrupted: what was begun is undone"))
        _pid, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.WEXITSTATUS(status) == 130
        assert "Traceback" not in text
        assert attached() == before
    limiter.task("speed_limit_command", state="absent")


def test_whoever_reads_sessions_may_stop_early() -> None:
    """As `limiter trace | head -1` does. The next packet ends the trace, and what it replaced has its place again."""
    with limiter.senders("/home") as [sender]:
        rule(name="web", rate="1m", cgroup_path="/home")
        before = attached()
        code = f"import sys; from {main.__name__} import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "trace", "--name", "web", "--duration", "60", "--max-events", "10000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdout and running.stderr
            until(lambda: attached()["name"] == catalog.TRACE.name)
            sender.charged()
            assert running.stdout.readline().startswith("SESSION: direction=out")
            running.stdout.close()

            def is_over() -> bool:
                sender.charged()
                return running.poll() is not None

            until(is_over)
            assert (running.wait(), running.stderr.read()) == (main.READER_GONE, "")
        assert attached() == before


def test_the_command_shows_sessions_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with limiter.senders("/home") as [sender]:
        rule(name="web", rate="1m", cgroup_path="/home")
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    sender.charged()
            finally:
                os._exit(0)
        try:
            with mock.patch("sys.argv", ["limiter"]):
                assert main.main(["trace", "--name", "web", "--max-events", "2", "--duration", "20"]) == 0
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines if line.startswith("SESSION:")] == ["SESSION:"] * 2
    assert f"  PROG: id={lines[1].split('id=')[1].split()[0]} name=limit_and_trace" == lines[1]
    assert lines[-1] == "2 packets"
