# SPDX-License-Identifier: GPL-3.0-or-later
"""How the command limiter comes to a host and leaves it: whole or not at all, and nothing of others goes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules import command as module
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.generated.version import VERSION
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import command
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child, refused
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with

PACKAGE = Path(command.DIRECTORY)


def task(state: str = "present", check: bool = False) -> dict[str, Any]:
    return limiter.task("speed_limit_command", check=check, state=state)


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    with contextlib.suppress(OSError):
        PACKAGE.rmdir()  # other tests built an object in it
    assert seen() == {}
    yield
    task("absent")
    assert seen() == {}
    limiter.purge("all")


def seen() -> dict[str, Any]:
    """Every file of the command, with its mode and size; the name of the package's directory does not count."""
    found = {}
    link = PACKAGE / "python"
    for top in (Path(os.path.realpath(link)), *map(Path, (command.STARTER, command.MANUAL, command.COMPLETION))):
        for path in [*([top] if top.exists() else []), *(top.rglob("*") if top.is_dir() else ())]:
            status = path.stat()
            assert (status.st_uid, status.st_mode & 0o022) == (0, 0), path
            name = str(path).replace(str(Path(os.path.realpath(link))), "package")
            found[name] = (oct(status.st_mode), path.read_bytes() if path.is_file() else b"")
    return {name: entry for name, entry in found.items() if ".pyc" not in name}


def says(*words: str) -> str:
    answer = subprocess.run([command.STARTER, *words], capture_output=True, text=True, check=False, cwd="/")
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
    return answer.stdout


def packages() -> list[str]:
    return sorted(path.name for path in PACKAGE.glob("python-*")) if PACKAGE.is_dir() else []


def test_it_is_installed_once_and_removed_once() -> None:
    would = task(check=True)
    assert would["changed"] and seen() == {} and not PACKAGE.exists()
    made = task()
    assert {**made, "warnings": []} == would and made["command"]["path"] == command.STARTER
    assert made["diff"]["before"] == "limiter: absent\n" and made["command"]["version"] == VERSION
    assert says("--version").startswith(f"limiter {VERSION} ")
    before = (seen(), packages())
    again = task()
    assert not again["changed"] and (seen(), packages()) == before
    assert again["diff"]["before"] == again["diff"]["after"] == made["diff"]["after"]
    assert task("absent", check=True)["changed"] and (seen(), packages()) == before
    gone = task("absent")
    assert gone["changed"] and gone["command"] is None and not PACKAGE.exists() and seen() == {}
    assert not task("absent")["changed"]


def test_all_that_it_can_import_is_there_and_needs_no_ansible() -> None:
    task()
    names = [
        ".".join(path.relative_to(PACKAGE / "python").with_suffix("").parts)
        for path in sorted((PACKAGE / "python").resolve().rglob("*.py"))
        if path.name != "__init__.py"
        for path in [PACKAGE / "python" / path.relative_to((PACKAGE / "python").resolve())]
    ]
    assert "speed_limiter.front.cli.main" in names and "speed_limiter.generated.bpf_source" in names
    script = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('ansible', 'ansible_collections')))\n"
        f"sys.path.insert(0, {str(PACKAGE / 'python')!r})\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)


def small(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Instead of the whole package: a command that only says this."""
    files = ["__init__.py", "front/__init__.py", "front/cli/__init__.py", "generated/__init__.py"]
    sources = {
        **dict.fromkeys(files, ""),
        "front/cli/main.py": f"def main():\n    print({text!r})\n    return 0\n",
        "generated/version.py": f"VERSION = {text!r}\n",
    }
    monkeypatch.setattr(module, "_sources", lambda: sources)


def test_another_version_takes_its_place_and_the_last_one_stays_for_those_that_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small(monkeypatch, "first")
    task()
    first = packages()
    begun = Path(command.STARTER).read_text().partition("try:")[0]
    with child(
        f"{begun}\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "from speed_limiter.generated.version import VERSION\nprint(VERSION, flush=True)\n"
    ) as running:
        small(monkeypatch, "second")
        changed = task()
        assert changed["changed"] and changed["diff"]["before"] != changed["diff"]["after"]
        assert says() == "second\n" and set(first) < set(packages())
        assert running.process.communicate("go on\n")[0] == "first\n"
    small(monkeypatch, "third")
    task()
    assert says() == "third\n" and len(packages()) == 2 and not set(first) & set(packages())


def test_a_command_of_another_version_than_who_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def boot() -> dict[str, Any]:
        found: dict[str, Any] = limiter.info(gather=["boot"])["boot"]
        return found

    assert (boot()["version"], boot()["problems"]) == (None, [])
    task()
    assert (boot()["version"], boot()["problems"]) == (VERSION, [])
    small(monkeypatch, "0.0.1")
    task()
    (problem,) = boot()["problems"]
    assert boot()["version"] == "0.0.1" and f"is of version 0.0.1, and who asks of {VERSION}: the role setup" in problem


CHANGES: dict[str, Callable[[], object]] = {
    "a file of the package": lambda: (PACKAGE / "python/speed_limiter/front/cli/main.py").write_text("x = 1\n"),
    "a file more in the package": lambda: (PACKAGE / "python/speed_limiter/more.py").write_text("x = 1\n"),
    "the link": (PACKAGE / "python").unlink,
    "the starter": Path(command.STARTER).unlink,
    "the manual": lambda: Path(command.MANUAL).write_text(f"# {command.MARK}\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_somebody_changed_is_made_anew(change: Callable[[], object]) -> None:
    task()
    wanted = seen()
    change()
    assert task(check=True)["changed"] and task()["changed"]
    assert seen() == wanted and says("--version") and not task()["changed"]


@pytest.mark.parametrize("path", [command.STARTER, command.MANUAL, command.COMPLETION])
def test_what_others_made_is_in_the_way_and_stays(path: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(b"\x7fELF\xff another program")
    try:
        for check in (True, False):
            with refused("foreign_command", path, "this collection did not make it", "setup_command=false"):
                task(check=check)
            assert not PACKAGE.exists()
        assert not task("absent")["changed"]
        assert Path(path).read_bytes() == b"\x7fELF\xff another program"
    finally:
        Path(path).unlink()


def test_what_a_killed_run_had_not_finished_goes_too() -> None:
    unfinished = Path(f"{command.STARTER}.new")
    unfinished.touch()
    assert task("absent", check=True)["changed"] and task("absent")["changed"] and not unfinished.exists()


def test_a_directory_that_others_may_write_to_is_refused() -> None:
    PACKAGE.mkdir()
    try:
        PACKAGE.chmod(0o777)
        for check in (True, False):
            with refused("unsafe_directory", command.DIRECTORY, "others may write to it"):
                task(check=check)
    finally:
        PACKAGE.rmdir()


def test_a_read_only_place_is_told_and_what_is_there_already_is_fine() -> None:
    def mounted(options: str) -> None:
        subprocess.run(["mount", "-o", options, command.DIRECTORY], check=True)

    PACKAGE.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=0755", "tmpfs", command.DIRECTORY], check=True)
    try:
        for check in (True, False):
            with refused("cannot_write", command.DIRECTORY, "EROFS", "where the host's image is built"):
                task(check=check)
        assert not Path(command.STARTER).exists()
        mounted("remount,rw")
        task()
        mounted("remount,ro")
        assert not task()["changed"] and says("--version")
        with refused("cannot_write"):
            task("absent")
        mounted("remount,rw")
        task("absent")
    finally:
        subprocess.run(["umount", command.DIRECTORY], check=True)
        PACKAGE.rmdir()


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.parametrize("fault", Fault)
def test_whoever_is_stopped_leaves_a_command_that_works(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, state: str
) -> None:
    for step in range(200):
        small(monkeypatch, "old")
        task()
        old = seen()
        small(monkeypatch, "new")
        end, text = run_with(fault, step, lambda: task(state))
        if state == "present" or Path(command.STARTER).exists():
            assert says() in ("old\n", "new\n")
            assert end is not End.DONE or says() == "new\n"
        task(state)
        assert not task(state)["changed"]
        assert seen() == {} if state == "absent" else seen() != old
        assert not any(Path(f"{path}.new").exists() for path in (command.STARTER, command.MANUAL, command.COMPLETION))
        assert len(packages()) <= (2 if state == "present" else 0)
        if (end, text) == (End.DONE, UNTOUCHED):
            assert step > 5
            return
    pytest.fail("more than 200 steps")
