# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kernel and every step: which guests run, when, and what came of them.

What does not measure runs first, two guests at once; then each kernel measures, alone where it has a real clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import fetch, image, machine

# Seconds that each may take, several times what it does in a guest without KVM beside another one; quick, and in full.
STEPS = {
    "object": (900, 1200),
    "playbook": (1200, 2400),
    "tests": (1200, 5 * 3600),
    "soak": (900, 2 * 3600),
    "distance": (900, 2 * 3600),
    "world": (1200, 2 * 3600),
}
MEASURING = ("distance", "world")
# A quick run has all others, unless it is told which: what these measure or try is tried by the step `tests`, or on the
# kernel of this machine, in fewer minutes.
NOT_QUICK = ("playbook", "soak", "world")
AT_ONCE = 2
FULL_TESTS = ["tests/kernel"]

Results = dict[str, dict[str, Any]]
_printing = threading.Lock()
_begin = time.monotonic()


def say(name: str, line: str) -> None:
    """A line of progress: when, of which kernel."""
    passed = int(time.monotonic() - _begin)
    with _printing:
        print(f"{passed // 60:3}:{passed % 60:02} {name:14} {line}", flush=True)


def usual_steps(quick: bool) -> list[str]:
    """Those of a run that is not told which."""
    return [step for step in STEPS if not (quick and step in NOT_QUICK)]


def quick_tests() -> list[str]:
    """What is tried on every kernel when anything changes; no guest looks for it in the other files."""
    files = sorted((machine.CHECKOUT / "tests/kernel").rglob("test_*.py"))
    marked = [path for path in files if re.search(r"every_kernel|\bcells\(", path.read_text("utf-8"))]
    return [*(str(path.relative_to(machine.CHECKOUT)) for path in marked), "-m", "every_kernel"]


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[None]:
    """One harness at a time uses a cache; the next one waits."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("", f"waiting for another run that uses {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for unfinished in cache.glob("unfinished-*"):
            shutil.rmtree(unfinished)
        yield


def run(
    wanted: list[tuple[str, str]],
    steps: list[str],
    quick: bool,
    cache: Path,
    cells: str = "",
    tests: list[str] | None = None,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """What came of each step on each kernel, by the kernel's name: see `Run.note`. ``cells``: which of the steps that
    measure, as a regular expression. ``tests``: other arguments of pytest than the step `tests` has for it. ``keep``
    gets what came of a kernel when its guest ends, so that who interrupts hours of work loses little of it.
    """
    directory = cache / "run"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    results: Results = {}
    for suite, series in wanted:
        name = f"{suite}-{series}"
        results[name] = {"wrong": None, "steps": {}}
        try:
            kernel = fetch.fetch(suite, series, cache)
        except (fetch.FetchError, subprocess.SubprocessError) as error:
            results[name]["wrong"] = str(error)
            say(name, f"FAILED: {error}")
            continue
        other = "" if kernel.release.startswith(series) else f"; {suite} has no {series} any more"
        say(name, f"Linux {kernel.release}, package {kernel.package}{other}")
        results[name].update(release=kernel.release, package=kernel.package, kernel=kernel)
    found = [name for name, result in results.items() if not result["wrong"]]
    if found:
        kvm, line = machine.find_accelerator(results[found[0]]["kernel"], directory / "kvm")
        say("", line)
        tests = tests or (quick_tests() if quick else FULL_TESTS)
        Run(directory, steps, quick, kvm, results, found[0], cells, tests, keep).all(found)
    for result in results.values():
        result.pop("kernel", None)
    return results


class Run:
    """The guests of one run."""

    def __init__(
        self,
        directory: Path,
        steps: list[str],
        quick: bool,
        kvm: bool,
        results: Results,
        first: str,
        cells: str,
        tests: list[str],
        keep: Callable[[Results], None],
    ) -> None:
        self.directory, self.steps, self.quick, self.kvm = directory, steps, quick, kvm
        self.results, self.first, self.cells, self.tests = results, first, cells, tests
        self.keep = keep
        shutil.copy(machine.HERE / "guest", directory / "guest")
        self.disk = image.make(directory)
        # Not in the guests, which would read all of a compiler through 9p to compile two files.
        self.programs = directory / "programs"
        self.programs.mkdir()
        command = [sys.executable, str(machine.CHECKOUT / "bench/programs.py"), str(self.programs)]
        subprocess.run(command, check=True, timeout=image.SECONDS)

    def all(self, names: list[str]) -> None:
        """Boots every kernel for what does not measure, and again for what does."""
        self.phase(names, [step for step in STEPS if step in self.steps and step not in MEASURING], AT_ONCE)
        # Without KVM their clocks are their own, and nothing else on the machine disturbs what they measure.
        self.phase(names, [step for step in MEASURING if step in self.steps], 1 if self.kvm else AT_ONCE)

    def phase(self, names: list[str], steps: list[str], at_once: int) -> None:
        """Boots every kernel once for these steps."""
        if not steps:
            return
        pool = ThreadPoolExecutor(at_once)
        try:
            list(pool.map(lambda name: self.guest(name, steps), names))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            machine.end_all()
            pool.shutdown()  # until what they were doing has been noted
            raise

    def guest(self, name: str, steps: list[str]) -> None:
        """Boots a kernel, runs steps in it, and notes what came of them."""
        kernel, directory = self.results[name]["kernel"], self.directory / name
        directory.mkdir(exist_ok=True)
        self.write_options(name)
        limits = {step: STEPS[step][0 if self.quick else 1] for step in steps}
        times: dict[str, float] = {}
        statuses: dict[str, str] = {}

        def limit(line: str) -> float | None:
            """A new time limit begins with each step, and with what is between. What tests print is another matter."""
            said = re.fullmatch(r"@(?:up \S+|(begin|end) (\w+):\d+ ?(\d*))", line)
            if not said or said[2] not in (None, *limits):
                return None
            word, step, status = said.groups()
            if word == "begin":
                times[step] = time.monotonic()
                return limits[step] + machine.GRACE
            if word == "end" and step in times:
                times[step] = time.monotonic() - times[step]
                statuses[step] = status
            return machine.GRACE

        measures = all(step in MEASURING for step in steps)
        guest = machine.Guest(kernel, directory, self.kvm, lambda line: say(name, line), limit, measures)
        # The clock of a guest that measures leaps ahead while it waits for a file.
        patience = 20 if measures else 1
        checkout = machine.CHECKOUT
        words = " ".join(f"{step}:{seconds * patience}" for step, seconds in limits.items())
        command = (
            "mkdir -p /run/job && mount -t 9p -o trans=virtio,version=9p2000.L,access=any job /run/job && "
            f"exec sh /run/job/guest /run/job {machine.quoted(checkout)} {name} {words}"
        )
        shares = [
            machine.Share("machine", Path("/")),
            machine.Share("checkout", checkout),
            machine.Share("kernel", kernel.modules.parent.parent),
            machine.Share("job", self.directory, writable=True),
        ]
        say(name, f"booting for {', '.join(steps)}")
        outcome = guest.run(command, shares, disk=self.disk)
        if outcome.wrong:
            say(name, f"FAILED: {outcome.wrong}")
        for step in steps:
            # What ends because the whole run does says nothing of the kernel, and is not kept in place of what does.
            if step in statuses or not machine.ending():
                self.note(name, step, times.get(step), statuses.get(step), outcome.wrong)
        self.keep({name: self.results[name]})
        if name == self.first and not self.shared_object.exists():
            self.shared_object.with_suffix(".failed").touch()

    @property
    def shared_object(self) -> Path:
        """What the first kernel's object step builds, for all others."""
        return self.directory / "limiter.o"

    def write_options(self, name: str) -> None:
        options = {
            "quick": self.quick,
            "first": name == self.first,
            "first_name": self.first,
            "shared_object": f"/tmp/run/{self.shared_object.name}",
            "programs": f"/tmp/run/{self.programs.name}",
            "patience": STEPS["object"][0] * 0.75,
            "cells": self.cells,
            "pytest": self.tests,
        }
        (self.directory / name / "options.json").write_text(json.dumps(options), encoding="utf-8")

    def note(self, name: str, step: str, seconds: float | None, status: str | None, wrong: str) -> None:
        """Takes the step's own result. One that did not end with 0 has failed, and so has one that left no result:
        why is what the guest died of, where it did.
        """
        path = self.directory / name / f"{step}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {"wrong": wrong or f"{step} left no result, and ended with {status}: see its lines above"}
        if status != "0" and not found.get("wrong"):
            found["wrong"] = wrong or f"{step} ended with {status}: see its lines above"
        found["seconds"] = round(seconds) if seconds and status else None
        self.results[name]["steps"][step] = found
