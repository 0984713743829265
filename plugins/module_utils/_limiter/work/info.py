# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_info gathers. Every part is looked at by itself: what is missing is reported, and the rest still
comes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import typing as t

from ..core import association, departure, pacing, policy, shortcomings, use
from ..core.association import Association
from ..core.errors import LimiterError
from ..core.layout import State
from ..core.model import HostState, Process, Rule
from ..host import clock, kernel, qdiscs, store
from ..host.bpf import budgets, build, pins
from ..host.bpf.libbpf import load
from ..host.bpf.maps import other_schema
from ..host.groups import processes
from ..host.groups.cgroups import Cgroups
from ..host.groups.leaves import Leaves
from ..host.interpreter import importable
from ..host.sockets.association import look as look_at_sockets
from . import places
from . import use as measuring
from .facts import Facts, counter, facts, socket_association
from .host import Host, RunCommand
from .observe import observe
from .pacing import ability
from .sockets import unlimited
from .why import explain

T = t.TypeVar("T")


class Info:
    """One look at the host, filtered by a rule's name, a process or a cgroup. Not of all ``files``: it does not tell
    whether a rule is persistent, which takes longest where thousands are.

    Parts that could not be looked at are None, and so is what is not known of a rule; `unseen` says why.
    Raises LimiterError for what is asked for and is not there: ``no_rule``, ``dead_process``, ``no_cgroup``.
    """

    def __init__(
        self,
        run_command: RunCommand,
        interpreter_with: t.Callable[[t.Sequence[str]], str | None],
        name: str | None,
        pid: int | None,
        cgroup_path: str | None,
        files: bool = True,
    ) -> None:
        self.files = files
        self.run_command, self.interpreter_with = run_command, interpreter_with
        self.name, self.pid, self.cgroup_path = name, pid, cgroup_path
        self.missing: list[str] = []
        self.unseen: list[str] = []
        self.warnings: list[str] = []
        self._state_of_host: HostState | None = None
        self.cgroups = self._try(Cgroups.find)
        self.cgroup = self._asked_for()
        self.library = self._try(load)
        self._opened = contextlib.ExitStack()
        self.host = self._try(self._open) if self.cgroups and self.library else None
        if self.host and self.host.other_maps:
            self.missing.append(str(other_schema(self.host.other_maps.schema)))
        if self.host is None or self.host.other_maps:
            self.unseen += self.missing
        self.sockets = self._sockets()

    def __enter__(self) -> Info:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def _open(self) -> Host:
        """Also what limits and is not pinned, as far as one can go on with it."""
        try:
            host = self._opened.enter_context(Host.opened(self.run_command, changes=False, any_version=True))
        except LimiterError as error:
            if error.kind != "hidden_limiter":
                raise
            self.warnings.append(str(error))
            return Host.open(self.run_command, any_version=True)
        self.warnings += host.lost.warnings(check=True)
        return host

    def _asked_for(self) -> str | None:
        """The cgroup that was asked for: by its path, or as the one of a process. What is not there is an error."""
        if self.cgroups and self.name is not None and self.name not in self.cgroups.rule_names():
            raise _absent("no_rule", f"name: the rule {self.name!r}", "the name of a rule")
        process = None if self.pid is None else processes.read(self.pid)
        if self.pid is not None and process is None:
            raise _absent("dead_process", f"pid: process {self.pid}", "a living process")
        if self.cgroup_path is not None and self.cgroups:
            cgroup = self.cgroups.relative("cgroup_path:", self.cgroup_path)
            if not self.cgroups.exists(cgroup):
                raise _absent("no_cgroup", f"cgroup_path: {cgroup}", "an existing cgroup")
            return cgroup
        return process.cgroup if process else None

    def _sockets(self) -> Association:
        """Whether new sockets belong to a cgroup, which is warned of whatever is asked for."""
        if self.cgroups is None:
            return Association(association.UNKNOWN)
        if self.host is None:
            found = look_at_sockets(self.cgroups)
        else:
            found = socket_association(self.host, self.cgroups.rule_names()[:1], locked=False)
        warning = found.warning(os.uname().release)
        if warning:
            self.warnings.append(warning)
        return found

    def _try(self, look: t.Callable[[], T]) -> T | None:
        try:
            return look()
        except LimiterError as error:
            self.missing.append(str(error))
            return None

    def describe_host(self) -> Facts:
        """The kernel and what a limit needs of it. ``missing`` is empty where all is there."""
        release = os.uname().release
        found = kernel.look()
        self.missing += [str(shortcoming) for shortcoming in shortcomings.of(found)]
        self._try(self._ask_hook)
        sockets = self.sockets.warning(release)
        if sockets:
            self.missing.append(sockets)
        if not pins.is_mounted():
            self.missing.append(
                f"bpffs is not mounted at {pins.BPFFS}: the first rule task, or the role setup, mounts it."
            )
        # A task that needs it goes on in another interpreter, where one has it.
        if not importable("psutil") and self.interpreter_with(["_cffi_backend", "psutil"]) is None:
            self.missing.append(f"psutil is not installed for {sys.executable}: only the option processes needs it.")
        compiler = self._compiler()
        if compiler is None:
            self.missing.append(
                f"clang {build.OLDEST_CLANG} or newer is not installed: only building the program needs it, "
                "and an object that was built elsewhere makes that unnecessary."
            )
        return {
            "kernel": release,
            "architecture": os.uname().machine,
            "cgroup2": self.cgroups.mount if self.cgroups else None,
            "btf": found.btf,
            "lockdown": found.lockdown,
            "bpffs": pins.is_mounted(),
            "sockets": self.sockets.state,
            "libbpf": ".".join(str(part) for part in self.library.version()) if self.library else None,
            "clang": compiler,
            "interpreter": sys.executable,
            "missing": list(dict.fromkeys(self.missing)),
        }

    def _ask_hook(self) -> None:
        """Raises LimiterError where the kernel has no such hook, or does not let us ask."""
        if self.host is not None:
            self.host.attachments.on_hook("/")

    def _compiler(self) -> str | None:
        try:
            return build.find_compiler(self.run_command)[1].partition("\n")[0]
        except LimiterError:
            return None

    def program(self) -> Facts | None:
        """The program that is attached, or None."""
        return self._seen(self._program)

    def _program(self) -> Facts | None:
        current = self.host.attachments.current() if self.host else None
        if self.host is None or current is None:
            return None
        about = pacing.about(ability(self.host, current))
        waits = {**departure.about(current, self.host.is_earlier), "devices": departure.holding(qdiscs.read())}
        told = {**current._asdict(), "pacing": about, "departure": waits, "in_place": places.about(self.host)}
        del told["blind"]
        return {**told, "trace": self.host.attachments.trace()}

    def rules(self) -> list[Facts] | None:
        """The rules, or those that limit the process that was asked for, or the cgroup or a process in it."""
        found = self._seen(self._rules)
        return self._seen(self._outlines) if found is None else found

    def _rules(self) -> list[Facts] | None:
        """None without the maps."""
        if self.host is None or self.host.other_maps:
            return None
        state, found = self._observed(self.host), self._chosen(self.host)
        can = ability(self.host, state.program)
        state_of = functools.cache(self.host.maps.states(len(found))) if self.host.maps else lambda rule: None
        count, missed = counter(self.host, len(found), state_of), unlimited(self.host, found)
        shared, unfound = self._budgets(self.host, found), places.unlimited(self.host)
        return [
            {
                **facts(self.host, rule, state.store.files, count),
                **({} if self.files else {"persistent": None}),
                **self._state(can, rule, state_of, shared.get(rule.cgroup_id or 0, ())),
                "unlimited": [*missed.get(rule.name, ()), *unfound.get(rule.name, ())],
            }
            for rule in found
        ]

    def _chosen(self, host: Host) -> list[Rule]:
        """The rules that were asked for."""
        found = [rule for name, rule in sorted(self._observed(host).rules.items()) if self.name in (None, name)]
        cgroup = self.cgroup
        if cgroup is not None:
            holds = {*places.holding(host)(cgroup), host.leaves.rule_of(cgroup)}
            found = [rule for rule in found if rule.name in holds or self._takes_from(cgroup, rule)]
        return found

    def use(self, connections: int) -> Facts:
        """What each of these rules does in the second that follows, with so many ``connections`` of each; and why the
        process that was asked for is as slow as it is.
        """
        found = self._seen(functools.partial(self._use, connections))
        told: Facts = {"use": found[0] if found else None}
        return told if self.pid is None else {**told, "why": found[1] if found else None}

    def _use(self, connections: int) -> tuple[list[Facts], Facts | None] | None:
        if self.host is None or self.host.other_maps:
            return None
        rules, state = self._chosen(self.host), self._observed(self.host)
        can, about = ability(self.host, state.program), None
        process = None if self.pid is None else processes.read(self.pid)
        if process is None:
            found = measuring.gather(self.host, rules, can, connections)
        else:
            above = places.holding(self.host)(process.cgroup)
            rules = sorted(rules, key=lambda rule: above.index(rule.name) if rule.name in above else len(above))
            found, about = explain(self.host, process, rules, state.rules, can, connections)
        self.unseen += found.problems
        return found.rules, about

    def _takes_from(self, cgroup: str, rule: Rule) -> bool:
        """Whether it took a process of a cgroup that was asked for by its path, and keeps it there."""
        return self.cgroup_path is not None and any(_covers(cgroup, leaf) for leaf in rule.leaves)

    def _observed(self, host: Host) -> HostState:
        """All rules; looked at once."""
        if self._state_of_host is None:
            self._state_of_host, _targets, warnings = observe(host, (), everything=True, files=self.files)
            self.warnings += warnings
        return self._state_of_host

    def _outlines(self) -> list[Facts] | None:
        """What is known of the rules without the maps. Only these tell which rules limit a process or a cgroup."""
        if self.cgroups is None or self.cgroup is not None:
            return None
        known = []
        for name in self.cgroups.rule_names():
            if self.name in (None, name):
                cgroup = self.cgroups.rule_cgroup(name)
                known.append(
                    {
                        "name": name,
                        **policy.facts(None, None, None),
                        "cgroup_path": self.cgroups.absolute(cgroup),
                        "cgroup_id": self.cgroups.identifier(cgroup),
                        "members": None,
                        "waiting": None,
                        "pids": sorted(self.cgroups.pids(cgroup)),
                        "counters": None,
                        "budgets": None,
                        "pacing": None,
                        "use": None,
                        "unlimited": None,
                    }
                )
        return known

    @staticmethod
    def _budgets(host: Host, rules: t.Sequence[Rule]) -> dict[int, list[State]]:
        """Of cgroups that have one, by the ids of their rules."""
        if host.maps is None or not any(rule.in_place.each for rule in rules):
            return {}
        found = budgets.busy(host.maps, clock.now())
        return {rule: list(states.values()) for rule, states in found.items()}

    def _state(
        self,
        can: pacing.Ability,
        rule: Rule,
        state_of: t.Callable[[int], State | None],
        shares: t.Sequence[State],
    ) -> Facts:
        """How the rule limits, and how much of its limit is used; ``shares``: the budgets of its cgroups."""
        seen = (state_of(rule.cgroup_id) if rule.cgroup_id else None) or State()
        now = clock.now()
        found = pacing.of_rule(can, rule.limit, seen.fair, now, [state.fair for state in shares])
        if self.sockets.state == association.LOST:
            found.update(mode="none", reason=association.NOT_LIMITED)
        return {"pacing": found, "use": use.of_rule(can, rule.limit, seen, now, shares)}

    def processes(self) -> list[Facts] | None:
        """The processes that were put in rules, or the one that was asked for."""
        return self._seen(self._processes)

    def _processes(self) -> list[Facts] | None:
        if self.cgroups is None:
            return None
        pids = (
            [self.pid]
            if self.pid
            else [pid for name in self.cgroups.rule_names() for pid in self._leaves(self.cgroups).pids(name)]
        )
        living = [process for process in (processes.read(pid) for pid in pids) if process]
        meant = [process for process in living if self._meant(process)]
        commands = processes.commands(process.pid for process in meant)
        return [self._process(process, commands[process.pid]) for process in meant]

    def _meant(self, process: Process) -> bool:
        within = self.cgroup is None or _covers(self.cgroup, process.cgroup)
        return within and self.name in (None, self._rule_of(process))

    def _leaves(self, cgroups: Cgroups) -> Leaves:
        """None are known without the maps."""
        return self.host.leaves if self.host else Leaves(cgroups, None, None)

    def _rule_of(self, process: Process) -> str | None:
        return self._leaves(self.cgroups).rule_of(process.cgroup) if self.cgroups else None

    def _process(self, process: Process, command: str) -> Facts:
        return {
            "pid": process.pid,
            "command": command,
            "cgroup": process.cgroup,
            "rule": self._rule_of(process),
        }

    def boot(self) -> Facts | None:
        """What is stored for the next boot, and what is wrong with it."""
        return self._seen(self._boot)

    def _boot(self) -> Facts:
        from . import boot  # here: it can make rules, and who lists them need not wait for that

        if self.host is None or self.host.other_maps:
            return boot.look(self.run_command, store.read(), None)
        state = self._observed(self.host)
        return boot.look(self.run_command, state.store, state.rules, places.is_blind(self.host))

    def hook(self) -> list[Facts] | None:
        """Every BPF program that runs for a packet that leaves the cgroup, ours or not."""
        return self._seen(self._hook)

    def _hook(self) -> list[Facts] | None:
        if self.host is None:
            return None
        return self.host.attachments.on_hook(
            self.cgroup or (self.host.cgroups.rule_cgroup(self.name) if self.name else "/")
        )

    def _seen(self, look: t.Callable[[], T | None]) -> T | None:
        try:
            return look()
        except LimiterError as error:
            if str(error) not in self.unseen:
                self.unseen.append(str(error))
            return None


def _covers(above: str, cgroup: str) -> bool:
    return above in ("/", cgroup) or cgroup.startswith(f"{above}/")


def _absent(kind: str, what: str, remedy: str) -> LimiterError:
    return LimiterError(kind, f"{what} does not exist", "", f"Give {remedy}, or leave the option out to see all")
