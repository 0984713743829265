# SPDX-License-Identifier: GPL-3.0-or-later
"""The object that is built on this kernel loads; and so does the one that was built on the first kernel.

The role builds it, or, where it is to be quick, what the role calls.

Found: for each of the two, what each program came to on this kernel (bpf.Verified), or null where it refuses it.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter
from ansible_collections.speed_limiter.ebpf.tests.vm.steps.step import BUILT, PINS, Step, Wrong, main

SETTLES = (6, 1)  # since when an iterator may set a socket's options, which settle_sockets does


def work(step: Step) -> None:
    quick, built = step.options["quick"], step.directory / "built.o"
    if quick:
        build.build(limiter.run_command)
    else:
        step.playbook("object", setup_object_from="host")
        attached(step)
    check(step, "built here", BUILT)
    shutil.copy(BUILT, built)
    shared = Path(step.options["shared_object"])
    if step.options["first"]:
        shutil.copy(built, f"{shared}.new")
        os.rename(f"{shared}.new", shared)
        return
    print(f"waiting for the object that {step.options['first_name']} builds", flush=True)
    deadline = time.monotonic() + step.options["patience"]
    while not shared.exists():
        if shared.with_suffix(".failed").exists() or time.monotonic() > deadline:
            raise Wrong(f"there is no object of {step.options['first_name']} that could be loaded here")
        time.sleep(1)
    if not quick:
        step.playbook("object", setup_object_from="file", setup_object=str(shared))
        attached(step)
    check(step, f"built on {step.options['first_name']}", shared)


def here() -> list[str]:
    """The programs that are to be attached on this kernel."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return ["limit_egress", "pace_sockets", *(["settle_sockets"] if release >= SETTLES else [])]


def attached(step: Step) -> None:
    """What the role loaded must be there."""
    links = sorted(path.name for path in PINS.glob("*_link"))
    if links != [f"{name}_link" for name in here()]:
        raise Wrong(f"the role attached {links}")


def check(step: Step, origin: str, path: Path) -> None:
    """Notes what the programs of an object come to on this kernel."""
    found = bpf.verified(path)
    step.found[origin] = {name: one and one._asdict() for name, one in found.items()}
    for name, one in found.items():
        if one:
            print(f"{name}: {one.instructions} instructions verified, {one.xlated} bytes, {one.jited} as machine code")
    optional = {tracer.name for tracer in catalog.TRACERS if tracer.refused}
    taken = sorted(name for name, one in found.items() if one and name not in optional)
    if taken != sorted(["carry_over", catalog.TRACE.name, *here()]):
        raise Wrong(f"the object {origin}: this kernel takes {', '.join(taken) or 'nothing'} of it")


main("object", work)
