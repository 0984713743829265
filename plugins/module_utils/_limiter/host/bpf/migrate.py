# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of an earlier version become this one's, while packets are limited and counted.

Maps whose layout is the same stay. Of the others new ones are pinned beside them (`pins.places`) and filled; the new
programs take the links of the old ones; what the old ones counted until then is carried over (bpf/carry.h); the
control map gets the new schema; the new pins take the places of the old ones. Who is killed before the links have
changed leaves what the next run removes, and who is killed later what it completes.
"""

from __future__ import annotations

import contextlib
import sys
import typing as t

from ...core import catalog, layout, schemas
from ...core.policy import Limit
from . import pins, places
from .libbpf import Libbpf, closing_fd
from .links import Links
from .maps import Map, Maps

_MOST = 16  # as CARRY_MOST in bpf/carry.h
_ETHERNET, _NOW = bytes(14), 8


class Migration:
    """From an earlier version's maps to this one's. Every method may raise KernelError."""

    def __init__(self, libbpf: Libbpf, links: Links, mount: str) -> None:
        self._libbpf, self._links, self._mount = libbpf, links, mount

    def is_unfinished(self) -> bool:
        return any(pins.exists(name) for name in catalog.PASSING)

    def fill(self, earlier: Maps, carry_fd: int) -> None:
        """Fills the new maps, which are pinned already; so is the program that carries over, from now on."""
        self._libbpf.call("bpf_obj_pin", carry_fd, pins.path(catalog.CARRY.name).encode())
        if earlier.schema < catalog.PLACE.since:
            with _opened(self._libbpf, catalog.PLACE.name) as new:
                for key, _value in new.entries():
                    new.delete(key)  # of a run that was killed before it switched
                for number, place in enumerate(places.of_members(earlier, self._path_of)):
                    new.update(layout.INDEX.pack(number), places.packed(place))
        for row in catalog.NEXT.values():
            if row is not catalog.STATE and row.kept and schemas.changed(row, earlier.schema):
                with _opened(self._libbpf, row.next) as new:
                    for key, value in earlier.entries(row):
                        new.update(key, schemas.taken_over(row, earlier.schema, value))
        if schemas.changed(catalog.STATE, earlier.schema):
            self._copy_states(earlier, carry_fd)

    def is_switched(self) -> bool:
        """Whether the program that limits uses the new maps."""
        new = set()
        for name in catalog.NEXT:
            if pins.exists(name):
                with _opened(self._libbpf, name) as opened:
                    new.add(self._libbpf.info(opened.fd, "bpf_map_info").id)
        links = [name for name in catalog.links([catalog.LIMIT]) if pins.exists(name)]
        return any(new & self._maps_of(self._links.info(name).prog_id) for name in links)

    def finish(self) -> bool:
        """Completes what was begun, or removes it where the links have not changed. Whether anything was begun."""
        if not self.is_unfinished():
            return False
        maps = Maps.open(self._libbpf, any_version=True)
        if maps is None:
            self.abandon()
            return True
        with maps:
            if not maps.is_known:
                return False  # that is its version's affair
            if maps.is_earlier and self.is_switched():
                self._carry(maps)
                maps.write_control(maps.control()._replace(schema=layout.SCHEMA))
            elif maps.is_earlier:
                self.abandon()
        for name, row in catalog.NEXT.items():
            if pins.exists(name):
                pins.rename(name, row.name)
        self.abandon()
        return True

    def abandon(self) -> None:
        """Removes what is only there while a layout changes."""
        pins.unpin(catalog.PASSING)

    def _path_of(self, cgroup_id: int) -> str | None:
        return self._libbpf.cgroup_path_of(self._mount, cgroup_id)

    def _copy_states(self, earlier: Maps, carry_fd: int) -> None:
        limits, moment = earlier.limits(), self._run(carry_fd, ())
        with _opened(self._libbpf, catalog.STATE.next) as states, _opened(self._libbpf, catalog.CARRIED.name) as notes:
            for key, value in earlier.entries(catalog.STATE):
                limit = limits.get(schemas.rule_of_state(earlier.schema, key, value))
                state, carried = schemas.first_copy(earlier.schema, value, moment, limit)
                notes.update(key, carried.pack())
                states.update(key, state)

    def _carry(self, earlier: Maps) -> None:
        """Twice: a packet may have been with the old program when the links changed."""
        if not pins.exists(catalog.CARRY.name):
            return
        limits = earlier.limits()
        with closing_fd(self._libbpf.get(pins.path(catalog.CARRY.name))) as fd:
            for _round in range(2):
                self._carry_once(fd, earlier, limits)

    def _carry_once(self, fd: int, earlier: Maps, limits: t.Mapping[int, Limit]) -> None:
        pending: list[bytes] = []
        with _opened(self._libbpf, catalog.CARRIED.name) as notes:
            carried = dict(notes.entries())
        for key, value in earlier.entries(catalog.STATE):
            if key not in carried:
                continue
            before = schemas.Carried.unpack(carried[key])
            limit = limits.get(schemas.rule_of_state(earlier.schema, key, value))
            more = schemas.to_carry(earlier.schema, value, before, limit)
            if more.tokens or any(more.counters):
                pending.append(more.pack_request(key))
            if len(pending) == _MOST:
                self._run(fd, pending)
                pending.clear()
        if pending:
            self._run(fd, pending)

    def _run(self, carry_fd: int, carries: t.Sequence[bytes]) -> int:
        """Runs the program that carries over; gives the kernel's CLOCK_MONOTONIC."""
        new = self._libbpf.ffi.new
        data = b"".join((_ETHERNET, bytes(_NOW), *carries))
        given, answer = self._libbpf.ffi.from_buffer(data), new("char[]", len(data))
        options = new("struct bpf_test_run_opts *")
        options.size = self._libbpf.ffi.sizeof(options[0])
        options.data_in, options.data_size_in = given, len(data)
        options.data_out, options.data_size_out = answer, len(data)
        self._libbpf.call("bpf_prog_test_run_opts", carry_fd, options)
        return int.from_bytes(self._libbpf.ffi.buffer(answer)[len(_ETHERNET) : len(_ETHERNET) + _NOW], sys.byteorder)

    def _maps_of(self, program_id: int) -> set[int]:
        """Their ids."""
        with self._libbpf.opened_by_id("prog", program_id) as fd:
            return set() if fd is None else set(self._libbpf.maps_of(fd))


@contextlib.contextmanager
def _opened(libbpf: Libbpf, name: str) -> t.Iterator[Map]:
    with closing_fd(libbpf.get(pins.path(name))) as fd:
        yield Map(libbpf, name, fd)
