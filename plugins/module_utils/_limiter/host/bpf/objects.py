# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The object file: what is in it, and its programs and maps in the kernel.

What one can do without, and some kernels refuse, is left out then.
"""

from __future__ import annotations

import contextlib
import errno
import re
import typing as t

from ...core import catalog, layout, shortcomings
from ...core.errors import LimiterError
from .. import kernel
from . import pins
from .libbpf import KernelError, Libbpf, closing_fd
from .maps import Map

Refusals = dict[t.Union[catalog.ProgramRow, catalog.Part], str]  # what the kernel refused, and why

# Times that a load which a signal interrupts is tried again; each is five times for libbpf.
_MOST_INTERRUPTIONS = 5

# What libbpf and the verifier say in every case.
_NOISE = re.compile(r"libbpf: (prog '\w+': (failed to load|-- )|failed to load object)|-- END|processed \d+ insns")


class Opened(t.NamedTuple):
    """An object that the kernel does not know yet, with libbpf's pointers to what is in it."""

    object: t.Any
    programs: t.Mapping[catalog.ProgramRow, t.Any]
    maps: t.Mapping[catalog.MapRow, t.Any]
    tracers: t.Mapping[catalog.ProgramRow, t.Any]  # an object of an earlier version has none


class LoadedObject(t.NamedTuple):
    """Descriptors of the programs that the kernel took."""

    programs: t.Mapping[catalog.ProgramRow, int]
    refused: Refusals


def check(bpf: Libbpf, path: str) -> None:
    """What can be known of an object without loading it. Raises LimiterError ``bad_object``."""
    with contextlib.ExitStack() as stack:
        open_object(bpf, stack, path)


def load(
    bpf: Libbpf, stack: contextlib.ExitStack, path: str, pacing: bool, places: t.Mapping[catalog.MapRow, str]
) -> LoadedObject:
    """Loads programs and maps, pins those of ``places`` that are not there yet; descriptors are valid as long as
    ``stack``.

    ``pacing``: also what only paces, as far as the kernel takes it.
    Raises LimiterError: ``bad_object``, ``load_failed`` with the verifier's words, ``not_permitted``.
    """
    refused: Refusals = {}
    carrying = catalog.CARRIED in places
    wanted = [row for row in catalog.LIMITER.programs if (pacing or not row.paces) and (carrying or not row.carries)]
    attempts = [wanted[:count] for count in range(len(wanted), 0, -1) if _may_be_taken(wanted, count)]
    pending = list(attempts)
    looks, interruptions = True, _MOST_INTERRUPTIONS
    while pending:
        attempt = pending.pop(0)
        opened = open_object(bpf, stack, path)
        if not looks:
            forbid_looking(bpf, opened)
        prepare(bpf, opened, attempt, places)
        bpf.forget_log()
        try:
            bpf.call("bpf_object__load", opened.object)
        except KernelError as error:
            # A signal that is pending ends the verifier's work, which libbpf tries a few times: that is no refusal.
            if error.errno == errno.EAGAIN and interruptions:
                interruptions -= 1
                pending.insert(0, attempt)
                continue
            why = kernel.refused(in_short(bpf, error.why))
            if looks and shortcomings.forbids_looking(why):
                looks, pending, refused = False, list(attempts), {catalog.LOOK: why}
                continue
            if not pending:
                raise not_loaded(bpf, path, error) from error
            # The last one left out is the one to blame: without it the kernel takes the rest.
            for row in wanted[len(attempt) :]:
                refused.pop(row, None)
            refused[attempt[-1]] = why
            continue
        loaded = {row: bpf.call("bpf_program__fd", opened.programs[row]) for row in attempt}
        bind(bpf, opened, loaded[catalog.LIMIT], places)
        _pin(bpf, opened.maps, places)
        return LoadedObject(loaded, refused)
    raise AssertionError("the last attempt returns or raises")


def _may_be_taken(wanted: t.Sequence[catalog.ProgramRow], count: int) -> bool:
    """Whether it is worth trying with the first ones alone: the kernel is not too old for the last of these, and one
    can do without the others.
    """
    last, left_out = wanted[count - 1], wanted[count:]
    return kernel.version() >= last.since and all(row.refused for row in left_out)


def open_object(bpf: Libbpf, stack: contextlib.ExitStack, path: str) -> Opened:
    """The object, valid as long as ``stack``. Raises LimiterError ``bad_object``."""
    bpf.forget_log()
    try:
        opened = bpf.pointer("bpf_object__open_file", path.encode(), bpf.ffi.NULL)
    except KernelError as error:
        raise _bad_object(path, in_short(bpf, error.why)) from error
    stack.callback(bpf.run, "bpf_object__close", opened)
    programs = {row: _find(bpf, path, "program", row.name, opened) for row in catalog.LIMITER.programs}
    for row, program in programs.items():
        kind = (bpf.run("bpf_program__type", program), bpf.run("bpf_program__expected_attach_type", program))
        if kind != (row.hook.program_type, row.hook.attach_type):
            raise _bad_object(path, f"its program {row.name} is not for the hook {row.hook.name}")
    maps = {row: _find(bpf, path, "map", row.name, opened) for row in catalog.LIMITER.maps}
    for entry, bpf_map in maps.items():
        sizes = [bpf.run(f"bpf_map__{what}", bpf_map) for what in ("type", "key_size", "value_size")]
        if sizes != [entry.type, entry.key.size, entry.value.size]:
            raise _bad_object(path, f"its map {entry.name} has another type, key or value than this version's")
    tracers = {row: find(bpf, opened, "program", row.name) for row in catalog.LIMITER.tracers}
    return Opened(opened, programs, maps, {row: program for row, program in tracers.items() if program is not None})


def prepare(
    bpf: Libbpf, opened: Opened, wanted: t.Collection[catalog.ProgramRow], places: t.Mapping[catalog.MapRow, str]
) -> None:
    """Only these programs will be loaded, with the maps that are pinned already, as far as they are."""
    for row, program in (*opened.programs.items(), *opened.tracers.items()):
        if row not in wanted:
            bpf.call("bpf_program__set_autoload", program, False)
    _forget_pin_paths(bpf, opened.object)
    for pinned, bpf_map in opened.maps.items():
        if pinned not in places:
            bpf.call("bpf_map__set_autocreate", bpf_map, False)
        elif pins.exists(places[pinned]):
            with closing_fd(bpf.get(pins.path(places[pinned]))) as fd:
                bpf.call("bpf_map__reuse_fd", bpf_map, fd)  # libbpf keeps a copy
    looks = any(row in wanted for row in catalog.LIMITER.tracers)
    for name in () if looks else (*catalog.LIMITER.tracer_maps, catalog.TRACER_SECTION):
        bpf_map = find(bpf, opened.object, "map", name)
        if bpf_map is not None:
            bpf.call("bpf_map__set_autocreate", bpf_map, False)


def bind(bpf: Libbpf, opened: Opened, program_fd: int, places: t.Iterable[catalog.MapRow]) -> None:
    """What the program does not read lasts as long as it, too, and is found with it where pins are lost."""
    for pinned in places:
        bpf.call("bpf_prog_bind_map", program_fd, bpf.call("bpf_map__fd", opened.maps[pinned]), bpf.ffi.NULL)


def find(bpf: Libbpf, opened: t.Any, what: str, name: str) -> t.Any | None:
    """A ``program`` or ``map`` of an object that is open."""
    found = bpf.run(f"bpf_object__find_{what}_by_name", opened, name.encode())
    return None if found == bpf.ffi.NULL else found


def _find(bpf: Libbpf, path: str, what: str, name: str, opened: t.Any) -> t.Any:
    found = find(bpf, opened, what, name)
    if found is None:
        raise _bad_object(path, f"it has no {what} {name}")
    return found


def forbid_looking(bpf: Libbpf, opened: Opened) -> None:
    """Its programs will not look into the kernel's memory."""
    section = find(bpf, opened.object, "map", catalog.LOOK.section)
    if section is not None:  # an older object never looks
        bpf.call("bpf_map__set_initial_value", section, b"\0", 1)


def _forget_pin_paths(bpf: Libbpf, opened: t.Any) -> None:
    """libbpf would pin maps that ask for it in their declaration, into the root of bpffs."""
    bpf_map = bpf.ffi.NULL
    while True:
        bpf_map = bpf.run("bpf_object__next_map", opened, bpf_map)
        if bpf_map == bpf.ffi.NULL:
            return
        bpf.call("bpf_map__set_pin_path", bpf_map, bpf.ffi.NULL)


def _pin(bpf: Libbpf, maps: t.Mapping[catalog.MapRow, t.Any], places: t.Mapping[catalog.MapRow, str]) -> None:
    for row, place in places.items():
        if not pins.exists(place):
            fd = bpf.call("bpf_map__fd", maps[row])
            if row is catalog.CONTROL:
                Map(bpf, row.name, fd).update(layout.INDEX.pack(0), layout.pack_control(layout.Control()))
            bpf.call("bpf_obj_pin", fd, pins.path(place).encode())


def _bad_object(path: str, why: str) -> LimiterError:
    remedy = "Give the limiter's own object, built by this version of the collection, or none to have it built"
    return LimiterError("bad_object", f"{path} is not a speed limiter's BPF object", why, remedy)


def not_loaded(bpf: Libbpf, path: str, error: KernelError) -> LimiterError:
    if error.errno == errno.EPERM:
        return error
    remedy = "Build it on this kernel (speed_limit_program without object), and report this if it was"
    return LimiterError("load_failed", f"the kernel refused {path}", _with_log(bpf, error.why), remedy)


def _with_log(bpf: Libbpf, why: str) -> str:
    log = bpf.log(20)
    return f"{why}\n{log}" if log else why


def in_short(bpf: Libbpf, why: str) -> str:
    """Why a load failed: the errno, and the last line that says more than that it failed."""
    said = [line for line in bpf.log(20).splitlines() if not _NOISE.match(line)]
    return f"{why}: {said[-1]}" if said else why
