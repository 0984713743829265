# SPDX-License-Identifier: GPL-3.0-or-later
"""What a packet costs that no rule holds for: with patterns and without, and the first one of a new cgroup.

The kernel runs each program on a packet of this process (BPF_PROG_TEST_RUN), whose socket is made in the process's
cgroup. Programs take turns. The least of several times is what counts: whatever else runs only adds to it. First
packets find cold caches, and their times include what taking the time costs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import load
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Map
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, dataplane, earlier, limiter

from .cost import HERE, in_cgroup

BEFORE_PATTERNS = 3  # the last schema without them
PATTERNS = 10_000
PARENT = "many.slice"
LIMIT = Limit(125_000_000, 125_000_000)
Stored = dict[str, Any]


def measure(quick: bool) -> Stored:
    """Nanoseconds, by what is there beside the cgroup without a rule: a hot packet; the first one of a new cgroup, with
    caches as they are after that was made; and one whose cgroup's rules are looked for anew.
    """
    rounds, packets, cgroups = (5, 50_000, 50) if quick else (30, 200_000, 500)
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(_cgroup(dataplane.cgroup2() / PARENT))
        ruled = stack.enter_context(_cgroup(parent / "ruled.service"))
        programs = {what: stack.enter_context(_kept(make, ruled)) for what, make in _SCENES.items()}
        hot: dict[str, list[int]] = {what: [] for what in programs}
        first: dict[str, list[int]] = {what: [] for what in programs}
        anew: dict[str, list[int]] = {what: [] for what in programs}
        unruled = stack.enter_context(_cgroup(parent / "unruled.service"))
        with in_cgroup(unruled):
            for _round in range(rounds):
                for what, program in programs.items():
                    hot[what].append(bpf.test_run(program, packets))
            for what, program in programs.items():
                with _stale(program) as forget:
                    for _packet in range(cgroups):
                        forget()
                        anew[what].append(bpf.test_run(program, 1))
        for number in range(cgroups):
            with _cgroup(parent / f"new-{number}.service") as new, in_cgroup(new):
                for what, program in programs.items():
                    first[what].append(bpf.test_run(program, 1))
    rows = [
        {
            "scene": what,
            "hot": min(hot[what]),
            "anew": min(anew[what]),
            "first": min(first[what]),
            "first_median": round(statistics.median(first[what])),
        }
        for what in programs
    ]
    return {"rows": rows, "rounds": rounds, "cgroups": cgroups, "patterns": PATTERNS}


@contextlib.contextmanager
def _cgroup(path: Path) -> Iterator[Path]:
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextlib.contextmanager
def _kept(make: Callable[[Path, Path], int], ruled: Path) -> Iterator[int]:
    """A program with its maps as they were made; it is attached no more, so that the next one is alone."""
    with tempfile.TemporaryDirectory() as directory:
        program = make(ruled, Path(directory))
    shutil.rmtree(memory.DIRECTORY, ignore_errors=True)
    if Path(pins.PIN_DIR).exists():
        shutil.rmtree(pins.PIN_DIR)
    for rule in (dataplane.cgroup2() / "speed_limiter").glob("*/"):
        rule.rmdir()
    try:
        yield program
    finally:
        os.close(program)


def _least(_ruled: Path, directory: Path) -> int:
    return dataplane.load_program(dataplane.compile_object(HERE / "pass.bpf.c", directory / "pass.bpf.o"), "pass")


def _before_patterns(ruled: Path, directory: Path) -> int:
    earlier.program(earlier.compiled(BEFORE_PATTERNS, directory))
    earlier.rule("ruled", LIMIT, f"/{PARENT}/{ruled.name}")
    return _loaded()


def _no_patterns(_ruled: Path, _directory: Path) -> int:
    limiter.rule(name="ruled", rate=LIMIT.rate)
    return _loaded()


def _patterns(stars: int) -> int:
    """All at the node of the cgroup above: a name is looked for among all names, then compared with each star."""
    names = [f"star-{number}*.slice" for number in range(stars)]
    names += [f"unit-{number}.service" for number in range(PATTERNS - stars)]
    limiter.rule(name="ruled", rate=LIMIT.rate, cgroup_paths=[f"/{PARENT}/{name}" for name in names])
    return _loaded()


_SCENES: dict[str, Callable[[Path, Path], int]] = {
    "returns 1": _least,
    "before there were patterns": _before_patterns,
    "no pattern": _no_patterns,
    f"{PATTERNS:,} patterns": lambda _ruled, _directory: _patterns(0),
    f"{PATTERNS:,}, {layout.MAX_SHAPES} with a star": lambda _ruled, _directory: _patterns(layout.MAX_SHAPES),
}


@contextlib.contextmanager
def _stale(program: int) -> Iterator[Callable[[], None]]:
    """What makes all answers stale that the program has kept, as a change of rules does."""
    library, generations = load(), itertools.count(1)
    with contextlib.ExitStack() as stack:
        maps = [stack.enter_context(library.opened_by_id("map", number)) for number in library.maps_of(program)]
        names = {library.ffi.string(library.info(fd, "bpf_map_info").name): fd for fd in maps if fd is not None}
        fd = names.get(catalog.CONTROL.name[:15].encode())
        control = None if fd is None else Map(library, catalog.CONTROL.name, fd)

        def forget() -> None:
            if control is not None:
                found = layout.unpack_control(control.lookup(layout.INDEX.pack(0)) or b"")
                control.update(layout.INDEX.pack(0), layout.pack_control(found._replace(generation=next(generations))))

        yield forget


def _loaded() -> int:
    """The program that limits; the caller closes the descriptor."""
    link = load().get(pins.path("limit_egress_link"))
    try:
        return bpf.program_by_id(load().info(link, "bpf_link_info").prog_id)
    finally:
        os.close(link)
