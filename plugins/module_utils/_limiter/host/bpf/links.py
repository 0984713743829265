# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned links: made, given another program, ended; and how each of that is undone."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ...core import catalog
from ...core.errors import LimiterError
from . import pins
from .libbpf import KernelError, Libbpf, closing_fd


class Undo:
    """How to undo what was done so far. A step is put in before it is done: it must find out whether it was.

    A context: what was to be kept for it is closed at its end, and what was done stays unless `all` was called.
    """

    def __init__(self) -> None:
        self._steps: list[t.Callable[[], object]] = []
        self._kept = contextlib.ExitStack()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *exception: object) -> None:
        self._kept.close()

    def add(self, step: t.Callable[[], object]) -> None:
        self._steps.append(step)

    def keep(self, fd: int) -> int:
        """A descriptor that a step needs."""
        self._kept.callback(os.close, fd)
        return fd

    def all(self) -> None:
        """The last first. What cannot be undone is left: the error that led here is the one that is told."""
        while self._steps:
            with contextlib.suppress(LimiterError, OSError):
                self._steps.pop()()


class Links:
    """Links by the names of their pins (`catalog.LINKS`). Every method may raise KernelError."""

    def __init__(self, libbpf: Libbpf) -> None:
        self._libbpf = libbpf

    @contextlib.contextmanager
    def opened(self, name: str) -> t.Iterator[int]:
        with closing_fd(self._libbpf.get(pins.path(name))) as fd:
            yield fd

    def info(self, name: str) -> t.Any:
        with self.opened(name) as fd:
            return self._libbpf.info(fd, "bpf_link_info")

    def cgroup_id(self, name: str) -> int | None:
        """Of the cgroup that a link is attached to; 0 where that is gone, None where nothing is pinned."""
        return t.cast(int, self.info(name).cgroup_id) if pins.exists(name) else None

    def detach(self, name: str) -> None:
        """Ends the link at once: the kernel would do it some time after the pin is gone."""
        with self.opened(name) as fd:
            result = self._libbpf.try_call("bpf_link_detach", fd)
            if result < 0 and result not in (-errno.EOPNOTSUPP, -errno.ENOLINK):
                raise KernelError("the BPF program cannot be detached", -result)

    def remove(self, name: str) -> None:
        self.detach(name)
        pins.unlink(name)

    def complete(self, program: catalog.ProgramRow) -> None:
        """The next link, if there is one, takes the place of the one that was before."""
        if pins.exists(program.moving):
            if pins.exists(program.link):
                self.detach(program.link)
            pins.rename(program.moving, program.link)

    def to_cgroup(self, program: catalog.ProgramRow, program_fd: int, cgroup_fd: int, undo: Undo) -> None:
        """Replaces the program of the pinned link; a link elsewhere stays until `complete`."""
        pinned = self.cgroup_id(program.link)
        if pinned == os.fstat(cgroup_fd).st_ino:
            self._replace(program.link, program_fd, undo)
        else:
            self._make(program.link if pinned is None else program.moving, program_fd, cgroup_fd, program.hook, undo)

    def to_iterator(self, program: catalog.ProgramRow, program_fd: int | None, undo: Undo) -> None:
        """None: the kernel has none that could; what another version left would not know this one's sockets."""
        name, place = program.link, pins.path(program.link)
        if not pins.exists(name):
            if program_fd is not None:
                self._make(name, program_fd, 0, program.hook, undo)
        elif program_fd is not None:
            self._replace(name, program_fd, undo)
        else:
            link_fd = undo.keep(self._libbpf.get(place))  # without its pin it lasts as long as this

            def pin_again() -> None:
                if not pins.exists(name):
                    self._libbpf.call("bpf_obj_pin", link_fd, place.encode())

            undo.add(pin_again)
            pins.unlink(name)

    def _make(self, name: str, program_fd: int, target_fd: int, hook: catalog.Hook, undo: Undo) -> None:
        bpf = self._libbpf
        with closing_fd(bpf.call("bpf_link_create", program_fd, target_fd, hook.attach_type, bpf.ffi.NULL)) as link_fd:
            undo.add(lambda: self.remove(name) if pins.exists(name) else None)
            bpf.call("bpf_obj_pin", link_fd, pins.path(name).encode())

    def _replace(self, name: str, program_fd: int, undo: Undo) -> None:
        bpf = self._libbpf
        before_fd = undo.keep(bpf.call("bpf_prog_get_fd_by_id", self.info(name).prog_id))

        def put_back() -> None:
            with self.opened(name) as link_fd:
                bpf.call("bpf_link_update", link_fd, before_fd, bpf.ffi.NULL)

        undo.add(put_back)
        with self.opened(name) as link_fd:
            bpf.call("bpf_link_update", link_fd, program_fd, bpf.ffi.NULL)
