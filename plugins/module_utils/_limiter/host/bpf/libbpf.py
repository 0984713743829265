# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libbpf and a few calls of libc, through cffi's ABI mode: nothing is compiled, and only _cffi_backend is imported.

A call of libbpf is named by its C name: ``libbpf.call("bpf_obj_pin", fd, path)``. A failure is a `KernelError`.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import os
import sys
import typing as t

from ...core.errors import LimiterError
from ...generated import libbpf_abi
from ..errnos import errno_text

# What could not be done when the call fails. Only these functions can be called.
_OPERATIONS = {
    "bpf_object__open_file": "the BPF object cannot be read",
    "bpf_object__load": "the kernel did not load the BPF program",
    "bpf_object__close": "",
    "bpf_object__next_map": "",
    "bpf_object__find_map_by_name": "the BPF object lacks a map",
    "bpf_object__find_program_by_name": "the BPF object lacks a program",
    "bpf_map__fd": "a map of the BPF object has no file descriptor",
    "bpf_map__type": "",
    "bpf_map__key_size": "",
    "bpf_map__value_size": "",
    "bpf_map__reuse_fd": "the pinned BPF map cannot be used again",
    "bpf_map__set_autocreate": "a map of the BPF object cannot be left out",
    "bpf_map__set_pin_path": "the BPF map's pin path cannot be set",
    "bpf_map__set_initial_value": "the BPF map cannot be given its contents",
    "bpf_program__fd": "the program of the BPF object has no file descriptor",
    "bpf_program__set_autoload": "a program of the BPF object cannot be left out",
    "bpf_program__type": "",
    "bpf_program__expected_attach_type": "",
    "bpf_obj_get": "a pinned BPF object cannot be opened",
    "bpf_obj_pin": "a BPF object cannot be pinned",
    "bpf_obj_get_info_by_fd": "a BPF object cannot be examined",
    "bpf_prog_get_fd_by_id": "a BPF program cannot be opened by its id",
    "bpf_prog_bind_map": "a BPF map cannot be bound to the program",
    "bpf_map_get_fd_by_id": "a BPF map cannot be opened by its id",
    "bpf_link_get_fd_by_id": "a BPF link cannot be opened by its id",
    "bpf_link_get_next_id": "the BPF links of this host cannot be listed",
    "bpf_prog_query": "the BPF programs of a cgroup cannot be listed",
    "bpf_link_create": "the BPF program cannot be attached",
    "bpf_link_update": "the attached BPF program cannot be replaced",
    "bpf_link_detach": "the BPF program cannot be detached",
    "bpf_raw_tracepoint_open": "the BPF program cannot be attached",
    "ring_buffer__new": "the ring buffer cannot be read",
    "ring_buffer__consume": "the ring buffer cannot be read",
    "ring_buffer__free": "",
    "bpf_prog_test_run_opts": "the BPF program cannot be run",
    "bpf_map_lookup_elem": "a BPF map cannot be read",
    "bpf_map_lookup_elem_flags": "a BPF map cannot be read",
    "bpf_map_update_elem": "a BPF map cannot be written",
    "bpf_map_delete_elem": "an entry of a BPF map cannot be deleted",
    "bpf_map_get_next_key": "the keys of a BPF map cannot be read",
    "bpf_map_lookup_batch": "a BPF map cannot be read",
    "btf__load_vmlinux_btf": "the kernel's type information (BTF) cannot be read",
    "btf__type_cnt": "",
    "btf__free": "",
    "btf_dump__new": "the kernel's type information (BTF) cannot be written as C",
    "btf_dump__dump_type": "the kernel's type information (BTF) cannot be written as C",
    "btf_dump__free": "",
}

_NOT_PERMITTED = (
    "Run the task as root (become: true) with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN, on the host itself: a "
    "container, kernel lockdown or a security module may forbid BPF"
)
_LIBRARY = "libbpf.so.1"
_ENOTSUPP = 524
_LIBBPF_ERRORS = 4000
_LEVEL_DEBUG = 2
_LOG_BYTES = 1 << 24  # what libbpf itself allows the verifier's log to grow to
_FILEID_KERNFS = 0xFE
_MOST_MAPS = 64  # of one program

# libbpf prints through one function for the whole process, the last that it was given: what it says belongs to every
# instance, and the function must outlive the instance that gave it, or freed memory is called.
_LOG: collections.deque[str] = collections.deque(maxlen=200)
_PRINTERS: list[t.Any] = []


class KernelError(LimiterError):
    """A refusal of the kernel or of libbpf, by ``errno``. Kind: ``not_permitted`` for EPERM, else ``kernel``."""

    def __init__(self, what: str, number: int, remedy: str = "") -> None:
        self.errno = number
        if number == errno.EPERM:
            super().__init__("not_permitted", what, reason(number), remedy or _NOT_PERMITTED)
        else:
            super().__init__("kernel", what, reason(number), remedy)


def reason(number: int) -> str:
    """``EPERM (Operation not permitted)``; the kernel and libbpf have numbers that libc does not know."""
    if number == _ENOTSUPP:
        return "ENOTSUPP (Not supported by this kernel)"
    if number >= _LIBBPF_ERRORS:
        return f"libbpf error {number} ({_said_by_libbpf(number)})"
    return errno_text(OSError(number, ""))


def _said_by_libbpf(number: int) -> str:
    text = _ffi().new("char[]", 128)
    _ffi().dlopen(_LIBRARY).libbpf_strerror(number, text, 128)
    return t.cast(bytes, _ffi().string(text)).decode("utf-8", "replace")


class Libbpf:
    """The open library. Make it with `load()`. Not for several threads at once: libbpf's log is one per process."""

    def __init__(self, ffi: t.Any, library: t.Any) -> None:
        self.ffi = ffi
        self._library = library  # when it goes, the functions go
        self._functions = {name: getattr(library, name) for name in _OPERATIONS}
        self._version = (int(library.libbpf_major_version()), int(library.libbpf_minor_version()))
        self._buffer: t.Any = None
        try:
            self._print = ffi.callback("int(int, const char *, void *)", self._keep)
        except (MemoryError, SystemError):  # a security module forbids the executable memory that a callback needs
            self._print = ffi.NULL
        library.libbpf_set_print(self._print)
        _PRINTERS.append(self._print)

    def version(self) -> tuple[int, int]:
        return self._version

    def call(self, name: str, *arguments: t.Any) -> int:
        """Calls a function that returns a negative errno where it fails; raises `KernelError` then."""
        result: int = self._functions[name](*arguments)
        if result < 0:
            raise KernelError(_OPERATIONS[name], -result)
        return result

    def try_call(self, name: str, *arguments: t.Any) -> int:
        """As `call`, but returns the negative errno: for loops in which failing is usual."""
        return t.cast(int, self._functions[name](*arguments))

    def pointer(self, name: str, *arguments: t.Any) -> t.Any:
        """Calls a function that returns NULL and sets errno where it fails; raises `KernelError` then."""
        result = self._functions[name](*arguments)
        if result == self.ffi.NULL:
            raise KernelError(_OPERATIONS[name], self.ffi.errno)
        return result

    def run(self, name: str, *arguments: t.Any) -> t.Any:
        """Calls a function that cannot fail, or whose NULL is an answer."""
        return self._functions[name](*arguments)

    def get(self, path: str) -> int:
        """Opens a pinned object; the caller closes the file descriptor."""
        return self.call("bpf_obj_get", path.encode())

    def info(self, fd: int, struct: str) -> t.Any:
        """What the kernel says of an open program, map or link: ``struct`` is ``bpf_prog_info`` and so on."""
        info = self.ffi.new(f"struct {struct} *")
        self.call("bpf_obj_get_info_by_fd", fd, info, self.ffi.new("uint32_t *", self.ffi.sizeof(info[0])))
        return info

    @contextlib.contextmanager
    def opened_by_id(self, kind: str, identifier: int) -> t.Iterator[int | None]:
        """A ``prog``, ``map`` or ``link`` by its id; None where it is gone, or is a link that somebody is just making.
        Raises KernelError.
        """
        fd = self.try_call(f"bpf_{kind}_get_fd_by_id", identifier)
        if fd in (-errno.ENOENT, -errno.EAGAIN):
            yield None
            return
        if fd < 0:
            raise KernelError(_OPERATIONS[f"bpf_{kind}_get_fd_by_id"], -fd)
        with closing_fd(fd):
            yield fd

    def maps_of(self, program_fd: int) -> list[int]:
        """The ids of the maps that a program uses."""
        info, size = self.ffi.new("struct bpf_prog_info *"), self.ffi.new("uint32_t *")
        ids = self.ffi.new("uint32_t[]", _MOST_MAPS)
        info.nr_map_ids, info.map_ids = _MOST_MAPS, int(self.ffi.cast("uintptr_t", ids))
        size[0] = self.ffi.sizeof(info[0])
        self.call("bpf_obj_get_info_by_fd", program_fd, info, size)
        return list(ids[0 : min(info.nr_map_ids, _MOST_MAPS)])

    def link_ids(self) -> t.Iterator[int]:
        """Of all links of this kernel, whoever made them. Raises KernelError."""
        identifier = self.ffi.new("uint32_t *")
        while True:
            result = self.try_call("bpf_link_get_next_id", identifier[0], identifier)
            if result == -errno.ENOENT:
                return
            if result < 0:
                raise KernelError(_OPERATIONS["bpf_link_get_next_id"], -result)
            yield identifier[0]

    def cgroup_path_of(self, mount: str, cgroup_id: int) -> str | None:
        """The path below the cgroup2 ``mount`` of the cgroup with this id (``/`` is the mount itself).

        None where no such cgroup exists any more, or where it lies outside of this mount (a cgroup namespace).
        """
        with self._opened_cgroup(mount, cgroup_id) as fd:
            if fd is None:
                return None
            path = os.readlink(f"/proc/self/fd/{fd}")
        try:  # the path of what is gone or unreachable from here is decorated text
            if os.stat(path).st_ino != cgroup_id:
                return None
        except OSError:
            return None
        root = mount.rstrip("/")
        if path != root and not path.startswith(root + "/"):
            return None
        return path[len(root) :] or "/"

    def is_outside(self, mount: str, cgroup_id: int) -> bool:
        """Whether the cgroup with this id exists, and lies outside of this mount."""
        with self._opened_cgroup(mount, cgroup_id) as fd:
            if fd is None or self.cgroup_path_of(mount, cgroup_id) is not None:
                return False
            try:
                os.stat("cgroup.procs", dir_fd=fd)  # of one that is gone, older kernels still open the directory
            except OSError:
                return False
            return True

    @contextlib.contextmanager
    def _opened_cgroup(self, mount: str, cgroup_id: int) -> t.Iterator[int | None]:
        """A descriptor of the cgroup with this id; None where it is gone."""
        handle = self.ffi.new("struct cgroup_file_handle *", (8, _FILEID_KERNFS, cgroup_id))
        with closing_fd(os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as mount_fd:
            fd = _libc().open_by_handle_at(mount_fd, handle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if fd < 0:
            number = self.ffi.errno
            # ENOTDIR: the id is that of a file in a cgroup.
            if number not in (errno.ESTALE, errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                raise KernelError(f"the cgroup with id {cgroup_id} cannot be opened", number)
            yield None
            return
        with closing_fd(fd):
            yield fd

    def forget_log(self) -> None:
        _LOG.clear()

    def log(self, lines: int) -> str:
        """The last lines of what libbpf said since `forget_log`, the verifier's log included."""
        return "\n".join(list(_LOG)[-lines:])

    def _keep(self, level: int, form: t.Any, arguments: t.Any) -> int:
        if level >= _LEVEL_DEBUG:
            return 0
        for line in self.format(form, arguments).splitlines():
            if line.strip():
                _LOG.append(line)
        return 0

    def format(self, form: t.Any, arguments: t.Any) -> str:
        """printf for callbacks: the format and the va_list that C handed over."""
        if self._buffer is None:  # not cleared: pages that are never written cost nothing
            self._buffer = self.ffi.new_allocator(should_clear_after_alloc=False)(f"char[{_LOG_BYTES}]")
        _libc().vsnprintf(self._buffer, _LOG_BYTES, form, arguments)
        return t.cast(bytes, self.ffi.string(self._buffer)).decode("utf-8", "replace")


@functools.cache
def _ffi() -> t.Any:
    try:
        return libbpf_abi.make()
    except ImportError as error:
        raise LimiterError(
            "missing_dependency",
            f"the Python interpreter {sys.executable} has no cffi",
            str(error),
            "Install the package python3-cffi-backend (Debian, Ubuntu) or python3-cffi (Fedora, RHEL, SUSE) on the "
            "target, or set ansible_python_interpreter to an interpreter that has it",
        ) from error


@functools.cache
def _libc() -> t.Any:
    return _ffi().dlopen(None)


def load(name: str = _LIBRARY) -> Libbpf:
    """Opens libbpf.

    Raises LimiterError: ``missing_dependency`` where _cffi_backend or libbpf is missing, ``libbpf_too_old`` below 1.0.
    """
    ffi = _ffi()
    needed = "libbpf 1.0 or newer is needed"
    packages = (
        "the package libbpf1 (Debian 12, Ubuntu 22.10 and newer; SUSE) or libbpf (Fedora, RHEL 9 and newer). Where the "
        "distribution has none (Debian 11, Ubuntu 22.04), the role setup compiles it: setup_libbpf_source. An object "
        "that was built elsewhere does not help"
    )
    try:
        return Libbpf(ffi, ffi.dlopen(name))
    except AttributeError as error:
        raise LimiterError("libbpf_too_old", needed, str(error), f"Update {packages}") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            ffi.dlopen("libbpf.so.0")
            raise LimiterError(
                "libbpf_too_old",
                needed,
                "only libbpf.so.0, of the 0.x series, is installed",
                f"Install {packages}",
            ) from error
        raise LimiterError(
            "missing_dependency",
            f"libbpf cannot be opened (by the Python interpreter {sys.executable})",
            str(error),
            f"Install {packages}",
        ) from error


@contextlib.contextmanager
def closing_fd(fd: int) -> t.Iterator[int]:
    """Closes a file descriptor at the end of a with block."""
    try:
        yield fd
    finally:
        os.close(fd)


def enter_network_namespace(fd: int) -> None:
    """Moves the calling thread, and no other, into the namespace of /proc/PID/ns/net. Raises KernelError."""
    if _libc().setns(fd, 0x40000000) < 0:  # CLONE_NEWNET
        raise KernelError("a network namespace cannot be entered", _ffi().errno)


def mount_bpffs(path: str) -> None:
    """Mounts a bpffs that is root's alone. Raises KernelError."""
    flags = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC
    if _libc().mount(b"bpf", path.encode(), b"bpf", flags, b"mode=0700") < 0:
        raise KernelError(f"bpffs cannot be mounted at {path}", _ffi().errno)


# Since Linux 5.2, with the same numbers on every architecture; not every libc knows them.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_SET_STRING, _CREATE, _CLOSE_ON_EXEC = 1, 6, 1


def private_bpffs() -> int:
    """A bpffs of this process's own, which ends with the returned descriptor. Raises KernelError."""
    ffi, system_call = _ffi(), _libc().syscall
    nothing = ffi.cast("void *", 0)

    def call(number: int, *arguments: t.Any) -> int:
        passed = [ffi.cast("long", entry) if isinstance(entry, int) else entry for entry in arguments]
        result = int(system_call(number, *passed))
        if result < 0:
            raise KernelError("a bpffs cannot be made for a look at what is not pinned", ffi.errno)
        return result

    with closing_fd(call(_FSOPEN, ffi.new("char[]", b"bpf"), _CLOSE_ON_EXEC)) as fd:
        call(_FSCONFIG, fd, _SET_STRING, ffi.new("char[]", b"mode"), ffi.new("char[]", b"0700"), 0)
        call(_FSCONFIG, fd, _CREATE, nothing, nothing, 0)
        return call(_FSMOUNT, fd, _CLOSE_ON_EXEC, 0)
