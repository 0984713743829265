# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of processes, against real ones."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Process, Selector
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes, selection
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.lock import host_lock
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import (
    FAMILY,
    HEADLESS,
    WAIT,
    child,
    refused,
    sandbox_cgroups,
    until,
    zombie,
)


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with sandbox_cgroups() as found:
        yield found


def is_zombie(pid: int) -> bool:
    return "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()


def never_used_pid() -> int:
    return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1


# ---- one process


def test_a_process_is_read_as_the_kernel_tells_it(cgroups: Cgroups) -> None:
    cgroups.make_rule("rule")
    with child() as process:
        cgroups.move(process.pid, "/speed_limiter/rule")
        start_time = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert processes.read(process.pid) == Process(process.pid, start_time, "/speed_limiter/rule")


@pytest.mark.parametrize("name", ["a) S 1 2 3", "x (y)", "new\nline", ") R 7 7"])
def test_a_process_s_name_cannot_pretend_to_be_other_fields(name: str) -> None:
    code = f"import sys; open('/proc/self/comm', 'w').write({name!r}); print('ready', flush=True); sys.stdin.read()"
    with child(code) as process, child() as plain:
        read, other = processes.read(process.pid), processes.read(plain.pid)
        assert read is not None
        assert other is not None
        assert read.cgroup == other.cgroup
        assert 0 <= other.start_time - read.start_time < 100 * 60
        assert processes.ancestors(process.pid)[0] == os.getpid()


def test_the_dead_are_not_processes() -> None:
    with zombie() as pid:
        assert processes.read(pid) is None
    assert processes.read(pid) is None
    assert processes.read(never_used_pid()) is None
    assert processes.read(-1) is None


def test_a_thread_is_not_a_process_but_knows_its_own() -> None:
    with child(HEADLESS) as process:
        thread = int(process.words[0])
        assert Path(f"/proc/{thread}").exists()
        assert processes.read(thread) is None
        assert processes.leader(thread) == process.pid
    assert processes.leader(never_used_pid()) is None


def test_a_process_whose_first_thread_has_ended_lives(cgroups: Cgroups) -> None:
    with child(HEADLESS) as process:
        until(lambda: is_zombie(process.pid))
        cgroups.make_rule("rule")
        cgroups.move(process.pid, "/speed_limiter/rule")
        read = processes.read(process.pid)
        assert read is not None
        assert read.cgroup == "/speed_limiter/rule"


def test_two_processes_with_one_number_differ_in_start_time() -> None:
    """What tells a process from a later one with its number."""
    with child() as first:
        start_time = processes.read(first.pid)
        clock = os.sysconf("SC_CLK_TCK")
        assert start_time is not None
        until(lambda: float(Path("/proc/uptime").read_text().split()[0]) * clock > start_time.start_time + 2)
        with child() as second:
            later = processes.read(second.pid)
            assert later is not None
            assert later.start_time > start_time.start_time


def test_kernel_threads_are_known() -> None:
    assert processes.is_kernel_thread(2)
    assert not processes.is_kernel_thread(1)
    assert not processes.is_kernel_thread(os.getpid())
    assert not processes.is_kernel_thread(never_used_pid())


def test_a_command_is_one_short_line() -> None:
    with child(WAIT, "a\nb", "x" * 500) as process:
        command = processes.command(process.pid)
        assert command.startswith(sys.executable)
        assert "\n" not in command
        assert len(command) == 80
    assert processes.command(2) == "kthreadd"
    assert processes.command(process.pid) == "gone"


# ---- relations


def test_ancestors_end_at_init_and_are_protected() -> None:
    with child(FAMILY) as process:
        son, grandson = map(int, process.words)
        assert processes.ancestors(grandson)[:3] == [son, process.pid, os.getpid()]
        assert processes.protected(grandson) >= {1, grandson, son, process.pid, os.getpid(), os.getppid()}
        assert son not in processes.protected(process.pid)


@pytest.mark.parametrize("way", ["children files", "scan"])
def test_descendants_of_all_generations_are_found(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "scan":  # a kernel without CONFIG_PROC_CHILDREN
        monkeypatch.setattr(os.path, "exists", lambda path: False)
    with child(FAMILY) as process, child(FAMILY) as other:
        son, grandson = map(int, process.words)
        assert sorted(processes.descendants([process.pid])) == sorted([son, grandson])
        assert processes.descendants([process.pid, son]) == [grandson]
        assert processes.descendants([grandson]) == []
        both = [*map(int, process.words), *map(int, other.words)]
        assert sorted(processes.descendants([process.pid, other.pid])) == sorted(both)
    assert processes.descendants([never_used_pid()]) == []


def test_children_of_every_thread_are_found() -> None:
    code = (
        "import subprocess, sys, threading\n"
        "kept = []\n"
        "def run():\n"
        "    kept.append(subprocess.Popen(['cat'], stdin=subprocess.PIPE))\n"
        "    print('ready', kept[0].pid, flush=True)\n"
        "    sys.stdin.read()\n"
        "threading.Thread(target=run).start()\n"
    )
    with child(code) as process:
        assert processes.descendants([process.pid]) == [int(process.words[0])]


# ---- selection


@pytest.fixture
def copy_of_sleep() -> Iterator[tuple[int, Path]]:
    """A process of `nobody` whose executable is its own, with a name longer than the kernel keeps (15 characters)."""
    executable = Path("/run/a-sleep-with-a-long-name")  # the sandbox's /run: temporary directories are closed to nobody
    shutil.copy2(shutil.which("sleep") or "", executable)
    process = subprocess.Popen([executable, "12345", "67890"], user="nobody")
    try:
        until(lambda: processes.command(process.pid).endswith("67890"))
        yield process.pid, executable
    finally:
        process.kill()
        process.wait()
        executable.unlink(missing_ok=True)


def select(selector: Selector) -> selection.Selected:
    return selection.select({selector: selection.Wanted(selector)})[selector]


def pids_of(selector: Selector) -> list[int]:
    selected = select(selector)
    assert not (selected.slow or selected.held_up)
    return list(selected.pids)


@pytest.fixture
def slow() -> Iterator[int]:
    """A process whose command line takes an expression that its user did not write some minutes."""
    words = ["java", "-jar", "x"] * 7000
    with subprocess.Popen(["bash", "-c", 'exec -a "$0" sleep infinity', " ".join(words)], user="nobody") as process:
        until(lambda: len(Path(f"/proc/{process.pid}/cmdline").read_bytes()) > 80_000)
        yield process.pid
        process.kill()


def test_a_command_line_that_is_slow_to_search_hides_no_other_process(slow: int) -> None:
    with subprocess.Popen(["bash", "-c", 'exec -a "java -jar the-app.jar" sleep infinity']) as process:
        until(lambda: b"java" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        selected = select(Selector(cmdline=r"java.*-jar.*app\.jar"))
        process.kill()
    assert (list(selected.pids), selected.slow) == ([process.pid], [slow])


def test_the_lock_is_free_while_processes_are_searched_and_what_was_not_searched_is_told(
    slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(wanted: dict[Selector, selection.Wanted]) -> dict[Selector, selection.Selected]:
        with host_lock(0.0):
            return real(wanted)

    real = selection.select
    monkeypatch.setattr(selection, "select", select)
    with limiter.clean_host():
        found = limiter.rules({"name": "java", "rate": "1m", "processes": {"cmdline": r"java.*-jar.*app\.jar"}})
        assert found["matched"] == {"java": []}
        assert [it["pid"] for it in found["skipped_processes"]["java"]] == [slow]
        (told,) = found["unenforced"]
        assert "were not compared with cmdline" in told
        assert told in found["warnings"]


def test_a_process_outside_of_the_cgroup_namespace_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of the host by a task in a container that sees the host's processes."""
    real = processes.read
    with limiter.clean_host(), child() as inside, child() as outside:

        def read(pid: int) -> Process | None:
            found = real(pid)
            return found._replace(cgroup="/../../system.slice") if found and pid == outside.pid else found

        monkeypatch.setattr(processes, "read", read)
        home = limiter.snapshot(outside.pid).places
        found = limiter.rule(name="it", rate="1m", processes={"cmdline": re.escape(WAIT)})
        assert inside.pid in found["matched"] and outside.pid not in found["matched"]
        assert {"pid": outside.pid, "reason": "outside of this cgroup namespace"} in found["skipped_processes"]
        assert limiter.snapshot(outside.pid).places == home


def test_each_key_selects_and_all_must_hold(copy_of_sleep: tuple[int, Path]) -> None:
    pid, executable = copy_of_sleep
    uid = str(pwd.getpwnam("nobody").pw_uid)
    name = executable.name
    for selector in (
        Selector(name=name),
        Selector(exe=str(executable)),
        Selector(cmdline=r"a-sleep-.* 12345 6789\d$"),
        Selector(name=name, user="nobody"),
        Selector(name=name, user=uid),
        Selector(name=name, exe=str(executable), cmdline="12345", user="nobody"),
    ):
        assert pids_of(selector) == [pid], selector
    for selector in (
        Selector(name=name[:15]),
        Selector(name="sleep", exe=str(executable)),
        Selector(exe=name),
        Selector(name=name, cmdline="^12345"),
        Selector(name=name, user="root"),
        Selector(name=name, user="4294967294"),
    ):
        assert pids_of(selector) == [], selector


def test_an_executable_is_found_through_a_symbolic_link(copy_of_sleep: tuple[int, Path], tmp_path: Path) -> None:
    pid, executable = copy_of_sleep
    (tmp_path / "link").symlink_to(executable)
    assert pids_of(Selector(exe=str(tmp_path / "link"))) == [pid]


def test_an_executable_that_was_replaced_is_still_found(copy_of_sleep: tuple[int, Path]) -> None:
    """As after an upgrade: the running process's file is deleted."""
    pid, executable = copy_of_sleep
    executable.unlink()
    assert pids_of(Selector(exe=str(executable))) == [pid]


def test_zombies_and_kernel_threads_are_not_matched_by_everything() -> None:
    with zombie() as pid:
        matched = pids_of(Selector(cmdline=""".*"""))
        assert pid not in matched
        assert 2 not in matched
        assert os.getpid() in matched
        assert pid not in pids_of(Selector(name="true"))


def test_bad_selectors_are_refused() -> None:
    for selector, words in (
        (Selector(cmdline="("), "not a regular expression"),
        (Selector(cmdline="(" * 9000), "not a regular expression"),
        (Selector(cmdline="a{99999999999}"), "not a regular expression"),
        (Selector(), "nothing is selected"),
        (Selector(name="sleep", cmdline=""), "cmdline is empty"),
    ):
        with refused("bad_selector") as caught:
            select(selector)
        assert words in str(caught[0])


def test_without_psutil_the_package_and_the_interpreter_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with refused("missing_dependency") as caught:
        select(Selector(name="sleep"))
    assert "python3-psutil" in str(caught[0])
    assert sys.executable in str(caught[0])
