# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The object file: what is in it, and its programs and maps in the kernel.

Without `PACE` and `SETTLE`, which some kernels refuse, the rules still limit: they are left out then.
"""

from __future__ import annotations

import contextlib
import errno
import re
import typing as t

from ...core import layout, shortcomings
from ...core.errors import LimiterError
from .. import kernel
from . import pins
from .libbpf import KernelError, Libbpf, closing_fd
from .maps import Map

LIMIT, PACE, SETTLE = "limit_egress", "pace_sockets", "settle_sockets"

# In `LIMIT`: whether a packet of IPsec is looked at in the kernel's memory, where lockdown may forbid it.
LOOK = "ipsec_looks"
_LOOK_SECTION = ".rodata.ipsec"

# BPF_PROG_TYPE_* and the attach type (BPF_CGROUP_*, BPF_TRACE_ITER) of each, and what these are called.
_KINDS = {
    LIMIT: ((8, 1), "cgroup_skb/egress"),
    PACE: ((13, 3), "sockops"),
    SETTLE: ((26, 28), "iter"),
}

SETTLES = (6, 1)  # bpf_setsockopt in iter/tcp

# Times that a load which a signal interrupts is tried again; each is five times for libbpf.
_MOST_INTERRUPTIONS = 5

# What libbpf and the verifier say in every case.
_NOISE = re.compile(r"libbpf: (prog '\w+': (failed to load|-- )|failed to load object)|-- END|processed \d+ insns")


class LoadedObject(t.NamedTuple):
    """Descriptors of the programs that the kernel took, and for each that it did not, and for `LOOK`, why."""

    programs: t.Mapping[str, int]
    refused: t.Mapping[str, str]


def check(bpf: Libbpf, path: str) -> None:
    """What can be known of an object without loading it. Raises LimiterError ``bad_object``."""
    with contextlib.ExitStack() as stack:
        _open(bpf, stack, path)


def load(bpf: Libbpf, stack: contextlib.ExitStack, path: str, pacing: bool) -> LoadedObject:
    """Loads programs and maps, pins maps that are not pinned yet; descriptors are valid as long as ``stack``.

    ``pacing``: more than `LIMIT`, as far as the kernel takes it.
    Raises LimiterError: ``bad_object``, ``load_failed`` with the verifier's words, ``not_permitted``.
    """
    refused: dict[str, str] = {}
    attempts: list[tuple[str, ...]] = [(), (SETTLE,), (SETTLE, PACE)] if pacing else [(SETTLE, PACE)]
    if not attempts[0] and kernel.version() < SETTLES:
        attempts.remove(())  # each attempt costs a kernel as old as that seconds
    pending = list(attempts)
    looks, interruptions = True, _MOST_INTERRUPTIONS
    while pending:
        left_out = pending.pop(0)
        opened, programs, maps = _open(bpf, stack, path)
        if not looks:
            _forbid_looking(bpf, opened)
        for name in left_out:
            bpf.call("bpf_program__set_autoload", programs[name], False)
        _forget_pin_paths(bpf, opened)
        for name, bpf_map in maps.items():
            if pins.exists(name):
                with closing_fd(bpf.get(pins.path(name))) as fd:
                    bpf.call("bpf_map__reuse_fd", bpf_map, fd)  # libbpf keeps a copy
        bpf.forget_log()
        try:
            bpf.call("bpf_object__load", opened)
        except KernelError as error:
            # A signal that is pending ends the verifier's work, which libbpf tries a few times: that is no refusal.
            if error.errno == errno.EAGAIN and interruptions:
                interruptions -= 1
                pending.insert(0, left_out)
                continue
            why = kernel.refused(_in_short(bpf, error.why))
            if looks and shortcomings.forbids_looking(why):
                looks, pending, refused = False, list(attempts), {LOOK: why}
                continue
            if PACE in left_out:
                raise _not_loaded(bpf, path, error) from error
            # The last one left out is the one to blame: without it the kernel takes the rest.
            refused.pop(SETTLE, None)
            refused[PACE if left_out else SETTLE] = why
            continue
        _pin(bpf, maps)
        return LoadedObject(
            {name: bpf.call("bpf_program__fd", programs[name]) for name in programs if name not in left_out}, refused
        )
    raise AssertionError("the last attempt returns or raises")


def _open(bpf: Libbpf, stack: contextlib.ExitStack, path: str) -> tuple[t.Any, dict[str, t.Any], dict[str, t.Any]]:
    """The object, its programs and its maps by name, valid as long as ``stack``; not known to the kernel yet."""
    bpf.forget_log()
    try:
        opened = bpf.pointer("bpf_object__open_file", path.encode(), bpf.ffi.NULL)
    except KernelError as error:
        raise _bad_object(path, _with_log(bpf, error.why)) from error
    stack.callback(bpf.run, "bpf_object__close", opened)
    programs = {name: _find(bpf, path, "program", name, opened) for name in _KINDS}
    for name, program in programs.items():
        kind, text = _KINDS[name]
        if (bpf.run("bpf_program__type", program), bpf.run("bpf_program__expected_attach_type", program)) != kind:
            raise _bad_object(path, f"its program {name} is not for the hook {text}")
    maps = {name: _find(bpf, path, "map", name, opened) for name in pins.MAPS}
    for name, bpf_map in maps.items():
        sizes = (bpf.run(f"bpf_map__{what}", bpf_map) for what in ("type", "key_size", "value_size"))
        if pins.MapKind(*sizes) != pins.MAPS[name]:
            raise _bad_object(path, f"its map {name} has another type, key or value than this version's")
    return opened, programs, maps


def _find(bpf: Libbpf, path: str, what: str, name: str, opened: t.Any) -> t.Any:
    found = bpf.run(f"bpf_object__find_{what}_by_name", opened, name.encode())
    if found == bpf.ffi.NULL:
        raise _bad_object(path, f"it has no {what} {name}")
    return found


def _forbid_looking(bpf: Libbpf, opened: t.Any) -> None:
    section = bpf.run("bpf_object__find_map_by_name", opened, _LOOK_SECTION.encode())
    if section != bpf.ffi.NULL:  # an older object never looks
        bpf.call("bpf_map__set_initial_value", section, b"\0", 1)


def _forget_pin_paths(bpf: Libbpf, opened: t.Any) -> None:
    """libbpf would pin maps that ask for it in their declaration, into the root of bpffs."""
    bpf_map = bpf.ffi.NULL
    while True:
        bpf_map = bpf.run("bpf_object__next_map", opened, bpf_map)
        if bpf_map == bpf.ffi.NULL:
            return
        bpf.call("bpf_map__set_pin_path", bpf_map, bpf.ffi.NULL)


def _pin(bpf: Libbpf, maps: t.Mapping[str, t.Any]) -> None:
    for name, bpf_map in maps.items():
        if not pins.exists(name):
            fd = bpf.call("bpf_map__fd", bpf_map)
            if name == pins.CONTROL:
                Map(bpf, name, fd).update(layout.INDEX.pack(0), layout.pack_control(layout.Control()))
            bpf.call("bpf_obj_pin", fd, pins.path(name).encode())


def _bad_object(path: str, why: str) -> LimiterError:
    remedy = "Give the limiter's own object, built by this version of the collection, or none to have it built"
    return LimiterError("bad_object", f"{path} is not a speed limiter's BPF object", why, remedy)


def _not_loaded(bpf: Libbpf, path: str, error: KernelError) -> LimiterError:
    if error.errno == errno.EPERM:
        return error
    remedy = "Build it on this kernel (speed_limit_program without object), and report this if it was"
    return LimiterError("load_failed", f"the kernel refused {path}", _with_log(bpf, error.why), remedy)


def _with_log(bpf: Libbpf, why: str) -> str:
    log = bpf.log(20)
    return f"{why}\n{log}\n" if log else why


def _in_short(bpf: Libbpf, why: str) -> str:
    """The errno, and the last line that says more than that it failed."""
    said = [line for line in bpf.log(20).splitlines() if not _NOISE.match(line)]
    return f"{why}: {said[-1]}" if said else why
