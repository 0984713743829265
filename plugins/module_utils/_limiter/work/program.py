# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program's life: built where it must be, loaded where it is not, upgraded, moved, unloaded."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..core import catalog, layout
from ..core import pacing as words
from ..core.errors import LimiterError
from ..core.model import Memory, Program
from ..host import kernel, memory, store
from ..host.bpf import build, pins
from ..host.bpf.maps import Maps
from . import pacing, places
from .host import Host


class Object(t.NamedTuple):
    """An object file to load. ``stale``: it has to be built first."""

    path: str
    identity: str
    stale: bool


@kernel.explained()
def choose_object(host: Host, prebuilt: str | None = None, copied: bool = False) -> Object:
    """The object to load: the prebuilt one that was named; else what is, or has to be, built from the source that came
    along.

    A host without a compiler loads the object that lies at its place: so one built elsewhere and copied there survives
    a reboot. ``copied`` takes such an object, which has no stamp, before one that would have to be built; but not what
    an earlier version of this collection needed.
    Raises LimiterError: ``no_object``, ``bad_object``, ``no_compiler``, ``no_btf``.
    """
    if prebuilt is not None:
        return _ready(host, prebuilt)
    if copied and os.path.isfile(build.OBJECT) and not os.path.exists(build.STAMP):
        try:
            return _ready(host, build.OBJECT)
        except LimiterError as error:
            if error.kind != "bad_object":
                raise
    try:
        inputs = build.inputs(host.run_command)
    except LimiterError as error:
        if error.kind != "no_compiler" or not os.path.isfile(build.OBJECT):
            raise
        return _without_compiler(host)
    return Object(build.OBJECT, inputs.identity, not build.up_to_date(inputs))


def _without_compiler(host: Host) -> Object:
    try:
        return _ready(host, build.OBJECT)
    except LimiterError as error:
        if error.kind != "bad_object":
            raise
        raise LimiterError(
            "bad_object",
            f"{build.OBJECT} is of another version of this collection, and this host has no compiler",
            error.why,
            "Run the role setup, which copies this version's object there, or speed_limit_program with object",
        ) from error


def _ready(host: Host, path: str) -> Object:
    build.check_owner(path)
    identity = build.identity_of_object(path)
    host.attachments.check_object(path)  # here, so that check mode refuses it, too
    return Object(path, identity, False)


class Loading(t.NamedTuple):
    """What is done, or would be, to load a program: in words, in order; and warnings."""

    done: list[str]
    warnings: list[str]
    behind: bool = False  # open connections could not follow: the next task tries again


@kernel.explained()
def load(host: Host, wanted: Object, cgroup: str, paced: bool = True) -> Loading:
    """Load, or replace without a gap; ``paced``: TCP, as far as the kernel can."""
    done = pins.ensure()
    if wanted.stale:
        build.build(host.run_command)
        done.append(f"built {wanted.path}")
    done.append(_loaded(host, wanted, cgroup, paced))
    host.complete()
    unpaced = layout.PACING_REFUSED if paced else layout.PACING_OFF  # also while it is changed: so it is known later

    def release() -> list[str]:
        return pacing.stop(host.attachments, host.opened_maps, unpaced)

    loaded = host.attachments.load(wanted.path, wanted.identity, cgroup, paced, release)
    host.refresh()
    places.complete(host)  # an earlier version had none
    after = pacing.follow(None) if loaded.paced else release()
    return Loading(done, [*loaded.warnings, *after], bool(after))


@kernel.explained()
def would_load(host: Host, wanted: Object, cgroup: str, paced: bool = True) -> Loading:
    """What load would do. Raises what load would raise, as far as it can be known without doing it."""
    host.attachments.refuse_exclusive(cgroup)
    if not os.path.exists(kernel.BTF):
        host.libbpf.run("btf__free", host.libbpf.pointer("btf__load_vmlinux_btf"))
    done = [] if pins.is_mounted() else [f"mounted bpffs at {pins.BPFFS}"]
    if done or not os.path.isdir(pins.directory()):
        done.append(f"made {pins.PIN_DIR}")
    if wanted.stale:
        build.check_headers(host.run_command)
        done.append(f"built {wanted.path}")
    return Loading([*done, _loaded(host, wanted, cgroup, paced)], [])


def _loaded(host: Host, wanted: Object, cgroup: str, paced: bool) -> str:
    carried = ", with the rules and counters of an earlier version" if host.is_earlier else ""
    return f"loaded {wanted.path}, attached to {cgroup}{'' if paced else ', without pacing'}{carried}"


def load_if_needed(host: Host) -> Loading:
    """What a rule task does where no program is loaded, or an earlier version's: that is replaced where it is."""
    if host.attachments.current() and not host.is_earlier:
        return Loading([], [])
    return load(host, choose_object(host, copied=True), *place(host))


def would_load_if_needed(host: Host) -> list[str]:
    """What load_if_needed would do where it is needed."""
    return would_load(host, choose_object(host, copied=True), *place(host)).done


def load_what_lies_there(host: Host, cgroup: str, paced: bool, departure: str = "auto") -> tuple[list[str], list[str]]:
    """What a boot does where no program is loaded: the object that lies there, whatever would be built now, since
    asking that takes a compiler. It is built only where it cannot be loaded. Returns what was done, and warnings.
    """
    if host.attachments.current() and not host.is_earlier:
        return [], []
    if not host.cgroups.exists(cgroup):
        raise LimiterError("no_cgroup", f"the program cannot be attached to {cgroup}", "there is no such cgroup yet")
    remembered, warnings = memory.read()
    with _settling(remembered):
        loaded = _load_what_lies_there(host, cgroup, paced)
    set_departure(host.opened_maps, departure)
    return loaded.done, [*warnings, *loaded.warnings]


def _load_what_lies_there(host: Host, cgroup: str, paced: bool) -> Loading:
    try:
        build.check_owner(build.OBJECT)
        identity = build.built_identity() or build.identity_of_object(build.OBJECT)
        return load(host, Object(build.OBJECT, identity, stale=False), cgroup, paced)
    except LimiterError as error:
        if error.kind not in ("no_object", "bad_object", "load_failed"):
            raise
        return _load_built(host, error, cgroup, paced)


def _load_built(host: Host, refusal: LimiterError, cgroup: str, paced: bool) -> Loading:
    try:
        wanted = Object(build.OBJECT, build.inputs(host.run_command).identity, stale=True)
        return load(host, wanted, cgroup, paced)
    except LimiterError as error:
        why = f"{refusal.why}; and it cannot be built here: {error.what}: {error.why}"
        raise LimiterError(refusal.kind, refusal.what, why, "The role setup brings one") from error


def place(host: Host) -> tuple[str, bool]:
    """The attach point of the program that is there, or the default, and whether sockets are to be paced."""
    current = host.attachments.current()
    return (current.cgroup, current.pacing != "off") if current else ("/", True)


class Change(t.NamedTuple):
    """What speed_limit_program does, or would do."""

    before: Program | None
    identity: str | None  # of the program afterwards; None: none
    cgroup: str | None
    pacing: t.Mapping[str, t.Any] | None  # afterwards, as core.pacing.about
    departure: str | None  # afterwards: "auto" or "off"
    done: tuple[str, ...]
    unenforced: tuple[str, ...]  # rules that nothing enforces any more
    warnings: tuple[str, ...]


def attach(
    host: Host, prebuilt: str | None, cgroup: str, paced: bool, reload: bool, check: bool, departure: str = "auto"
) -> Change:
    """Have the program loaded and attached to ``cgroup``; ``reload`` does it even when nothing differs.

    Where the kernel has refused pacing, it is not asked again until something differs.
    """
    if not host.cgroups.exists(cgroup):
        raise LimiterError(
            "no_cgroup",
            f"cgroup_path: {cgroup} does not exist",
            "ENOENT (No such file or directory)",
            "Give an existing cgroup",
        )
    before = host.attachments.current()
    wanted = choose_object(host, prebuilt)
    remembered, warnings = memory.read()
    if (
        before is not None
        and (before.identity, before.cgroup) == (wanted.identity, cgroup)
        and (before.pacing != "off") == paced
        and not wanted.stale
        and not host.is_earlier
        and not reload
        and not host.attachments.unfinished()
    ):
        if not check:
            host.complete()  # a trace that was killed
        if remembered.settling and not check:
            problems = pacing.follow(None)
            warnings += problems
            if not problems:
                _settled(remembered)
        now = words.about(pacing.ability(host, before))
        done = tuple(_switch_departure(host, departure, check))
        return Change(before, wanted.identity, cgroup, now, departure, done, (), tuple(warnings))
    if check:
        after = "off" if not paced else "refused" if _would_refuse(host, wanted, cgroup, before) else "on"
        done = (
            *would_load(host, wanted, cgroup, paced).done,
            *_switch_departure(host, departure, check),
        )
        then = words.about(pacing.would_be(host, after, cgroup, before))
        return Change(before, wanted.identity, cgroup, then, departure, done, (), tuple(warnings))
    with _settling(remembered) as settled:
        loaded = load(host, wanted, cgroup, paced)
        settled.append(not loaded.behind)
    switched = _switch_departure(host, departure, check)
    now = words.about(pacing.ability(host, host.attachments.current()))
    warnings += loaded.warnings
    return Change(before, wanted.identity, cgroup, now, departure, (*loaded.done, *switched), (), tuple(warnings))


def departure_of(host: Host) -> str:
    """Whether packets may wait in their device's queue, also while no program is loaded: "auto" or "off"."""
    return "off" if host.maps and host.maps.control().departure == layout.DEPARTURE_OFF else "auto"


def set_departure(maps: Maps, wanted: str) -> None:
    """Says to the program whether packets may wait in their device's queue: "auto" or "off"."""
    number = layout.DEPARTURE_OFF if wanted == "off" else layout.DEPARTURE_AUTO
    control = maps.control()
    if control.departure != number:
        maps.write_control(control._replace(departure=number))


def _switch_departure(host: Host, wanted: str, check: bool) -> list[str]:
    if departure_of(host) == wanted:
        return []
    if not check:
        set_departure(host.opened_maps, wanted)
    return [f"switched departure times {'off' if wanted == 'off' else 'on'}"]


def _would_refuse(host: Host, wanted: Object, cgroup: str, before: Program | None) -> bool:
    """Whether the kernel would refuse to pace. Where it did before, and one cannot see why, it is asked."""
    attachments = host.attachments
    if attachments.refuses_pacing(cgroup):
        return True
    if before is None or before.pacing != "refused" or attachments.refuses_pacing(before.cgroup):
        return False
    # What is not built yet, or needs other maps, is much like what was refused.
    return wanted.stale or host.is_earlier or attachments.refuses_object(wanted.path)


@contextlib.contextmanager
def _settling(remembered: Memory) -> t.Iterator[list[bool]]:
    """Written down before anything is done: from the new program on, sockets that are open already have to be settled.
    Who is killed before they are leaves that to the next run, of whatever module.
    """
    if not remembered.settling:
        memory.write(remembered._replace(settling=True))
    settled: list[bool] = []  # whether they were
    try:
        yield settled
    except BaseException:
        with contextlib.suppress(LimiterError, OSError):
            # What was undone may have lasted long enough to be seen by some.
            if not pacing.follow(None):
                _settled(remembered)
        raise
    if all(settled):
        _settled(remembered)


def _settled(remembered: Memory) -> None:
    """But for processes that a rule task was moving: the next one tags their sockets, and has to settle them again."""
    memory.write(remembered._replace(settling=bool(remembered.in_transit)))


def detach(host: Host, check: bool) -> Change:
    """Unload the program. The maps stay while there are rules: loading it again enforces them again."""
    before = host.attachments.current()
    rules = host.cgroups.rule_names()
    done: list[str] = []
    warnings: list[str] = []
    if before or any(pins.exists(name) for name in catalog.LINKS):
        where = before.cgroup if before else "a cgroup that is gone, or one that a killed task had not finished with"
        done.append(f"unloaded the program from {where}")
        if not check:
            host.complete()
            warnings = unload(host)
        stored = sorted(store.read().files)
        if stored:
            warnings = [*warnings, f"the next boot loads it again, for the rules that are stored: {', '.join(stored)}"]
    if not rules and host.maps is not None:
        done.append(MAPS_REMOVED)
        if not check:
            host.attachments.remove_maps()
    return Change(before, None, None, None, None, tuple(done), tuple(rules) if before else (), tuple(warnings))


def unload(host: Host) -> list[str]:
    """Release every socket, then detach the programs. What limits goes last: until then the next run sees what is left
    to do. Returns warnings.
    """
    warnings = pacing.stop(host.attachments, host.maps or host.other_maps, layout.PACING_OFF)
    host.attachments.unload()
    return warnings


ABSENT = "program: absent\n"
MAPS_REMOVED = "removed the maps"


def program_line(identity: str, cgroup: str | None, paced: bool, departure: str | None = "auto") -> str:
    """``program: source:0123456789ab, attached to /, pacing on``: what is wanted, also where the kernel refuses it."""
    kind, _colon, digits = identity.partition(":")
    short = f"{kind}:{digits[:12]}" if digits else kind
    waits = ", departure off" if departure == "off" else ""
    return f"program: {short}, attached to {cgroup}, pacing {'on' if paced else 'off'}{waits}\n"
