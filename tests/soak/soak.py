# SPDX-License-Identifier: GPL-3.0-or-later
"""Random steps on a host that is limited, and after each what must always hold."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with

from . import check, tasks
from .meters import Budget, Meters
from .model import Hold, Member
from .tasks import Host, Task
from .world import MOST_PROCESSES, Service, World

MOST_STEPS_OF_A_TASK = 60  # the later ones are rarely reached
RETRIES = 20
# How often a task meets each fate.
FATES = {
    "done": 60,
    "checked": 10,
    "again": 6,
    "killed": 10,
    "killed at any time": 5,
    "refused": 5,
    "interrupted": 4,
    "twice at once": 2,
}


class Violation(Exception):
    """What must hold does not."""


class Soak:
    """One run; `step` does one step, and raises Violation."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.dice = world, random.Random(seed)
        self.host = Host()
        self.tidy = True
        self.meters = Meters()
        self.done: collections.Counter[str] = collections.Counter()
        self.text = "the beginning"
        self._counted = check.counted()
        self._keep: list[tuple[list[Budget], list[Budget]]] = []  # what pays before a step, and if a task succeeds
        self._pins: dict[str, list[str]] = {"none": []}

    def begin(self) -> None:
        """The program is loaded, and what is pinned then is known."""
        limiter.program()
        self._pins["on"] = os.listdir("/sys/fs/bpf/speed_limiter")
        limiter.program(pacing=False)
        self._pins["off"] = os.listdir("/sys/fs/bpf/speed_limiter")
        limiter.program()
        self.memlock = check.memlock()
        self._pins["maps"] = [name for name in self._pins["on"] if name.endswith("_map")]
        self.host = Host(program="on", maps=True)
        self._run(tasks.steady(), "done")
        self.look()

    def step(self) -> None:
        self._keep = [self._budgets()]
        if self.dice.random() < 0.25:
            self._change_world()
        else:
            self._run(tasks.make(self.dice, self.host, self.members, self._ids()), self._fate())
        self.look()

    @property
    def members(self) -> dict[int, Member]:
        return self.world.members()

    def _fate(self) -> str:
        return self.dice.choices(list(FATES), list(FATES.values()))[0]

    # ---- tasks

    def _run(self, task: Task, fate: str) -> None:
        self.text = f"{task.text}: {fate}"
        wanted = task.after(self.host, self.members)
        # Whatever comes of it, only what is the same if it succeeds can be measured across it.
        self._keep.append(self._budgets(wanted))
        if fate == "done":
            self._finish(task, wanted)
        elif fate == "checked":
            self._check(task, wanted)
        elif fate == "again":
            if self._finish(task, wanted) and task.settles:
                result = task.work(False)
                self._demand(not result["changed"], f"the same task changes something again: {result}")
        else:
            if self._spoil(task, fate):
                self._send_home()
            if self.dice.random() < 0.4:
                self._between()
            self._finish(task, task.after(self.host, self.members))
            self.done[f"task {fate}"] += 1

    def _finish(self, task: Task, wanted: Host) -> bool:
        """Whether it was not refused."""
        try:
            self._work(task)
        except LimiterError as error:
            self._refused(error)
            return False
        self.done["tasks"] += 1
        self.host = wanted
        if task.text == "purge stale":
            self.tidy = True
        return True

    def _work(self, task: Task) -> dict[str, Any]:
        """A task, again if it says that it had no time to reach all: other work may keep this machine busy."""
        result = task.work(False)
        for _try in range(RETRIES):
            if not result.get("unenforced"):
                return result
            self.done["told to be unenforced"] += 1
            again = task.work(False)
            result = {**result, "unenforced": again["unenforced"]}
        raise Violation(f"unenforced is not empty: {result['unenforced']}")

    def _refused(self, error: LimiterError) -> None:
        self._demand(error.kind in tasks.REFUSALS, f"{error.kind}: {error}")
        self.done[f"refused: {error.kind}"] += 1

    def _check(self, task: Task, wanted: Host) -> None:
        pids = list(self.members)
        before = limiter.snapshot(*pids)
        try:
            said = task.work(True)
        except LimiterError as error:
            self._refused(error)
            said = None
        self._demand(limiter.snapshot(*pids) == before, "check mode changes something")
        if said is None:
            self._demand(not self._finish(task, wanted), "check mode refuses what can be done")
            return
        try:
            result = self._work(task)
        except LimiterError as error:
            raise Violation(f"check mode did not tell of {error.kind}: {error}") from error
        for key in ("changed", "diff"):
            self._demand(result[key] == said[key], f"check mode said of {key}: {said[key]}; then: {result[key]}")
        self.done["tasks checked"] += 1
        self.host = wanted

    def _spoil(self, task: Task, fate: str) -> bool:
        """Does it so that what comes of it is known only when it has been done again. Whether it warned."""
        self.tidy = False
        if fate == "killed at any time":
            self._at_once(task, 1, self.dice.random() * 0.2)
            return False
        if fate == "twice at once":
            self._at_once(task, 2, None)
            return False
        faults = {"killed": Fault.KILLED, "refused": Fault.REFUSED, "interrupted": Fault.INTERRUPTED}
        step = int(self.dice.random() ** 2 * MOST_STEPS_OF_A_TASK)
        end, said = run_with(faults[fate], step, lambda: task.work(False))
        self.text += f" before step {step}: {end.value} {said}"
        if end is End.DONE and said == UNTOUCHED:
            self.done["task with fewer steps"] += 1
        return end is End.DONE and said not in ("", UNTOUCHED)

    def _send_home(self) -> None:
        """The kernel refused to move some process, and the task did the rest and said so: all begin at home again."""
        members = self.members
        moved = [pid for pid, place in limiter.snapshot(*members).places.items() if place != members[pid].home]
        if moved:
            options = {"pids": moved, "state": "absent", "children": False}
            limiter.rule(**options)
            limiter.purge("stale")  # who could not leave the leaf of a rule that has gone
            self.host = self.host._replace(wanted=self.host.wanted.after(options, members).only(()))

    def _at_once(self, task: Task, count: int, seconds: float | None) -> None:
        children = [self._child(task) for _number in range(count)]
        if seconds is not None:
            time.sleep(seconds)
            for child in children:
                os.kill(child, signal.SIGKILL)
        for child in children:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self._demand(status in (0, -signal.SIGKILL), f"a task ended with {status}; its error is above")

    @staticmethod
    def _child(task: Task) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            task.work(False)
            status = 0
        except LimiterError as error:
            status = 0 if error.kind in tasks.REFUSALS else 1
            if status:
                print(f"{error.kind}: {error}", flush=True)
        finally:
            os._exit(status)

    def _between(self) -> None:
        """Before a task that was spoiled is done again, somebody else does something."""
        chosen = self.dice.choice(["info", "stale", "renew"])
        self.text += f", then {chosen}"
        if chosen == "info":
            limiter.info()
        elif chosen == "stale":
            limiter.purge("stale")
            self.host = tasks.without_stale(self.host, self.members)
        else:
            self._renew(self.dice.choice(self.world.services))

    # ---- the world

    def _change_world(self) -> None:
        changes: dict[str, tuple[float, Callable[[Service], None]]] = {
            "fork": (5, self._fork),
            "kill": (4, self._kill),
            "renew": (4, self._renew),
            "restart": (2, self._restart),
            "info": (3, lambda service: self._info()),
        }
        name = self.dice.choices(list(changes), [weight for weight, _change in changes.values()])[0]
        service = self.dice.choice(self.world.services)
        self.text = f"{name} of {service.home}"
        changes[name][1](service)
        self.done[name] += 1
        members = self.members
        self.host = self.host._replace(wanted=self.host.wanted.only(members))

    def _fork(self, service: Service) -> None:
        if service.process and len(service.pids) < MOST_PROCESSES:
            parent = service.process.pid
            child = service.order("fork")
            rule = self.host.wanted.inside.get(parent)
            if rule is not None:
                inside = {**self.host.wanted.inside, child: rule}
                self.host = self.host._replace(wanted=self.host.wanted._replace(inside=inside))

    def _kill(self, service: Service) -> None:
        if service.pids and service.link:
            self.tidy = False
            service.kill(self.dice.choice(service.pids))

    def _renew(self, service: Service) -> None:
        if service.process:
            service.order("renew")

    def _restart(self, service: Service) -> None:
        self.tidy = False
        service.end()
        service.start()

    def _info(self) -> None:
        told = {rule["name"]: (rule["rate"], rule["bucket"]) for rule in limiter.info()["rules"]}
        wanted = {name: tuple(rule[:2]) for name, rule in self.host.wanted.rules.items()}
        self._demand(told == wanted, f"info tells of {told}, and wanted are {wanted}")

    # ---- what must hold

    def look(self) -> None:
        """What must hold holds."""
        for budgets, rules in [*self._keep, self._budgets()]:
            self.meters.keep(budgets, rules)
        self._keep = []
        reading, counted = self.world.reading(), check.counted()
        with self._violations():
            self.meters.check(reading, self._passed(counted))
        told = check.went_back(self._counted, counted)
        told += check.differences(self.host, self.members, self._pins, self.tidy)
        self._demand(not told, "\n".join(told))
        self._counted = check.counted()
        self.meters.begin(*self._budgets(), self._passed(self._counted), self.world.reading())

    def _passed(self, counted: dict[int, Any]) -> dict[str, int]:
        return {name: counted[key].bytes for name, key in self._ids().items() if key in counted}

    def _ids(self) -> dict[str, int]:
        found = {}
        for name in self.host.wanted.rules:
            with contextlib.suppress(OSError):
                found[name] = self.world.incarnation(f"/speed_limiter/{name}")
        return found

    def _budgets(self, host: Host | None = None) -> tuple[list[Budget], list[Budget]]:
        """What pays for whole services: the budgets, and the rules."""
        host = host or self.host
        if host.program is None:
            return [], []
        ids = self._ids()
        budgets: dict[Hold, set[int]] = {}
        rules: dict[str, set[int]] = {}
        for service in self.world.services:
            holds = [host.wanted.holds(member) for member in service.members()]
            for hold in frozenset.intersection(*holds) if holds else ():
                budgets.setdefault(hold, set()).add(service.link)
            for name in set.intersection(*({hold.rule for hold in one} for one in holds)) if holds else ():
                rules.setdefault(name, set()).add(service.link)
        found = []
        for hold, links in budgets.items():
            rule = host.wanted.rules[hold.rule]
            identity = (ids.get(hold.rule), hold.cgroup)
            found.append(Budget(hold.rule, identity, rule.rate, rule.bucket, frozenset(links)))
        whole = [Budget(name, (ids.get(name),), 0, 0, frozenset(links)) for name, links in rules.items() if name in ids]
        return found, whole

    @contextlib.contextmanager
    def _violations(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            raise Violation(str(error)) from error

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(what)

    def rest(self) -> dict[str, int]:
        """Without a rule maps take as much memory as at the beginning; how much each."""
        self.text = "no rules at the end"
        limiter.purge("rules")
        limiter.program()
        left = check.memlock()
        self._demand(left == self.memlock, f"maps took {self.memlock}, and without a rule they take {left}")
        return left

    def end(self) -> None:
        """Nothing is left."""
        pids = list(self.members)
        homes: dict[int, str | None] = {pid: member.home for pid, member in self.members.items()}
        self.text = "the end"
        limiter.purge("all")
        left, nothing = limiter.snapshot(*pids), limiter.nothing(*pids)._replace(places=homes)
        self._demand(left == nothing, f"a purge of everything leaves {left}")
        self._demand(not Path("/sys/fs/bpf/speed_limiter").exists(), "a purge of everything leaves pins")


def reap() -> None:
    """Children that tasks left behind."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
