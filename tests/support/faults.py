# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that is killed, interrupted or refused by the kernel just before a step that would change the host.

A step is a system call or a call of libbpf that outlasts the process that makes it: between two steps in a row nothing
changes, so to be killed before each one is to be killed between any two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import traceback
from collections.abc import Iterator
from enum import Enum
from typing import Any, Callable
from unittest import mock

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import apart
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import (
    KernelError,
    Libbpf,
    mount_bpffs,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import settle

_SYSTEM_CALLS = ("mkdir", "rmdir", "rename", "replace", "unlink", "symlink", "write", "setxattr")
# These can be refused, but make no difference to whoever comes later: a file that is not in its place yet, the lock.
_MERELY_REFUSED = ("pwrite", "ftruncate", "fsync", "fchmod", "fchown", "chmod", "chown")
_CALLS_OF_LIBBPF = (
    "object__load",
    "obj_pin",
    "link_create",
    "link_update",
    "link_detach",
    "update_elem",
    "delete_elem",
    "test_run_opts",
)

Work = Callable[[], "dict[str, Any]"]
UNTOUCHED = "untouched"


class Fault(Enum):
    KILLED = "killed"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"


class End(Enum):
    """How the work ended."""

    DONE = "done"
    KILLED = "killed"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


def run_with(fault: Fault, before: int, work: Work) -> tuple[End, str]:
    """Runs a module's work in a child process, with a fault before its step of that number, which begin with 0.

    The text is the error's, or what the work warned of although it was done; UNTOUCHED where there are fewer steps.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _child(fault, before, work, writing)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        kind, _newline, text = pipe.read().partition("\n")
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return End.KILLED, ""
    assert status == 0, f"step {before}, {fault.value}: the work ended with an error that no user should see (above)"
    return End(kind), text


def _child(fault: Fault, before: int, work: Work, writing: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = _Steps(fault, before)
    with steps.counted():
        try:
            result = work()
            end, text = End.DONE, "; ".join(result["warnings"]) if steps.happened else UNTOUCHED
        except KeyboardInterrupt:
            end, text = End.INTERRUPTED, ""
        except LimiterError as error:
            end, text = End.FAILED, str(error)
    with open(writing, "w", encoding="utf-8") as pipe:
        pipe.write(f"{end.value}\n{text}")
    os._exit(0)


def _run_here(work: Callable[[apart.Tell], None], *_arguments: object, **_options: object) -> apart.Outcome:
    said: list[Any] = []
    try:
        work(said.append)
    except OSError as error:
        return apart.Outcome(said, False, str(error))
    return apart.Outcome(said, True)


class _Steps:
    def __init__(self, fault: Fault, before: int) -> None:
        self.fault, self.left, self.happened = fault, before, False

    def _next(self) -> bool:
        """Whether this step is the one that is to be refused."""
        self.left -= 1
        if self.left != -1:
            return False
        self.happened = True
        if self.fault is Fault.KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault is Fault.INTERRUPTED:
            os.kill(os.getpid(), signal.SIGINT)
        return self.fault is Fault.REFUSED

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in (*_SYSTEM_CALLS, *(_MERELY_REFUSED if self.fault is Fault.REFUSED else ())):
                stack.enter_context(mock.patch.object(os, name, self._system_call(getattr(os, name))))
            stack.enter_context(mock.patch.object(os, "open", self._open(os.open)))
            # Steps of a child count as the task's own.
            stack.enter_context(mock.patch.object(apart, "run", _run_here))
            stack.enter_context(mock.patch.object(pins, "mount_bpffs", self._mount(mount_bpffs)))
            for name in ("_run", "_release"):  # what changes sockets
                stack.enter_context(mock.patch.object(settle, name, self._system_call(getattr(settle, name))))
            for name in ("call", "try_call"):
                stack.enter_context(mock.patch.object(Libbpf, name, self._libbpf(name, getattr(Libbpf, name))))
            yield

    def _system_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._next():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **options)

        return call

    def _open(self, function: Callable[..., int]) -> Callable[..., int]:
        counted = self._system_call(function)

        def call(path: str, flags: int, *arguments: Any, **options: Any) -> int:
            return (counted if flags & os.O_CREAT else function)(path, flags, *arguments, **options)

        return call

    def _mount(self, function: Callable[[str], None]) -> Callable[[str], None]:
        def call(path: str) -> None:
            if self._next():
                raise KernelError("bpffs cannot be mounted", errno.ENOSPC)
            function(path)

        return call

    def _libbpf(self, kind: str, function: Callable[..., int]) -> Callable[..., int]:
        def call(libbpf: Libbpf, name: str, *arguments: Any) -> int:
            if name.endswith(_CALLS_OF_LIBBPF) and self._next():
                if kind == "call":
                    raise KernelError(name, errno.ENOSPC)
                return -errno.ENOSPC
            return function(libbpf, name, *arguments)

        return call
