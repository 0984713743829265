# SPDX-License-Identifier: GPL-3.0-or-later
"""Random tasks, kills, forks and traffic (tests/soak). Found: how many steps there were, and the seed that makes them
again.
"""

from __future__ import annotations

import os
import re
import sys

from ansible_collections.speed_limiter.ebpf.tests.vm.steps.step import Step, Wrong, main, running

# Quick, and in full.
MINUTES = {True: 3, False: 60}


def work(step: Step) -> None:
    shared = step.options["shared_object"]
    # Compiling takes a guest a minute.
    ours = {"LIMITER_OBJECT": shared} if os.path.exists(shared) else {}
    minutes = str(MINUTES[step.options["quick"]])
    last = ""
    with running([sys.executable, "tests/soak/run", "--minutes", minutes], {**os.environ, **ours}) as process:
        assert process.stdout
        for line in process.stdout:
            last = line.rstrip()
            print(last, flush=True)
            if seed := re.match(r"soak: seed (\d+), ", last):
                step.found["seed"] = int(seed[1])
    steps = re.match(r"(\d+) steps, 0 violations; (\d+) measurements of (\d+) bytes", last)
    if process.returncode or not steps:
        raise Wrong(f"the run ended with {process.returncode}: {last}")
    step.found.update(soaked=int(steps[1]), minutes=int(minutes))


main("soak", work)
