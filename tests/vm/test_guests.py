# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that do not do what they should: one line says so, the run fails, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.tests.vm import fetch, machine, matrix, report
from ansible_collections.speed_limiter.ebpf.tests.vm.fakes import RUN, halting, harness, keep

NAME = "none-0.0"


@pytest.fixture
def kernel(tmp_path: Path) -> fetch.Kernel:
    """One that halts the processor at once."""
    keep(tmp_path, NAME, halting())
    found = fetch.read(tmp_path / NAME)
    assert found is not None
    return found


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in virtme-ng's place."""

    def put(script: str) -> None:
        path = tmp_path / "vng"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setattr(machine, "VNG", path)

    return put


def running(word: str) -> list[str]:
    """The processes that have a word in their command line."""
    found = subprocess.run(["pgrep", "-a", "-f", "--", word], capture_output=True, text=True, check=False).stdout
    return [line for line in found.splitlines() if int(line.split()[0]) != os.getpid()]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.1)


def test_a_file_that_is_no_kernel(tmp_path: Path) -> None:
    keep(tmp_path, NAME, b"no kernel" * 1000)
    status, failures = harness(tmp_path, "none:0.0")
    assert status == 1
    booted = [line for line in failures if f"{NAME}: the guest did not boot" in line]
    assert len(booted) == 2  # for what measures, and for what does not
    assert all("console.log" in line for line in booted)


def test_a_kernel_that_never_comes_up(kernel: fetch.Kernel, tmp_path: Path) -> None:
    guest = machine.Guest(kernel, tmp_path / "run", kvm=False)
    outcome = guest.run("true", [], seconds=6)
    assert not outcome.up
    assert "the guest hung" in outcome.wrong
    assert "it did not boot" in outcome.wrong
    assert str(guest.console) in outcome.wrong
    assert running(str(tmp_path)) == []


def test_a_guest_that_is_just_starting_when_all_are_ended(
    kernel: fetch.Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ending", lambda: True)
    outcome = machine.Guest(kernel, tmp_path / "run", kvm=False).run("true", [], seconds=600)
    assert "ended before its time" in outcome.wrong
    assert running(str(tmp_path)) == []


def test_a_guest_that_hangs_in_a_step(
    kernel: fetch.Kernel, tmp_path: Path, stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub('echo "@up 0.0.1"; echo "@begin object:1"; echo "half way"; sleep 1000.5')
    monkeypatch.setattr(machine, "KVM", tmp_path / "none")
    monkeypatch.setattr(matrix, "STEPS", {"object": (1, 1), "playbook": (1, 1)})
    monkeypatch.setattr(machine, "GRACE", 1)
    results = matrix.run([("none", "0.0")], ["object", "playbook"], True, tmp_path)
    steps = results[NAME]["steps"]
    assert "the guest hung" in steps["object"]["wrong"]
    assert "the last it said was: half way" in steps["object"]["wrong"]
    assert steps["playbook"]["wrong"] == steps["object"]["wrong"]
    assert not report.passed(results, ["object", "playbook"])
    shown = report.table(results, ["object", "playbook"])
    assert shown.count("FAILED none-0.0") == 1
    assert running("sleep 1000.5") == []


def test_a_step_that_ends_with_a_failure(
    kernel: fetch.Kernel, tmp_path: Path, stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its result says; and one without a result."""
    place = tmp_path / "run" / NAME
    stub(
        f"""echo "@up 0.0.1"; echo '{{"wrong": null}}' | tee {place}/object.json {place}/tests.json >/dev/null
        for step in "object 1" "playbook 0" "tests 0"; do
            echo "@begin ${{step% *}}:1"; echo "@@ -1 +1 @@"; echo "@end something:1 1"
            echo "@end ${{step% *}}:1 ${{step#* }}"
        done"""
    )
    monkeypatch.setattr(machine, "KVM", tmp_path / "none")
    kept: list[matrix.Results] = []
    results = matrix.run([("none", "0.0")], ["object", "playbook", "tests"], True, tmp_path, keep=kept.append)
    assert kept == [results]  # as soon as the guest has ended, for who interrupts the next
    assert "object ended with 1" in str(report.why(results[NAME], "object"))
    assert "playbook left no result" in str(report.why(results[NAME], "playbook"))
    assert report.why(results[NAME], "tests") is None


def test_a_step_that_is_not_run_is_a_failure() -> None:
    results = {NAME: {"wrong": None, "release": "0.0.1", "steps": {"object": {"wrong": None, "seconds": 1}}}}
    assert report.passed(results, ["object"])
    assert not report.passed(results, ["object", "tests"])
    assert "FAILED none-0.0: it was not run" in report.table(results, ["object", "tests"])


def test_kvm_that_is_there_and_fails(
    kernel: fetch.Kernel, tmp_path: Path, stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub('case "$*" in *--disable-kvm*) ;; *) echo "error: failed to set MSR 0x40000021" >&2; exit 134 ;; esac')
    monkeypatch.setattr(machine, "KVM", Path("/dev/null"))
    works, line = machine.find_accelerator(kernel, tmp_path / "kvm")
    assert not works
    assert "failed to set MSR" in line
    assert "without KVM" in line


def test_kvm_that_is_there_and_hangs(
    kernel: fetch.Kernel, tmp_path: Path, stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("sleep 1001")
    monkeypatch.setattr(machine, "KVM", Path("/dev/null"))
    monkeypatch.setattr(machine, "KVM_TRIAL", 1)
    works, line = machine.find_accelerator(kernel, tmp_path / "kvm")
    assert not works
    assert "without KVM" in line
    assert running("sleep 1001") == []


def test_kvm_that_works(
    kernel: fetch.Kernel, tmp_path: Path, stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub('case "$*" in *--disable-kvm*) exit 1 ;; esac')
    monkeypatch.setattr(machine, "KVM", Path("/dev/null"))
    assert machine.find_accelerator(kernel, tmp_path / "kvm")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running(kernel: fetch.Kernel, tmp_path: Path, number: signal.Signals) -> None:
    # A shell that runs these tests in the background has SIGINT ignored, and so would be this.
    command = ["env", "--default-signal=INT", sys.executable, str(RUN), "--quick", "--cache", str(tmp_path), "none:0.0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            # A trial of KVM or, after it, the guest itself.
            until(lambda: any("qemu" in line for line in running(str(kernel.image))))
            process.send_signal(number)
            errors = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in errors
    until(lambda: running(str(tmp_path)) == [])
