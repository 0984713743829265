# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program and its one link to a cgroup: loading, replacing and moving it, and who else is on its hook.

A process that is killed anywhere in `Programs.load` leaves something that the next load completes, and once a link is
pinned there is one at every moment, so that no packet is unlimited.
"""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Program
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.errnos import errno_text
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.libbpf import (
    KernelError,
    Libbpf,
    closing_fd,
    reason,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.maps import Map, Maps

PROGRAM = "limit_egress"

_CGROUP_SKB, _CGROUP_INET_EGRESS = 8, 1  # BPF_PROG_TYPE_*, BPF_CGROUP_*
_QUERY_EFFECTIVE = 1
_ALLOW_OVERRIDE, _ALLOW_MULTI = 1, 2


class Programs:
    """The program on this host. ``cgroup_mount`` is where cgroup2 is mounted; cgroups are named by their path below."""

    def __init__(self, libbpf: Libbpf, cgroup_mount: str) -> None:
        self._libbpf, self._mount = libbpf, cgroup_mount.rstrip("/")

    def current(self) -> Program | None:
        """The program that limits now; None where none is attached, or where it has lost its pinned maps.

        Raises LimiterError: as `Maps.open`.
        """
        with contextlib.ExitStack() as stack:
            maps = stack.enter_context(self._maps())
            if maps is None or not pins.exists(pins.LINK):
                return None
            info = self._libbpf.info(stack.enter_context(self._link(pins.LINK)), "bpf_link_info")
            cgroup = self._libbpf.cgroup_path_of(self._mount, info.cgroup_id) if info.cgroup_id else None
            if cgroup is None:  # the kernel detaches a link when its cgroup goes
                return None
            control = maps.control()
            known = control.program_id == info.prog_id and control.identity
            return Program(control.identity if known else "unknown", cgroup, info.prog_id, info.id)

    def load(self, object_path: str, identity: str, cgroup: str) -> None:
        """Makes the object's program the one that limits below ``cgroup``, with the maps and rules that are there.

        Raises LimiterError: as `pins.ensure` and `Maps.open`, ``bad_object`` where the object is not a limiter,
        ``load_failed`` with the verifier's words, ``not_permitted``, ``no_cgroup``, ``exclusive_program``,
        ``too_many_programs``.
        """
        pins.ensure()
        with self._maps():
            pass  # another version's maps are refused before anything is touched
        self.complete_move()
        with contextlib.ExitStack() as stack:
            cgroup_fd = stack.enter_context(self._open_cgroup(cgroup))
            self.refuse_exclusive(cgroup)
            program_fd = self._load_object(stack, object_path)
            program_id = self._libbpf.info(program_fd, "bpf_prog_info").id
            maps = stack.enter_context(self._maps())
            if maps is None:
                raise KernelError("the pinned maps cannot be opened", errno.ENOENT, "Run the task again")
            # Written first: no program that a killed run attached stays unknown, unless it had replaced another.
            before = maps.control()
            maps.write_control(before._replace(program_id=program_id, identity=identity))
            if maps.members():  # a control map that had to be made again says that there never were any
                maps.bump_generation()
            try:
                self._attach(program_fd, cgroup_fd, cgroup)
            except BaseException:
                maps.write_control(before)
                raise

    def check_object(self, path: str) -> None:
        """What can be known of an object without loading it. Raises LimiterError ``bad_object``."""
        with contextlib.ExitStack() as stack:
            self._open_object(stack, path)

    def unload(self) -> bool:
        """Detaches the program; the maps stay. Whether there was something to detach."""
        pins.check(self._libbpf)
        names = [name for name in (pins.NEW_LINK, pins.LINK) if pins.exists(name)]
        for name in names:
            self._detach(name)
            os.unlink(pins.path(name))
        return bool(names)

    def remove_maps(self) -> list[str]:
        """Removes the pins, links included, and their directory where it is empty then; says what it removed."""
        pins.check(self._libbpf)
        return pins.remove()

    def on_hook(self, cgroup: str) -> list[dict[str, t.Any]]:
        """Every program that runs for a packet that a socket of ``cgroup`` sends, in the kernel's order.

        Each is ``id``, ``name``, ``attach_flags`` (``multi``, ``override``, ``none``), ``cgroup`` (where it is
        attached; None where that lies above what is mounted) and ``ours``.
        Raises LimiterError: ``no_cgroup``, ``not_permitted``.
        """
        attached = []
        for place in _way_up(cgroup):
            with self._open_cgroup(place) as fd:
                ids, flags = self._query(fd, 0)
            attached.append((place, ids, flags))
        with self._open_cgroup(cgroup) as fd:
            effective, _flags = self._query(fd, _QUERY_EFFECTIVE)
        ours = self._our_program_ids()
        found = []
        for program_id in effective:
            name = self._program_name(program_id)
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

    @contextlib.contextmanager
    def _maps(self) -> t.Iterator[Maps | None]:
        maps = Maps.open(self._libbpf)
        if maps is None:
            yield None
            return
        with maps:
            yield maps

    @contextlib.contextmanager
    def _link(self, name: str) -> t.Iterator[int]:
        with closing_fd(self._libbpf.get(pins.path(name))) as fd:
            yield fd

    @contextlib.contextmanager
    def _open_cgroup(self, cgroup: str) -> t.Iterator[int]:
        path = self._mount + cgroup
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LimiterError("no_cgroup", f"the cgroup {path} cannot be opened", errno_text(error)) from error
        with closing_fd(fd):
            yield fd

    def complete_move(self) -> None:
        """A run that moved the attach point was killed: what it attached takes the old link's place."""
        if pins.exists(pins.NEW_LINK):
            if pins.exists(pins.LINK):
                self._detach(pins.LINK)
            os.rename(pins.path(pins.NEW_LINK), pins.path(pins.LINK))

    def _detach(self, name: str) -> None:
        """Ends the link at once: the kernel would do it some time after the pin is gone."""
        with self._link(name) as fd:
            result = self._libbpf.try_call("bpf_link_detach", fd)
            if result < 0 and result not in (-errno.EOPNOTSUPP, -errno.ENOLINK):
                raise KernelError("the BPF program cannot be detached", -result)

    def _open_object(self, stack: contextlib.ExitStack, path: str) -> tuple[t.Any, t.Any, dict[str, t.Any]]:
        """The object, its program and its maps by name, valid as long as ``stack``; not known to the kernel yet."""
        bpf = self._libbpf
        bpf.forget_log()
        try:
            opened = bpf.pointer("bpf_object__open_file", path.encode(), bpf.ffi.NULL)
        except KernelError as error:
            raise _bad_object(path, _with_log(bpf, error.why)) from error
        stack.callback(bpf.run, "bpf_object__close", opened)
        program = self._find(path, "program", PROGRAM, opened)
        kind = (bpf.run("bpf_program__type", program), bpf.run("bpf_program__expected_attach_type", program))
        if kind != (_CGROUP_SKB, _CGROUP_INET_EGRESS):
            raise _bad_object(path, f"its program {PROGRAM} is not for the hook cgroup_skb/egress")
        maps = {name: self._find(path, "map", name, opened) for name in pins.MAPS}
        for name, bpf_map in maps.items():
            sizes = (bpf.run(f"bpf_map__{what}", bpf_map) for what in ("type", "key_size", "value_size"))
            if pins.MapKind(*sizes) != pins.MAPS[name]:
                raise _bad_object(path, f"its map {name} has another type, key or value than this version's")
        return opened, program, maps

    def _load_object(self, stack: contextlib.ExitStack, path: str) -> int:
        """Loads program and maps, pins what is not pinned yet; the program's descriptor, valid as long as ``stack``."""
        bpf = self._libbpf
        opened, program, maps = self._open_object(stack, path)
        self._forget_pin_paths(opened)
        for name, bpf_map in maps.items():
            if pins.exists(name):
                with closing_fd(bpf.get(pins.path(name))) as fd:
                    bpf.call("bpf_map__reuse_fd", bpf_map, fd)  # libbpf keeps a copy
        self._load(path, opened)
        for name, bpf_map in maps.items():
            if not pins.exists(name):
                fd = bpf.call("bpf_map__fd", bpf_map)
                if name == pins.CONTROL:
                    control = layout.pack_control(layout.Control())
                    Map(bpf, name, fd).update(layout.INDEX.pack(0), control)
                bpf.call("bpf_obj_pin", fd, pins.path(name).encode())
        return bpf.call("bpf_program__fd", program)

    def _find(self, path: str, what: str, name: str, opened: t.Any) -> t.Any:
        found = self._libbpf.run(f"bpf_object__find_{what}_by_name", opened, name.encode())
        if found == self._libbpf.ffi.NULL:
            raise _bad_object(path, f"it has no {what} {name}")
        return found

    def _forget_pin_paths(self, opened: t.Any) -> None:
        """libbpf would pin maps that ask for it in their declaration, into the root of bpffs."""
        bpf_map = self._libbpf.ffi.NULL
        while True:
            bpf_map = self._libbpf.run("bpf_object__next_map", opened, bpf_map)
            if bpf_map == self._libbpf.ffi.NULL:
                return
            self._libbpf.call("bpf_map__set_pin_path", bpf_map, self._libbpf.ffi.NULL)

    def _load(self, path: str, opened: t.Any) -> None:
        bpf = self._libbpf
        bpf.forget_log()
        try:
            bpf.call("bpf_object__load", opened)
        except KernelError as error:
            if error.errno == errno.EPERM:
                raise
            remedy = "Build it on this kernel (speed_limit_program without object), and report this if it was"
            why = _with_log(bpf, error.why)
            raise LimiterError("load_failed", f"the kernel refused {path}", why, remedy) from error

    def _attach(self, program_fd: int, cgroup_fd: int, cgroup: str) -> None:
        bpf, pinned = self._libbpf, pins.exists(pins.LINK)
        if pinned:
            with self._link(pins.LINK) as link_fd:
                if bpf.info(link_fd, "bpf_link_info").cgroup_id == os.fstat(cgroup_fd).st_ino:
                    bpf.call("bpf_link_update", link_fd, program_fd, bpf.ffi.NULL)
                    return
        link_fd = bpf.try_call("bpf_link_create", program_fd, cgroup_fd, _CGROUP_INET_EGRESS, bpf.ffi.NULL)
        if link_fd == -errno.E2BIG:
            raise LimiterError(
                "too_many_programs",
                f"the program cannot be attached to the cgroup {cgroup}",
                f"the kernel allows 64 programs on one hook of a cgroup, and they are there: {reason(errno.E2BIG)}",
                "Detach some, or choose another cgroup_path",
            )
        if link_fd < 0:
            raise KernelError(f"the program cannot be attached to the cgroup {cgroup}", -link_fd)
        with closing_fd(link_fd):
            bpf.call("bpf_obj_pin", link_fd, pins.path(pins.NEW_LINK if pinned else pins.LINK).encode())
        self.complete_move()

    def refuse_exclusive(self, cgroup: str) -> None:
        """A program attached without BPF_F_ALLOW_MULTI shares its hook with none, or would be switched off below us."""
        for place in _way_up(cgroup):
            with self._open_cgroup(place) as fd:
                ids, flags = self._query(fd, 0)
            if not ids or flags & _ALLOW_MULTI:
                continue
            raise LimiterError(
                "exclusive_program",
                f"the program cannot be attached to the cgroup {cgroup}",
                f"the BPF program {self._program_name(ids[0])} (id {ids[0]}) is attached to {place} for itself alone "
                f"(attach flags: {_flags_text(flags)})",
                "Have its owner attach it with BPF_F_ALLOW_MULTI, as systemd does, detach it "
                f"(bpftool cgroup detach {self._mount + place} egress id {ids[0]}), or choose a cgroup_path "
                "that is not below it",
            )

    def _query(self, cgroup_fd: int, query_flags: int) -> tuple[list[int], int]:
        """Ids of the programs attached (or effective), and the flags they were attached with."""
        new, room = self._libbpf.ffi.new, 128
        while True:
            flags, ids, count = new("uint32_t *"), new("uint32_t[]", room), new("uint32_t *", room)
            result = self._libbpf.try_call(
                "bpf_prog_query", cgroup_fd, _CGROUP_INET_EGRESS, query_flags, flags, ids, count
            )
            if result == 0:
                return list(ids[0 : count[0]]), flags[0]
            if result != -errno.ENOSPC:
                raise KernelError("the BPF programs of a cgroup cannot be listed", -result)
            room *= 4

    def _program_name(self, program_id: int) -> str | None:
        fd = self._libbpf.try_call("bpf_prog_get_fd_by_id", program_id)
        if fd == -errno.ENOENT:
            return None
        if fd < 0:
            raise KernelError("a BPF program cannot be opened by its id", -fd)
        with closing_fd(fd):
            name = self._libbpf.ffi.string(self._libbpf.info(fd, "bpf_prog_info").name)
        return t.cast(bytes, name).decode("utf-8", "replace")

    def _our_program_ids(self) -> set[int]:
        found = set()
        for name in (pins.LINK, pins.NEW_LINK):
            if pins.exists(name):
                with self._link(name) as fd:
                    found.add(self._libbpf.info(fd, "bpf_link_info").prog_id)
        return found


def _way_up(cgroup: str) -> list[str]:
    """``/a/b``, ``/a``, ``/``"""
    parts = cgroup.strip("/").split("/") if cgroup.strip("/") else []
    return ["/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


def _flags_text(flags: int) -> str:
    if flags & _ALLOW_MULTI:
        return "multi"
    return "override" if flags & _ALLOW_OVERRIDE else "none"


def _bad_object(path: str, why: str) -> LimiterError:
    remedy = "Give the limiter's own object, built by this version of the collection, or none to have it built"
    return LimiterError("bad_object", f"{path} is not a speed limiter's BPF object", why, remedy)


def _with_log(bpf: Libbpf, why: str) -> str:
    log = bpf.log(20)
    return f"{why}\n{log}\n" if log else why
