# SPDX-License-Identifier: GPL-3.0-or-later
"""The worst cell of each kind of requests, pages and short connections, under this collection and some under htb.

Found: the figures of each cell and whether they meet its goal, which is no failure where they do not; and what failed:
cells that could not be measured, or broke a bound (tests/vm/world/bounds.py).
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.tests.vm.steps.step import Step, Wrong, main

# bpftool, ethtool and tc live in sbin, which is not on everyone's PATH.
os.environ["PATH"] += ":/usr/sbin:/sbin"


def work(step: Step) -> None:
    # Compiling takes longer than a cell. Before the imports: one of them reads this.
    if os.path.exists(step.options["shared_object"]):
        os.environ["LIMITER_OBJECT"] = step.options["shared_object"]
    from ansible_collections.speed_limiter.ebpf.bench import asking, traffic
    from ansible_collections.speed_limiter.ebpf.tests.support import net
    from ansible_collections.speed_limiter.ebpf.tests.vm.world import bounds, cells

    # By a clock that leaps ahead while a guest waits for a file, twenty seconds are nothing.
    traffic.DEADLINE = 600
    planned = cells.planned(step.options["quick"])
    wanted = cells.chosen(planned, step.options["cells"])
    if not wanted:
        raise Wrong("no cell has such a name")
    failed: list[str] = []
    step.found.update(planned=len(planned), goals=cells.goals(planned), cells=[])
    # From a file system of the guest's own: the share's files are read a page at a time, which its clock counts.
    programs = Path(shutil.copytree(step.options["programs"], "/run/world"))
    begin = time.monotonic()
    with net.Pair(receivers=False) as pair:
        asking.many_connections(pair)
        link = traffic.Link(pair, programs)
        for number, one in enumerate(wanted, 1):
            said = f"[{number}/{len(wanted)}  {time.monotonic() - begin:.0f} s] {cells.name(one)}: "
            try:
                stored = cells.measure(link, one, step.found["cells"])
            except Exception as error:
                # The others are worth their time all the same.
                failed.append(f"{cells.name(one)}: {error!r}")
                print(f"{said}FAILED: {error!r}", flush=True)
                continue
            missed = "MISSES ITS GOAL: " if stored["shaper"] in (bounds.OURS, bounds.FQ) and not stored["meets"] else ""
            busy = f", CPU {100 * stored['busy']:.0f} % busy" if "busy" in stored else ""
            print(f"{said}{missed}{stored['figure']}{busy}", flush=True)
            step.found["cells"].append(stored)
            if wrong := bounds.violated(stored):
                failed.append(f"{cells.name(one)}: {wrong}")
                print(f"{said}FAILED: {wrong}", flush=True)
            step.keep()
    if failed:
        raise Wrong("; ".join(failed))


main("world", work)
