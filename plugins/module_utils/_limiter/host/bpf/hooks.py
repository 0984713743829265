# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hooks of cgroups: who is attached to them, ours or not, and whether one of them shares with nobody."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ...core import catalog
from ...core.errors import LimiterError
from ..errnos import errno_text
from .libbpf import KernelError, Libbpf, closing_fd, reason

_QUERY_EFFECTIVE = 1
_ALLOW_OVERRIDE, _ALLOW_MULTI = 1, 2


class Exclusive(t.NamedTuple):
    """A program that was attached without BPF_F_ALLOW_MULTI."""

    program_id: int
    cgroup: str
    text: str


class Hooks:
    """The hooks below ``cgroup_mount``, where cgroup2 is mounted; cgroups are named by their path below it."""

    def __init__(self, libbpf: Libbpf, cgroup_mount: str) -> None:
        self._libbpf, self.mount = libbpf, cgroup_mount.rstrip("/")

    @contextlib.contextmanager
    def open_cgroup(self, cgroup: str) -> t.Iterator[int]:
        """Raises LimiterError ``no_cgroup``."""
        path = self.mount + cgroup
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LimiterError("no_cgroup", f"the cgroup {path} cannot be opened", errno_text(error)) from error
        with closing_fd(fd):
            yield fd

    def exclusive(self, cgroup: str, hook: catalog.Hook) -> Exclusive | None:
        """A program attached without BPF_F_ALLOW_MULTI shares its hook with none, or would be switched off below us."""
        for place in _way_up(cgroup):
            with self.open_cgroup(place) as fd:
                ids, flags = self._query(fd, hook, 0)
            if ids and not flags & _ALLOW_MULTI:
                text = (
                    f"the BPF program {self.program_name(ids[0])} (id {ids[0]}) is attached to {place} for itself "
                    f"alone (attach flags: {_flags_text(flags)})"
                )
                return Exclusive(ids[0], place, text)
        return None

    def running(
        self, cgroup: str, ours: t.Container[int], hook: catalog.Hook = catalog.EGRESS
    ) -> list[dict[str, t.Any]]:
        """Every program that runs for a packet that a socket of ``cgroup`` sends, or on another hook, in the kernel's
        order.

        Each is ``id``, ``name``, ``attach_flags`` (``multi``, ``override``, ``none``), ``cgroup`` (where it is
        attached; None where that lies above what is mounted) and ``ours``.
        Raises LimiterError: ``no_cgroup``, ``not_permitted``.
        """
        attached = []
        for place in _way_up(cgroup):
            with self.open_cgroup(place) as fd:
                ids, flags = self._query(fd, hook, 0)
            attached.append((place, ids, flags))
        found = []
        for program_id in self.effective(cgroup, hook):
            name = self.program_name(program_id)
            if name is None:  # it went in between
                continue
            where, flags = None, 0
            for place, ids, place_flags in attached:
                if program_id in ids:
                    ids.remove(program_id)
                    where, flags = place, place_flags
                    break
            entry = {"id": program_id, "name": name, "attach_flags": _flags_text(flags) if where else None}
            found.append({**entry, "cgroup": where, "ours": program_id in ours})
        return found

    def effective(self, cgroup: str, hook: catalog.Hook = catalog.EGRESS) -> list[int]:
        """Their ids. Raises LimiterError as `running`."""
        with self.open_cgroup(cgroup) as fd:
            return self._query(fd, hook, _QUERY_EFFECTIVE)[0]

    def attached(self, cgroup: str) -> list[int]:
        """The ids of the programs that are attached there to egress. Raises LimiterError as `running`."""
        with self.open_cgroup(cgroup) as fd:
            return self._query(fd, catalog.EGRESS, 0)[0]

    def _query(self, cgroup_fd: int, hook: catalog.Hook, query_flags: int) -> tuple[list[int], int]:
        """Ids of the programs attached (or effective), and the flags they were attached with."""
        new, room = self._libbpf.ffi.new, 128
        while True:
            flags, ids, count = new("uint32_t *"), new("uint32_t[]", room), new("uint32_t *", room)
            result = self._libbpf.try_call(
                "bpf_prog_query", cgroup_fd, hook.attach_type, query_flags, flags, ids, count
            )
            if result == 0:
                return list(ids[0 : count[0]]), flags[0]
            if result == -errno.EINVAL:
                raise LimiterError(
                    "no_cgroup_bpf",
                    "the kernel runs no BPF programs for cgroups",
                    f"asked for those that are attached, it says {reason(errno.EINVAL)}",
                    "Run a kernel with CONFIG_CGROUP_BPF=y, as the distributions' own are (grep CGROUP_BPF "
                    "/boot/config-$(uname -r))",
                )
            if result != -errno.ENOSPC:
                raise KernelError("the BPF programs of a cgroup cannot be listed", -result)
            room *= 4

    def program_name(self, program_id: int) -> str | None:
        """None where it is gone."""
        with self._libbpf.opened_by_id("prog", program_id) as fd:
            if fd is None:
                return None
            name = self._libbpf.ffi.string(self._libbpf.info(fd, "bpf_prog_info").name)
        return t.cast(bytes, name).decode("utf-8", "replace")


def _way_up(cgroup: str) -> list[str]:
    """``/a/b``, ``/a``, ``/``"""
    parts = cgroup.strip("/").split("/") if cgroup.strip("/") else []
    return ["/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


def _flags_text(flags: int) -> str:
    if flags & _ALLOW_MULTI:
        return "multi"
    return "override" if flags & _ALLOW_OVERRIDE else "none"
