# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes to be looked at and moved, and a cgroup hierarchy that is left as it was found."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from .slow import SLOW

DEADLINE = 60.0 if SLOW else 20.0  # seconds after which anything here counts as hanging

WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
# One child and one grandchild; all end when the standard input is closed. Prints their pids.
FAMILY = """
import os, sys
read, write = os.pipe()
if os.fork() == 0:
    os.close(read)
    if os.fork() == 0:
        os.write(write, b"%d %d" % (os.getppid(), os.getpid()))
    sys.stdin.read()
    os._exit(0)
os.close(write)
print("ready", os.read(read, 100).decode(), flush=True)
sys.stdin.read()
"""
# The first thread ends, another one lives on.
HEADLESS = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
thread = threading.Thread(target=lambda: sys.stdin.read())
thread.start()
print("ready", thread.native_id, flush=True)
libc.pthread_exit(None)
"""


@contextlib.contextmanager
def refused(kind: str, *words: str) -> Iterator[list[LimiterError]]:
    """What is inside must be refused with that kind of error, which says these words and is then in the list."""
    caught: list[LimiterError] = []
    with pytest.raises(LimiterError) as raised:
        yield caught
    assert raised.value.kind == kind, raised.value
    for word in words:
        assert word in str(raised.value), raised.value
    caught.append(raised.value)


class Child:
    """A Python program that has said that it is ready; ``words`` is what else it said then."""

    def __init__(self, code: str, *arguments: str, **options: object) -> None:
        command = [str(options.pop("executable", sys.executable)), "-c", code, *arguments]
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        self.pid: int = self.process.pid
        ready = select.select([self.process.stdout], [], [], DEADLINE)[0]
        line = self.process.stdout.readline() if ready else ""
        if not line.startswith("ready"):
            self.process.kill()
            raise RuntimeError(f"not ready: {line!r}")
        self.words: list[str] = line.split()[1:]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def child(code: str = WAIT, *arguments: str, **options: object) -> Iterator[Child]:
    started = Child(code, *arguments, **options)
    try:
        yield started
    finally:
        started.end()


@contextlib.contextmanager
def zombie() -> Iterator[int]:
    process = subprocess.Popen(["true"])
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    try:
        yield process.pid
    finally:
        process.wait()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition that was waited for did not come")
        time.sleep(0.01)


@contextlib.contextmanager
def sandbox_cgroups() -> Iterator[Cgroups]:
    """This sandbox's hierarchy; whatever the test makes in it is removed, and its processes are moved to the root."""
    if os.geteuid() != 0 or not Path("/run/sandbox").is_dir():
        pytest.fail("kernel tests need root: run them as `tests/sandbox python -m pytest tests/kernel`", pytrace=False)
    cgroups = Cgroups.find()
    try:
        yield cgroups
    finally:
        for directory, _below, _files in os.walk(cgroups.mount, topdown=False):
            if directory != cgroups.mount:
                until(lambda directory=directory: _removed(Path(directory), Path(cgroups.mount)))  # type: ignore[misc]
        for enabled in Path(cgroups.mount, "cgroup.subtree_control").read_text().split():
            Path(cgroups.mount, "cgroup.subtree_control").write_text(f"-{enabled}")


def _removed(directory: Path, root: Path) -> bool:
    try:
        for thread in (directory / "cgroup.threads").read_text().split():
            (root / "cgroup.procs").write_text(thread)
        directory.rmdir()
    except OSError:
        return not directory.exists()
    return True
