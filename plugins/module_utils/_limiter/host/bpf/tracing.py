# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that traces in the place of the one that only limits, and what it tells.

The untraced program stays pinned meanwhile (`catalog.UNTRACED`). So whoever comes after a trace that was killed puts
that very program back, whatever has become of the object that it came from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import typing as t

from ...core import catalog, layout, tracing
from ...core.errors import LimiterError
from .. import kernel, memory
from . import objects, pins
from .libbpf import KernelError, Libbpf, closing_fd
from .links import Links
from .maps import Map

_NAME_BYTES = 15  # of what the kernel keeps of a name
_FAILED = re.compile(r"prog '(\w+)': ")  # libbpf names the program that the kernel refuses
# In which a packet ends that a program of the hook refuses; compilers add endings such as .part.0.
_PLACE = re.compile(rb"^([0-9a-f]+) [tT] (?:ip|ip6|ip_mc)_finish_output(?:\.\S*)?\s", re.MULTILINE)
_FUNCTION = re.compile(rb"^([0-9a-f]+) [tT] ", re.MULTILINE)
_SYMBOLS = "/proc/kallsyms"
_LOG_LINES = 200
_MOST_INTERRUPTIONS = 5
_STOP = -1  # what a callback returns to end the look


@contextlib.contextmanager
def claimed() -> t.Iterator[None]:
    """As long as this lasts, we are who traces. Raises LimiterError ``trace_running``."""
    fd = memory.open_claim(memory.TRACING, make=True)
    if fd is None:
        raise LimiterError("unusable_state_directory", f"{memory.DIRECTORY} is gone", "", "Run again")
    with closing_fd(fd):
        if not memory.claim(fd):
            text = os.pread(fd, 32, 0)
            pid = int(text) if text.strip().isdigit() else 0
            raise LimiterError(
                "trace_running",
                "another trace runs on this host",
                f"the process {pid} traces" if pid else "",
                "Wait for its end; there is one program to ask, and what it is asked for cannot be changed",
            )
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield


def is_claimed() -> bool:
    """Whether somebody traces now."""
    fd = memory.open_claim(memory.TRACING, make=False)
    if fd is None:
        return False
    with closing_fd(fd):
        return memory.claims(fd) > 0


def untraced_id(libbpf: Libbpf) -> int | None:
    """The id of the program that has to come back when the trace is over."""
    try:
        fd = libbpf.get(pins.path(catalog.UNTRACED))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    with closing_fd(fd):
        return t.cast(int, libbpf.info(fd, "bpf_prog_info").id)


def put_back(libbpf: Libbpf, links: Links, kept: int | None = None) -> None:
    """The untraced program has its place again, if a traced one had it. Whoever traces sees that, and ends. ``kept``: a
    descriptor of it, where its pin may be lost.
    """
    pinned = pins.exists(catalog.UNTRACED)
    if not pinned and kept is None:
        return
    with closing_fd(libbpf.get(pins.path(catalog.UNTRACED)) if pinned else os.dup(kept or 0)) as fd:
        if _is_traced(libbpf, links):
            with links.opened(catalog.LIMIT.link) as link_fd:
                libbpf.call("bpf_link_update", link_fd, fd, libbpf.ffi.NULL)
    if pinned:
        pins.unpin([catalog.UNTRACED])


def _is_traced(libbpf: Libbpf, links: Links) -> bool:
    if not links.cgroup_id(catalog.LIMIT.link):  # nothing is pinned, or the cgroup is gone
        return False
    with libbpf.opened_by_id("prog", links.info(catalog.LIMIT.link).prog_id) as fd:
        name = libbpf.info(fd, "bpf_prog_info").name if fd is not None else b""
        return bool(name and libbpf.ffi.string(name).decode() == catalog.TRACE.name[:_NAME_BYTES])


class Tracer:
    """What is loaded for one trace, until its stack ends."""

    def __init__(self, libbpf: Libbpf, opened: objects.Opened, loaded: t.Mapping[catalog.ProgramRow, int]) -> None:
        self._libbpf, self._loaded = libbpf, loaded
        self.program_id = self._id(catalog.TRACE) if self.replaces else 0
        self._opened = opened.object
        self._ring_fd = self._map_fd(catalog.TRACE_RING)
        self._state, self._cgroups, self.sockets = (
            Map(libbpf, name, self._map_fd(name))
            for name in (catalog.TRACE_STATE, catalog.TRACE_CGROUPS, catalog.TRACE_SOCKETS)
        )
        self._watched: set[int] = set()
        self.untraced: int | None = None  # what it has the place of, open

    def _map_fd(self, name: str) -> int:
        return self._libbpf.call("bpf_map__fd", objects.find(self._libbpf, self._opened, "map", name))

    @property
    def replaces(self) -> bool:
        """Whether one of them has to have the place of the program that limits."""
        return catalog.TRACE in self._loaded

    @property
    def beside(self) -> list[catalog.ProgramRow]:
        """The programs that look beside those that are there."""
        return [row for row in self._loaded if row is not catalog.TRACE]

    def ids(self) -> list[int]:
        return [self._id(row) for row in self._loaded]

    def _id(self, row: catalog.ProgramRow) -> int:
        return int(self._libbpf.info(self._loaded[row], "bpf_prog_info").id)

    def watch_cgroups(self, cgroups: t.Collection[int]) -> None:
        """Only packets of these cgroups and those below them are told from now on."""
        for cgroup in self._watched - set(cgroups):
            self._cgroups.delete(layout.ID.pack(cgroup))
        for cgroup in set(cgroups) - self._watched:
            self._cgroups.update(layout.ID.pack(cgroup), layout.INDEX.pack(1))
        self._watched = set(cgroups)

    def watch_socket(self, fd: int) -> None:
        self.sockets.update(layout.FD.pack(fd), layout.INDEX.pack(1))

    def lost(self) -> int:
        """How many packets found no room."""
        data = self._state.lookup(layout.INDEX.pack(0))
        return 0 if data is None else int(tracing.STATE.unpack(data)[2])

    def attach(self, stack: contextlib.ExitStack, row: catalog.ProgramRow, cgroup_fd: int) -> None:
        """A program that looks beside ours; it ends with ``stack``. Raises KernelError."""
        fd, bpf = self._loaded[row], self._libbpf
        if row.hook.link_type == catalog.CGROUP_LINK:
            link = bpf.call("bpf_link_create", fd, cgroup_fd, row.hook.attach_type, bpf.ffi.NULL)
        else:
            link = bpf.call("bpf_raw_tracepoint_open", bpf.ffi.NULL, fd)
        stack.callback(os.close, link)

    def take_place(self, stack: contextlib.ExitStack, links: Links, opened: objects.Opened) -> None:
        """Has the place of the program that limits, which is pinned, and kept open by ``stack``. Raises KernelError."""
        bpf, fd = self._libbpf, self._loaded[catalog.TRACE]
        objects.bind(bpf, opened, fd, catalog.MAPS)
        self.untraced = bpf.call("bpf_prog_get_fd_by_id", links.info(catalog.LIMIT.link).prog_id)
        stack.callback(os.close, self.untraced)
        bpf.call("bpf_obj_pin", self.untraced, pins.path(catalog.UNTRACED).encode())
        with links.opened(catalog.LIMIT.link) as link_fd:
            bpf.call("bpf_link_update", link_fd, fd, bpf.ffi.NULL)

    @contextlib.contextmanager
    def reading(self, take: t.Callable[[tracing.Packet], bool]) -> t.Iterator[t.Callable[[], None]]:
        """A function that gives what has been told since to ``take``, as long as that returns true."""
        bpf = self._libbpf
        failed: list[BaseException] = []

        def tell(_context: t.Any, data: t.Any, _size: int) -> int:
            try:
                return 0 if take(tracing.unpack(bytes(bpf.ffi.buffer(data, tracing.PACKET.size)))) else _STOP
            except BaseException as error:  # an interrupt, too: through libbpf nothing is raised
                failed.append(error)
                return _STOP

        try:
            callback = bpf.ffi.callback("int(void *, void *, size_t)", tell)
        except (MemoryError, SystemError) as error:
            raise LimiterError(
                "not_permitted",
                "the ring buffer cannot be read",
                "a security module forbids the executable memory that a callback of cffi needs",
                "Allow it for this interpreter, or trace with bpftool",
            ) from error
        ring = bpf.pointer("ring_buffer__new", self._ring_fd, callback, bpf.ffi.NULL, bpf.ffi.NULL)
        try:
            yield lambda: self._consume(ring, failed)
        finally:
            bpf.run("ring_buffer__free", ring)

    def _consume(self, ring: t.Any, failed: t.Sequence[BaseException]) -> None:
        result = self._libbpf.try_call("ring_buffer__consume", ring)
        if failed:
            raise failed[0]
        if result < 0 and result != _STOP:
            raise KernelError("the ring buffer cannot be read", -result)


class Loaded(t.NamedTuple):
    tracer: Tracer
    opened: objects.Opened
    refused: objects.Refusals


def load(
    bpf: Libbpf,
    stack: contextlib.ExitStack,
    path: str,
    asked: bytes,
    tracers: t.Collection[catalog.ProgramRow],
    blind: bool,
) -> Loaded:
    """Loads what traces, but for what the kernel refuses of what looks beside `catalog.TRACE`, until the end of
    ``stack``. Nothing is attached. ``asked``: as `core.tracing.pack_filter`; ``blind``: as the program that limits was
    loaded.

    Raises LimiterError: ``untraceable`` where the object is an earlier version's, ``no_memory``, ``load_failed``,
    ``not_permitted``.
    """
    wanted, interruptions = list(tracers), _MOST_INTERRUPTIONS
    refused: objects.Refusals = {}
    while True:
        opened = objects.open_object(bpf, stack, path)
        if catalog.TRACE not in opened.tracers:
            raise LimiterError(
                "untraceable",
                f"{path} has nothing that traces",
                "an earlier version of this collection built it",
                "Run speed_limit_program, which builds and loads this version's",
            )
        if blind:
            objects.forbid_looking(bpf, opened)
        objects.prepare(bpf, opened, wanted, pins.places(layout.SCHEMA))
        section = objects.find(bpf, opened.object, "map", catalog.TRACER_SECTION)
        bpf.call("bpf_map__set_initial_value", section, asked, len(asked))
        bpf.forget_log()
        try:
            bpf.call("bpf_object__load", opened.object)
        except KernelError as error:
            if error.errno == errno.EAGAIN and interruptions:  # as in objects.load
                interruptions -= 1
                continue
            if error.errno == errno.ENOMEM:
                raise LimiterError(
                    "no_memory",
                    "there is no memory for a trace",
                    error.why,
                    "It needs 6 MiB of the kernel's: free some, or raise memory.max of the cgroup that this runs in",
                ) from error
            names = _FAILED.findall(bpf.log(_LOG_LINES))
            beside = [row for row in wanted if row is not catalog.TRACE]
            blamed = next((row for row in beside if names and row.name == names[-1]), None)
            if blamed is None:
                raise objects.not_loaded(bpf, path, error) from error
            refused[blamed] = kernel.refused(objects.in_short(bpf, error.why))
            wanted.remove(blamed)
            continue
        fds = {row: bpf.call("bpf_program__fd", opened.tracers[row]) for row in wanted}
        return Loaded(Tracer(bpf, opened, fds), opened, refused)


def places_of_refusals() -> list[tuple[int, int]]:
    """Where the functions begin and end in which a packet ends that a program of the egress hook refuses; empty where
    the kernel does not tell.
    """
    found: list[tuple[int, int]] = []
    try:
        with open(_SYMBOLS, "rb") as file:
            symbols = file.read()  # at once: there are 100,000 and more
    except OSError:
        return []
    for place in _PLACE.finditer(symbols):
        start = int(place[1], 16)  # 0 where the kernel hides it
        ends = (int(line[1], 16) for line in _FUNCTION.finditer(symbols, place.end()))
        end = next((at for at in ends if at > start), None) if start else None
        if end:
            found.append((start, end))
    return found[: tracing.PLACES]
