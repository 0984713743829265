# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces as tests run them, and what is on the hook meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info

UNTRACED = pins.path(catalog.UNTRACED)


def trace(**options: Any) -> dict[str, Any]:
    return limiter.task("speed_limit_trace", **options)


def attached() -> dict[str, Any]:
    """What of ours is on the hook."""
    (found,) = [one for one in info(gather=["hook"])["hook"] if one["ours"]]
    return {"id": found["id"], "name": found["name"]}


def tag(fd: int) -> str:
    return dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())["prog_tag"]


def loaded_here() -> set[str]:
    """The names of the programs that this process has open."""
    texts = [Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in os.listdir("/proc/self/fd") if is_program(fd)]
    ids = {number for text in texts for number in re.findall(r"^prog_id:\s+(\d+)$", text, re.MULTILINE)}
    shown = [subprocess.check_output(["bpftool", "-j", "prog", "show", "id", number]) for number in ids]
    return {json.loads(text)["name"] for text in shown}


def is_program(fd: str) -> bool:
    with contextlib.suppress(OSError):
        return "bpf-prog" in os.readlink(f"/proc/self/fd/{fd}")
    return False


class Running:
    """A trace in a process of its own, which is in place when this begins."""

    def __init__(self, **options: Any) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(reading)
                os.write(writing, json.dumps(trace(**{"duration": 60.0, **options})).encode())
            finally:
                os._exit(0)
        os.close(writing)
        self._reading = reading
        until(lambda: os.path.exists(UNTRACED) and attached()["name"] == catalog.TRACE.name)

    def result(self) -> dict[str, Any]:
        with open(self._reading, encoding="utf-8") as pipe:
            found: dict[str, Any] = json.load(pipe)
        os.waitpid(self.pid, 0)
        return found

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reading)
