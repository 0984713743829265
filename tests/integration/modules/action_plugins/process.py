# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes to be limited: started, in any cgroup and with any number, and ended."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

_CLONE3 = 435  # on every architecture


class ActionModule(ActionBase):
    """``end`` (a pid) ends that process. Otherwise one is started, and its ``pid`` returned: ``command`` (a list), in
    the directory ``cgroup``, as ``user``, with the number ``pid``; ``children`` are waited for and returned.
    """

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = self._task.args
        if "end" in args:
            end(int(args["end"]))
            return {"changed": True}
        command = [str(word) for word in args.get("command", ["sleep", "infinity"])]
        pid = start(command, args.get("cgroup"), args.get("user"), int(args.get("pid", 0)))
        until(lambda: len(children(pid)) == int(args.get("children", 0)))
        return {"changed": True, "pid": pid, "children": children(pid)}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def start(command: list[str], cgroup: str | None, user: str | None, number: int) -> int:
    # Born where it belongs: what is moved later may be seen half way.
    uid = pwd.getpwnam(user).pw_uid if user else 0
    parent = os.getpid()
    pid = clone(number) if number else os.fork()
    if pid == 0:
        try:
            if cgroup:
                Path(cgroup, "cgroup.procs").write_text("0", encoding="ascii")
            os.setsid()
            for descriptor in range(3):
                os.dup2(os.open("/dev/null", os.O_RDWR), descriptor)
            os.setuid(uid)
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() not in (b"", Path(f"/proc/{parent}/cmdline").read_bytes()))
    return pid


def clone(number: int) -> int:
    """fork(), but the child gets this number."""
    wanted = (ctypes.c_int * 1)(number)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
    arguments = (ctypes.c_uint64 * 10)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
    libc = ctypes.CDLL(None, use_errno=True)
    pid: int = libc.syscall(_CLONE3, arguments, ctypes.sizeof(arguments))
    if pid < 0:
        raise OSError(ctypes.get_errno(), f"clone3 with the pid {number}")
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition that was waited for did not come")
        time.sleep(0.01)
