# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests and benchmarks need of bpf(2): pinned objects, entries, run-time statistics; and of libbpf: objects.

Both by ctypes, so that neither depends on the binding that the collection ships.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NUMBERS = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
_libc = ctypes.CDLL(None, use_errno=True)

_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 1, 2, 3
_OBJECT_GET, _PROGRAM_ATTACH, _PROGRAM_DETACH, _TEST_RUN = 7, 8, 9, 10
_PROGRAM_BY_ID, _OBJECT_INFO, _ENABLE_STATS = 13, 15, 32
_LINK_CREATE, _ITER_CREATE, _TRACE_ITER = 28, 33, 28
EGRESS, SOCK_OPS = 1, 3  # BPF_CGROUP_INET_EGRESS, BPF_CGROUP_SOCK_OPS
_ALLOW_MULTI = 2


def _call(command: int, attributes: bytes) -> int:
    return _called(command, attributes)[0]


def _called(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The result, and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = int(_libc.syscall(_NUMBERS[platform.machine()], command, buffer, 128))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result, buffer.raw


def open_pin(path: str) -> int:
    """Opens a pinned program or map; the caller closes the descriptor."""
    name = ctypes.create_string_buffer(path.encode())
    return _call(_OBJECT_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))


class Map:
    """A map, pinned or by a descriptor that is its own from then on; its keys and values as bytes."""

    def __init__(self, place: str | int, value_size: int) -> None:
        self.descriptor = open_pin(place) if isinstance(place, str) else place
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


def iterate(program: int, map_descriptor: int) -> None:
    """Runs an iterator over a map, once for each of its entries."""
    over = ctypes.create_string_buffer(struct.pack("=I", map_descriptor), 4)
    link = _call(_LINK_CREATE, struct.pack("=IIIIQI", program, 0, _TRACE_ITER, 0, ctypes.addressof(over), 4))
    try:
        with open(_call(_ITER_CREATE, struct.pack("=II", link, 0)), "rb") as results:
            results.read()
    finally:
        os.close(link)


def test_run(program: int, repeat: int) -> int:
    """Nanoseconds that one run of a program takes on a packet of this process, an IPv4 header."""
    packet = ctypes.create_string_buffer(bytes(12) + b"\x08\x00\x45" + bytes(63), 78)
    attributes = struct.pack("=IIIIQQII", program, 0, 78, 0, ctypes.addressof(packet), 0, repeat, 0)
    return int(struct.unpack_from("=I", _called(_TEST_RUN, attributes)[1], 36)[0])


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


# ---- objects


class Verified(NamedTuple):
    """What a program came to on this kernel: instructions that the verifier walked, and bytes of its own and the
    processor's code.
    """

    instructions: int
    xlated: int
    jited: int


_LOG_BYTES = 1 << 20
_STATISTICS = 4  # BPF_LOG_STATS, kernel 5.2
_SAY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


@functools.cache
def _libbpf() -> ctypes.CDLL:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    for name in (
        "bpf_object__open_file",
        "bpf_object__next_program",
        "bpf_object__find_program_by_name",
        "bpf_object__find_map_by_name",
        "bpf_program__name",
        "libbpf_set_print",
    ):
        getattr(library, name).restype = ctypes.c_void_p
    return library


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """What libbpf says meanwhile. Who else uses it in this process gets his own print function back."""
    lines: list[str] = []
    buffer = ctypes.create_string_buffer(_LOG_BYTES)

    def say(level: int, form: int, arguments: int) -> int:
        if level < 2:  # not LIBBPF_DEBUG
            _libc.vsnprintf(buffer, ctypes.c_size_t(_LOG_BYTES), ctypes.c_void_p(form), ctypes.c_void_p(arguments))
            lines.extend(buffer.value.decode("utf-8", "replace").splitlines())
        return 0

    ours = _SAY(say)
    theirs = _libbpf().libbpf_set_print(ours)
    try:
        yield lines
    finally:
        _libbpf().libbpf_set_print(ctypes.c_void_p(theirs))


class Object:
    """A BPF object. Nothing of it is pinned. OSError, with libbpf's words, where it cannot be opened or loaded."""

    def __init__(self, path: str | Path) -> None:
        self._path, self._log = str(path), ctypes.create_string_buffer(1)
        with _said() as lines:
            opened = _libbpf().bpf_object__open_file(os.fsencode(path), None)
        if not opened:
            raise OSError(ctypes.get_errno(), "\n".join(lines), self._path)
        self._object = ctypes.c_void_p(opened)

    @property
    def programs(self) -> list[str]:
        """The names of its programs, loaded or not."""
        return [name for name, _program in self._programs()]

    def load(self, *programs: str, log_level: int = 0) -> None:
        """Loads these programs and all maps. With a log level, what the verifier says is in `log`."""
        for name, program in self._programs():
            if name not in programs:
                _libbpf().bpf_program__set_autoload(program, ctypes.c_bool(False))
            elif log_level:
                self._log = ctypes.create_string_buffer(_LOG_BYTES)
                _libbpf().bpf_program__set_log_buf(program, self._log, ctypes.c_size_t(_LOG_BYTES))
                _libbpf().bpf_program__set_log_level(program, log_level)
        with _said() as lines:
            error = -_libbpf().bpf_object__load(self._object)
        if error:
            raise OSError(error, "\n".join(lines[-25:]), self._path)

    def fill(self, section: str, data: bytes) -> None:
        """Sets what a section of constants begins with, before it is loaded."""
        found = ctypes.c_void_p(_libbpf().bpf_object__find_map_by_name(self._object, section.encode()))
        error = -_libbpf().bpf_map__set_initial_value(found, data, ctypes.c_size_t(len(data)))
        if error:
            raise OSError(error, os.strerror(error), section)

    @property
    def log(self) -> str:
        """The verifier's, where a level was asked for."""
        return self._log.value.decode("utf-8", "replace")

    def program(self, name: str) -> int:
        """A descriptor of one of its programs, which the caller closes; it outlives the object."""
        return self._descriptor("program", name)

    def map(self, name: str, value_size: int) -> Map:
        """One of its maps, which the caller closes; it outlives the object."""
        return Map(self._descriptor("map", name), value_size)

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        _libbpf().bpf_object__close(self._object)

    def _descriptor(self, kind: str, name: str) -> int:
        found = getattr(_libbpf(), f"bpf_object__find_{kind}_by_name")(self._object, name.encode())
        if not found:
            raise KeyError(f"{self._path} has no {kind} {name}")
        return os.dup(getattr(_libbpf(), f"bpf_{kind}__fd")(ctypes.c_void_p(found)))

    def _programs(self) -> Iterator[tuple[str, ctypes.c_void_p]]:
        program = None
        while program := _libbpf().bpf_object__next_program(self._object, ctypes.c_void_p(program)):
            name = ctypes.string_at(_libbpf().bpf_program__name(ctypes.c_void_p(program))).decode()
            yield name, ctypes.c_void_p(program)


def verified(path: str | Path) -> dict[str, Verified | None]:
    """What each program of an object came to on this kernel; None for one that it refuses."""
    found: dict[str, Verified | None] = {}
    with Object(path) as opened:
        names = opened.programs
    for name in names:
        with Object(path) as opened:
            try:
                opened.load(name, log_level=_STATISTICS)
            except OSError:
                found[name] = None
                continue
            (instructions,) = re.findall(r"processed (\d+) insns", opened.log)
            program = opened.program(name)
        info = ctypes.create_string_buffer(256)
        _call(_OBJECT_INFO, struct.pack("=IIQ", program, 256, ctypes.addressof(info)))
        os.close(program)
        jited, xlated = struct.unpack_from("=II", info, 16)
        found[name] = Verified(int(instructions), xlated, jited)
    return found
