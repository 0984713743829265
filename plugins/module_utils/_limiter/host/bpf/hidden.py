# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limiters that are attached, whatever is pinned. A mount may cover our pins, somebody may remove them, and a task in
another mount namespace pins into another bpffs: the kernel's own lists show what runs nevertheless.
"""

from __future__ import annotations

import typing as t

from ...core import catalog, layout, schemas
from ...core.leaves import own_rule
from . import pins
from .hooks import Hooks
from .libbpf import Libbpf, closing_fd
from .links import Links
from .maps import Map

_NAME_BYTES = 15  # of what the kernel keeps of a name


class Limiter(t.NamedTuple):
    """Something that limits; what belongs to it has the kernel's ids, under the names of the pins."""

    program_id: int
    cgroup: str | None  # where it is attached; None: outside of the mount
    schema: int
    maps: t.Mapping[str, int]
    links: t.Mapping[str, int]  # without `catalog.LIMIT.link` where it was attached without a link
    ours: bool  # it has rules whose cgroups are this host's, or none and is attached to all of the host

    @property
    def link(self) -> int | None:
        return self.links.get(catalog.LIMIT.link)

    def lacks(self) -> list[str]:
        """Pins without which nobody could go on with it."""
        wanted = [row.name for row in catalog.MAPS if row.since <= self.schema]
        return [name for name in (*wanted, catalog.LIMIT.link) if name not in self.maps and name not in self.links]


class _Link(t.NamedTuple):
    id: int
    type: int
    program_id: int
    cgroup_id: int
    attach_type: int


class _Map(t.NamedTuple):
    id: int
    value_size: int


def look(libbpf: Libbpf, mount: str, pinned: t.Container[int] = ()) -> list[Limiter]:
    """``pinned``: links that are ours whatever they limit. Raises KernelError."""
    links = [link for link in (_link(libbpf, number) for number in libbpf.link_ids()) if link]
    limiting = {link.program_id: link for link in links if _is_on(link, catalog.EGRESS) and link.cgroup_id}
    hooks = Hooks(libbpf, mount)
    alone = [number for number in hooks.attached("/") if number not in limiting]
    found = [_limiter(libbpf, mount, number, limiting.get(number), links, pinned) for number in (*limiting, *alone)]
    return [limiter for limiter in found if limiter]


def pinned_links(libbpf: Libbpf) -> list[int]:
    """The ids of the links of what limits that are pinned. Raises LimiterError as `pins.check`."""
    if not pins.is_mounted():
        return []
    pins.check(libbpf, schema=None)
    return [Links(libbpf).info(name).id for name in catalog.links([catalog.LIMIT]) if pins.exists(name)]


def pinned_control(libbpf: Libbpf) -> int | None:
    """The id of the control map that is pinned."""
    if not pins.is_mounted() or not pins.exists(catalog.CONTROL.name):
        return None
    with closing_fd(libbpf.get(pins.path(catalog.CONTROL.name))) as fd:
        return t.cast(int, libbpf.info(fd, "bpf_map_info").id)


def pin(libbpf: Libbpf, limiter: Limiter, names: t.Iterable[str]) -> None:
    """Pins what of a limiter has these names. Raises KernelError."""
    for name in names:
        kind, identifier = ("map", limiter.maps[name]) if name in limiter.maps else ("link", limiter.links[name])
        with libbpf.opened_by_id(kind, identifier) as fd:
            if fd is not None:  # else it ended meanwhile
                libbpf.call("bpf_obj_pin", fd, pins.path(name).encode())


def _link(libbpf: Libbpf, identifier: int) -> _Link | None:
    with libbpf.opened_by_id("link", identifier) as fd:
        if fd is None:
            return None
        info = libbpf.info(fd, "bpf_link_info")
        cgroup = info.type == catalog.CGROUP_LINK
        place = (info.cgroup_id, info.attach_type) if cgroup else (0, 0)
        return _Link(identifier, info.type, info.prog_id, *place)


def _is_on(link: _Link, hook: catalog.Hook) -> bool:
    if link.type != hook.link_type:
        return False
    return link.type != catalog.CGROUP_LINK or link.attach_type == hook.attach_type


def _limiter(
    libbpf: Libbpf,
    mount: str,
    program_id: int,
    link: _Link | None,
    links: t.Sequence[_Link],
    pinned: t.Container[int],
) -> Limiter | None:
    maps = _maps(libbpf, program_id, catalog.LIMIT)
    control = _control(libbpf, maps)
    if control is None:
        return None
    own = {catalog.LIMIT.link: link.id} if link else {}
    if link and control.pacing == layout.PACING_ON:
        for other in links:
            for program in (catalog.PACE, catalog.SETTLE):
                if _is_on(other, program.hook) and other.cgroup_id in (0, link.cgroup_id):
                    used = _maps(libbpf, other.program_id, program)
                    if any(maps.get(name) == found for name, found in used.items()):
                        own[program.link] = other.id
                        maps.update(used)
    cgroup = libbpf.cgroup_path_of(mount, link.cgroup_id) if link else "/"
    ours = (link is not None and link.id in pinned) or _is_ours(libbpf, mount, maps, cgroup)
    if schemas.is_known(control.schema):
        rows = {row.name: schemas.layout_of(row, control.schema) for row in catalog.MAPS}
        maps = {name: found for name, found in maps.items() if found.value_size == rows[name].value.size}
    ids = {name: found.id for name, found in maps.items()}
    return Limiter(program_id, cgroup, control.schema, ids, own, ours)


def _is_ours(libbpf: Libbpf, mount: str, maps: t.Mapping[str, _Map], cgroup: str | None) -> bool:
    """Whether its rules' own cgroups are among ours. Where it has no rules, whether it would limit all of this host."""
    any_rules = False
    if catalog.CONFIG.name in maps:
        with libbpf.opened_by_id("map", maps[catalog.CONFIG.name].id) as fd:
            for key, _value in Map(libbpf, catalog.CONFIG.name, fd).entries() if fd is not None else ():
                path = libbpf.cgroup_path_of(mount, layout.ID.unpack(key)[0])
                if path and own_rule(path):
                    return True
                any_rules = any_rules or path is not None
    return cgroup == "/" and not any_rules


def _maps(libbpf: Libbpf, program_id: int, program: catalog.ProgramRow) -> dict[str, _Map]:
    """Those of our maps that a program uses, where it has the name of ours."""
    rows = {row.name[:_NAME_BYTES]: row for row in catalog.MAPS}
    found: dict[str, _Map] = {}
    with libbpf.opened_by_id("prog", program_id) as fd:
        # What traces is one, too.
        names = [one.name[:_NAME_BYTES] for one in (program, catalog.TRACE) if one.hook == program.hook]
        if fd is None or _name(libbpf, libbpf.info(fd, "bpf_prog_info").name) not in names:
            return found
        for identifier in libbpf.maps_of(fd):
            with libbpf.opened_by_id("map", identifier) as map_fd:
                info = libbpf.info(map_fd, "bpf_map_info") if map_fd is not None else None
            row = rows.get(_name(libbpf, info.name)) if info else None
            if row and info and (info.type, info.key_size) == (row.type, row.key.size):
                found[row.name] = _Map(identifier, info.value_size)
    return found


def _name(libbpf: Libbpf, text: t.Any) -> str:
    return t.cast(bytes, libbpf.ffi.string(text)).decode("utf-8", "replace")


def _control(libbpf: Libbpf, maps: t.Mapping[str, _Map]) -> layout.Control | None:
    """What its control map says, if it is one of a limiter that works."""
    found = maps.get(catalog.CONTROL.name)
    if found is None or found.value_size != layout.CONTROL.size:
        return None
    with libbpf.opened_by_id("map", found.id) as fd:
        data = None if fd is None else Map(libbpf, catalog.CONTROL.name, fd).lookup(layout.INDEX.pack(0))
    control = layout.unpack_control(data) if data else None
    return control if control and control.schema >= min(schemas.FORMER) else None
