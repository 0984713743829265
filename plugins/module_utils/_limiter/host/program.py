# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program's life: built where it must be, loaded where it is not, upgraded, moved, unloaded."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Program
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import build, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.host import Host


class Object(t.NamedTuple):
    """An object file to load. ``stale``: it has to be built first."""

    path: str
    identity: str
    stale: bool


def choose_object(host: Host, prebuilt: str | None = None, copied: bool = False) -> Object:
    """The object to load: the prebuilt one that was named; else what is, or has to be, built from the source that came
    along.

    A host without a compiler loads the object that lies at its place: so one built elsewhere and copied there survives
    a reboot. ``copied`` takes such an object, which has no stamp, before one that would have to be built.
    Raises LimiterError: ``no_object``, ``bad_object``, ``no_compiler``, ``no_btf``.
    """
    if prebuilt is not None:
        return _ready(host, prebuilt)
    if copied and os.path.isfile(build.OBJECT) and not os.path.exists(build.STAMP):
        return _ready(host, build.OBJECT)
    try:
        inputs = build.inputs(host.run_command)
    except LimiterError as error:
        if error.kind != "no_compiler" or not os.path.isfile(build.OBJECT):
            raise
        return _ready(host, build.OBJECT)
    return Object(build.OBJECT, inputs.identity, not build.up_to_date(inputs))


def _ready(host: Host, path: str) -> Object:
    build.check_owner(path)
    identity = build.identity_of_object(path)
    host.programs.check_object(path)  # here, so that check mode refuses it, too
    return Object(path, identity, False)


def load(host: Host, wanted: Object, cgroup: str) -> list[str]:
    """Load, or replace without a gap; what was done, in words, in order."""
    done = pins.ensure()
    if wanted.stale:
        build.build(host.run_command)
        done.append(f"built {wanted.path}")
    host.programs.load(wanted.path, wanted.identity, cgroup)
    host.refresh()
    return [*done, f"loaded {wanted.path}, attached to {cgroup}"]


def would_load(host: Host, wanted: Object, cgroup: str) -> list[str]:
    """What load would do. Raises what load would raise, as far as it can be known without doing it."""
    host.programs.refuse_exclusive(cgroup)
    done = [] if pins.is_mounted() else [f"mounted bpffs at {pins.BPFFS}"]
    if done or not os.path.isdir(pins.PIN_DIR):
        done.append(f"made {pins.PIN_DIR}")
    if wanted.stale:
        build.check_headers(host.run_command)
        done.append(f"built {wanted.path}")
    return [*done, f"loaded {wanted.path}, attached to {cgroup}"]


def load_if_absent(host: Host) -> list[str]:
    """What a rule task does on a host where no program is loaded."""
    return [] if host.programs.current() else load(host, choose_object(host, copied=True), "/")


def would_load_if_absent(host: Host) -> list[str]:
    """What load_if_absent would do where no program is loaded."""
    return would_load(host, choose_object(host, copied=True), "/")


class Change(t.NamedTuple):
    """What speed_limit_program does, or would do."""

    before: Program | None
    identity: str | None  # of the program afterwards; None: none
    cgroup: str | None
    done: tuple[str, ...]
    unenforced: tuple[str, ...]  # rules that nothing enforces any more


def attach(host: Host, prebuilt: str | None, cgroup: str, reload: bool, check: bool) -> Change:
    """Have the program loaded and attached to ``cgroup``; ``reload`` does it even when nothing differs."""
    if not host.cgroups.exists(cgroup):
        raise LimiterError(
            "no_cgroup",
            f"cgroup_path: {cgroup} does not exist",
            "ENOENT (No such file or directory)",
            "Give an existing cgroup",
        )
    before = host.programs.current()
    wanted = choose_object(host, prebuilt)
    as_wanted = (
        before is not None
        and (before.identity, before.cgroup) == (wanted.identity, cgroup)
        and not wanted.stale
        and not pins.exists(pins.NEW_LINK)
    )
    done: list[str] = []
    if reload or not as_wanted:
        done = would_load(host, wanted, cgroup) if check else load(host, wanted, cgroup)
    return Change(before, wanted.identity, cgroup, tuple(done), ())


def detach(host: Host, check: bool) -> Change:
    """Unload the program. The maps stay while there are rules: loading it again enforces them again."""
    before = host.programs.current()
    rules = host.cgroups.rule_names()
    done: list[str] = []
    if before or pins.exists(pins.LINK) or pins.exists(pins.NEW_LINK):
        where = before.cgroup if before else "a cgroup that is gone, or half way by a run that was killed"
        done.append(f"unloaded the program from {where}")
        if not check:
            host.programs.unload()
    if not rules and host.maps is not None:
        done.append("removed the maps")
        if not check:
            host.programs.remove_maps()
    return Change(before, None, None, tuple(done), tuple(rules) if before else ())


def program_line(identity: str | None, cgroup: str | None) -> str:
    """``program: source:0123456789ab, attached to /``."""
    if identity is None:
        return "program: absent\n"
    kind, _colon, digits = identity.partition(":")
    return (
        f"program: {kind}:{digits[:12]}, attached to {cgroup}\n"
        if digits
        else f"program: {kind}, attached to {cgroup}\n"
    )
