# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that refuses one command of bpf(2), or another system call, as one that lacks it does, or as a filter of
seccomp's; or to let BPF look into its memory.

As a program it runs another one under such a filter: SYSTEM-CALL COMMAND ERRNO PROGRAM ARGUMENT..., with the command
"any" for all that the system call does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

BPF_PROG_LOAD, BPF_PROG_QUERY = 5, 16
PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the same everywhere but on alpha
KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}.get(os.uname().machine, 0)

_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280}  # of bpf(2), all little endian
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _FILTER = 22, 2


def refusing(command: int, number: int) -> list[str]:
    """The beginning of a command line: the rest runs on a kernel that answers with this errno."""
    return [sys.executable, str(Path(__file__)), str(_BPF[os.uname().machine]), str(command), str(number)]


def refusing_call(call: int, number: int) -> list[str]:
    """The same for a whole system call."""
    return [sys.executable, str(Path(__file__)), str(call), "any", str(number)]


@contextlib.contextmanager
def forbidding_looks() -> Iterator[None]:
    """A program that is loaded meanwhile, and one must be, is refused for its looks into the kernel's memory, and then
    loaded without them: as in lockdown, which only a virtual machine can try (test_lockdown.py).
    """
    # Not where this runs as a program.
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import shortcomings
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import (
        KernelError,
        Libbpf,
    )

    tried, call = 0, Libbpf.call

    def refuses_the_first(self: Libbpf, name: str, *arguments: Any) -> Any:
        nonlocal tried
        if name == "bpf_object__load":
            tried += 1
            if tried == 1:
                raise KernelError("the kernel did not load the BPF program", errno.EINVAL)
        return call(self, name, *arguments)

    forbids = mock.patch.object(shortcomings, "forbids_looking", return_value=True)
    with mock.patch.object(Libbpf, "call", refuses_the_first), forbids:
        yield
    assert tried == 2


def _refuse(call: int, command: int | None, number: int) -> None:
    first_argument = [] if command is None else [(_LOAD, 0, 0, 16), (_EQUAL, 0, 1, command)]
    program = [
        (_LOAD, 0, 0, 0),  # the system call's number
        (_EQUAL, 0, 1 + len(first_argument), call),
        *first_argument,
        (_RETURN, 0, 0, _REFUSE | number),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    described = struct.pack("@HP", len(program), ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _FILTER, described, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter is refused")


if __name__ == "__main__":
    _refuse(int(sys.argv[1]), None if sys.argv[2] == "any" else int(sys.argv[2]), int(sys.argv[3]))
    os.execvp(sys.argv[4], sys.argv[4:])
