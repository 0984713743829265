# SPDX-License-Identifier: GPL-3.0-or-later
"""The object that the role builds on this kernel loads; and so does the one that it built on the first kernel.

Found: for each of the two, what each program came to on this kernel (bpf.Verified), or null where it refuses it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from step import BUILT, PINS, ROOT, Step, Wrong, main

sys.path.append(str(ROOT / "tests" / "kernel"))
import bpf

SETTLES = (6, 1)  # since when an iterator may set a socket's options, which settle_sockets does


def work(step: Step) -> None:
    step.playbook("object", setup_object_from="host")
    check(step, "built here", BUILT)
    shared = Path(step.options["shared_object"])
    if step.options["first"]:
        shutil.copy(BUILT, f"{shared}.new")
        os.rename(f"{shared}.new", shared)
        return
    print(f"waiting for the object that {step.options['first_name']} builds", flush=True)
    deadline = time.monotonic() + step.options["patience"]
    while not shared.exists():
        if shared.with_suffix(".failed").exists() or time.monotonic() > deadline:
            raise Wrong(f"there is no object of {step.options['first_name']} that could be loaded here")
        time.sleep(1)
    if not step.options["quick"]:  # else the step `playbook` does the same with this object
        step.playbook("object", setup_object_from="file", setup_object=str(shared))
    check(step, f"built on {step.options['first_name']}", shared)


def check(step: Step, origin: str, path: Path) -> None:
    found = bpf.verified(path)
    step.found[origin] = {name: one and one._asdict() for name, one in found.items()}
    for name, one in found.items():
        if one:
            print(f"{name}: {one.instructions} instructions verified, {one.xlated} bytes, {one.jited} as machine code")
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    refused = [name for name, one in found.items() if one is None]
    if refused != ([] if release >= SETTLES else ["settle_sockets"]):
        raise Wrong(
            f"the object {origin}: this kernel refuses {', '.join(refused) or 'nothing, not even settle_sockets'}"
        )
    links = sorted(path.name for path in PINS.glob("*_link"))
    wanted = sorted(f"{name}_link" for name in found if name not in refused)
    if links != wanted:
        raise Wrong(f"the object {origin}: the role attached {links}, not {wanted}")


main("object", work)
