# SPDX-License-Identifier: GPL-3.0-or-later
"""The bpf(2) calls that tests and benchmarks need, without a library: pinned objects, entries, run-time statistics."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import NamedTuple

_NUMBERS = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
_libc = ctypes.CDLL(None, use_errno=True)

_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 1, 2, 3
_OBJECT_GET, _PROGRAM_ATTACH, _PROGRAM_DETACH, _PROGRAM_BY_ID, _OBJECT_INFO, _ENABLE_STATS = 7, 8, 9, 13, 15, 32
EGRESS, SOCK_OPS = 1, 3  # BPF_CGROUP_INET_EGRESS, BPF_CGROUP_SOCK_OPS
_ALLOW_MULTI = 2


def _call(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = int(_libc.syscall(_NUMBERS[platform.machine()], command, buffer, 128))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def open_pin(path: str) -> int:
    """Opens a pinned program or map; the caller closes the descriptor."""
    name = ctypes.create_string_buffer(path.encode())
    return _call(_OBJECT_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))


class Map:
    """A pinned map, its keys and values as bytes."""

    def __init__(self, path: str, value_size: int) -> None:
        self.descriptor = open_pin(path)
        self.value_size = value_size

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._element(_MAP_UPDATE, key, ctypes.create_string_buffer(value, self.value_size))

    def __getitem__(self, key: bytes) -> bytes:
        value = ctypes.create_string_buffer(self.value_size)
        self._element(_MAP_LOOKUP, key, value)
        return value.raw

    def __delitem__(self, key: bytes) -> None:
        self._element(_MAP_DELETE, key, None)

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> None:
        name = ctypes.create_string_buffer(key, len(key))
        address = ctypes.addressof(value) if value else 0
        _call(command, struct.pack("=IIQQQ", self.descriptor, 0, ctypes.addressof(name), address, 0))

    def close(self) -> None:
        os.close(self.descriptor)


def attach(cgroup: str, program: int, hook: int = EGRESS, flags: int = _ALLOW_MULTI) -> None:
    """Attaches a program to a hook of a cgroup, beside any other; with ``flags`` 0 for itself alone."""
    directory = os.open(cgroup, os.O_RDONLY)
    try:
        _call(_PROGRAM_ATTACH, struct.pack("=IIII", directory, program, hook, flags))
    finally:
        os.close(directory)


def detach(cgroup: str, program: int, hook: int = EGRESS) -> None:
    """Undoes attach()."""
    directory = os.open(cgroup, os.O_RDONLY)
    try:
        _call(_PROGRAM_DETACH, struct.pack("=IIII", directory, program, hook, 0))
    finally:
        os.close(directory)


def program_by_id(program_id: int) -> int:
    """Opens a program; the caller closes the descriptor."""
    return _call(_PROGRAM_BY_ID, struct.pack("=II", program_id, 0))


class Cost(NamedTuple):
    """What a program has cost since it was loaded, while statistics were on."""

    nanoseconds: int
    runs: int


def cost(program: int) -> Cost:
    """Run-time statistics of a program; they stand still unless enable_statistics() is in force."""
    info = ctypes.create_string_buffer(256)
    _call(_OBJECT_INFO, struct.pack("=IIQ", program, 256, ctypes.addressof(info)))
    return Cost(*struct.unpack_from("=QQ", info, 192))


def enable_statistics() -> int:
    """Kernel 5.8: programs are timed for as long as the returned descriptor is open."""
    return _call(_ENABLE_STATS, struct.pack("=I", 0))
