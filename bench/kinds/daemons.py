# SPDX-License-Identifier: GPL-3.0-or-later
"""Real programs, in a namespace and a cgroup, and their ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.tests.support.children import DEADLINE, until

from ..shapers import Missing

_LISTENS = "0A"
_LOG = Path("/run/sandbox/programs.log")


def find(name: str, *elsewhere: str) -> str:
    """A program's path; `elsewhere`: patterns of other places, of which the last in order is taken."""
    for pattern in elsewhere:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return str(found[-1])
    if path := shutil.which(name):
        return path
    raise Missing(f"{name} (tools/setup --bench installs it)")


def start(
    namespace: str, *command: str, cgroup: Path | None = None, user: str = "", log: Path | None = None
) -> subprocess.Popen[str]:
    """A program that leads a process group of its own, and does not outlive this one."""

    def place() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0", encoding="ascii")

    as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else ()
    entered = ["nsenter", f"--net=/run/netns/{namespace}", *as_user, "setpriv", "--pdeathsig=KILL", *command]
    with open(log or _LOG, "a", encoding="utf-8") as errors:
        return subprocess.Popen(
            entered, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=place, start_new_session=True
        )


def end(process: subprocess.Popen[str], kindly: signal.Signals = signal.SIGTERM) -> str:
    """Ends it and all that it started; what it wrote."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, kindly)
    try:
        output, _errors = process.communicate(timeout=DEADLINE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return output


def result(process: subprocess.Popen[str], seconds: float) -> str:
    """What it wrote, once it has ended by itself."""
    try:
        output, _errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    if process.returncode:
        raise RuntimeError(f"failed: {process.args!r}: {output}{_LOG.read_text(encoding='utf-8')[-500:]}")
    return output


@contextmanager
def server(
    namespace: str,
    port: int,
    *command: str,
    cgroup: Path,
    user: str = "",
    log: Path | None = None,
    udp: bool = False,
    kindly: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[str]]:
    """While it runs; it listens when this is entered. `kindly`: what it takes for a wish that it ends at once."""
    process = start(namespace, *command, cgroup=cgroup, user=user, log=log)
    try:
        until(lambda: process.poll() is not None or _listens(process.pid, port, udp))
        if process.poll() is not None:
            raise RuntimeError(f"ended: {command!r}: {(log or _LOG).read_text(encoding='utf-8')[-500:]}")
        yield process
    finally:
        end(process, kindly)
        # Its children leave the cgroup a moment later.
        time.sleep(0.05)


def _listens(pid: int, port: int, udp: bool) -> bool:
    for table in ("udp", "udp6") if udp else ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and (udp or fields[3] == _LISTENS):
                return True
    return False
