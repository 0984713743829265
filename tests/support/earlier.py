# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which the program of an earlier schema limits, as the collection of that time left it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout, schemas
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import tagging
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import places

from . import limiter
from .dataplane import compile_object


class Version(NamedTuple):
    """An object of that time."""

    schema: int
    path: str


def compiled(schema: int, directory: Path) -> Version:
    source = Path(__file__).resolve().parent / f"schema_{schema}.bpf.c"
    return Version(schema, str(compile_object(source, directory / f"schema_{schema}.o")))


def program(version: Version, pacing: bool = True) -> None:
    """Loads it, with maps of its own layout."""
    schema = version.schema
    maps = tuple(
        row._replace(value=schemas.layout_of(row, schema).value) if schemas.changed(row, schema) else row
        for row in catalog.MAPS
        if row.since <= schema
    )
    programs = tuple(row for row in catalog.PROGRAMS if not row.carries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "MAPS", maps)
        patch.setattr(catalog, "LIMITER", catalog.LIMITER._replace(programs=programs, maps=maps))
        patch.setattr(places, "complete", lambda host: None)
        limiter.program(object=version.path, pacing=pacing)
        with limiter.opened_maps() as pinned:
            pinned.write_control(pinned.control()._replace(schema=schema))


def rule(name: str, limit: Limit, *members: str, pids: tuple[int, ...] = ()) -> None:
    """A rule that limits these cgroups in place, and these processes."""
    cgroups = Cgroups.find()
    with limiter.opened_maps() as maps:
        made = _made(maps, cgroups, name, limit)
        for cgroup in members:
            identifier = cgroups.identifier(cgroup)
            assert identifier is not None
            maps.add_member(identifier, made)
        for pid in pids:
            cgroups.move(pid, cgroups.rule_cgroup(name))
            tagging.tag([pid], tagging.Tags(lambda fd: maps.tag_socket(fd, made)))
        maps.bump_generation()
        maps.bump_generation()


def rules(names: Iterable[str], limit: Limit) -> None:
    """Many, that nobody is in."""
    cgroups = Cgroups.find()
    with limiter.opened_maps() as maps:
        for name in names:
            _made(maps, cgroups, name, limit)


def fill(limit: Limit) -> None:
    """Rules whose cgroups are gone, until no more fit in."""
    with limiter.opened_maps() as maps:
        gone, there = 1 << 40, len(maps.limits())
        for rule in range(gone, gone + layout.MAX_RULES - there):
            _written(maps, rule, limit)
        with pytest.raises(LimiterError, match="is full"):
            _written(maps, gone - 1, limit)


def _made(maps: Maps, cgroups: Cgroups, name: str, limit: Limit) -> int:
    rule = cgroups.make_rule(name)
    _written(maps, rule, limit)
    return rule


def _written(maps: Maps, rule: int, limit: Limit) -> None:
    assert maps.is_earlier
    state = schemas.layout_of(catalog.STATE, maps.schema).value
    others = [0] * (len(state.unpack(bytes(state.size))) - 1)
    maps._state.update(layout.ID.pack(rule), state.pack(limit.bucket, *others))
    maps.add_member(rule, rule)
    maps.set_limit(rule, limit)
