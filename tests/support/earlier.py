# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which the program of an earlier schema limits, as the collection of that time left it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout, schemas
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import tagging
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import places

from . import limiter
from .dataplane import compile_object
from .scene import MBIT

RATE = 20 * MBIT
LIMIT = Limit(RATE, RATE // 4)
_RECORDED = Path(__file__).parents[1] / "unit/plugins/module_utils/earlier/host_of_schema_2.json"


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


@contextlib.contextmanager
def files_of_modules(version: Version, home: str, *pids: int) -> Iterator[None]:
    """What the modules of commit f3aae22 left in files, and as the name of the object that they loaded, once they had
    taken the first process into the rule ``web`` and made a rule for the second one alone: recorded, but for what is
    another one's here, and for the C, in whose place are empty files.
    """
    recorded = json.loads(_RECORDED.read_text())
    with limiter.opened_maps() as pinned:
        pinned.write_control(pinned.control()._replace(identity=recorded["identity"]))
    here = {recorded["boot_id"]: Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    here[f'"{recorded["home"]}"'] = f'"{home}"'
    for then, pid in zip(recorded["processes"], pids):
        process = processes.read(pid)
        assert process is not None
        here.update({str(then["pid"]): str(pid), str(then["start_time"]): str(process.start_time)})
    digest = hashlib.sha256(Path(version.path).read_bytes()).hexdigest()
    made = []
    for file in recorded["files"]:
        path, text = Path(file["path"]), file.get("text", "")
        for before, now in here.items():
            text = text.replace(before, now)
        if file["mode"].startswith("40"):
            path.mkdir(exist_ok=True)
        elif str(path) == build.OBJECT:
            shutil.copyfile(version.path, path)
        else:
            path.write_text(re.sub('(?<="sha256": ")[0-9a-f]+', digest, text))
        path.chmod(int(file["mode"], 8) & 0o7777)
        made.append(path)
    try:
        yield
    finally:
        for path in made:
            if path.is_file() and path.is_relative_to("/usr"):
                path.unlink()


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


@contextlib.contextmanager
def moved(version: Version) -> Iterator[limiter.Sender]:
    """A process whose sockets the earlier version has bound to the rule ``web``."""
    with limiter.clean_host(), limiter.senders("/home_of_moved") as (sender,):
        limit_by(version, sender)
        try:
            yield sender
        finally:
            limiter.purge("all")


def limit_by(version: Version, sender: limiter.Sender, pacing: bool = True) -> None:
    program(version, pacing)
    rule("web", LIMIT, pids=(sender.pid,))


def schema() -> int:
    """That of the maps that are pinned."""
    with limiter.opened_maps() as maps:
        return maps.schema
