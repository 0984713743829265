# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace: what becomes of packets, for some seconds, and why.

The host is locked while the trace is put in place and taken back, not in between: rule tasks go on meanwhile. A task
that loads a program ends the trace, which says so. Who is killed leaves a program that is silent after its time, and
that the next task replaces by the one that was there.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ..core import catalog, tracing
from ..core.errors import LimiterError
from ..core.model import Program, Request
from ..core.patterns import parse
from ..core.places import normal
from ..core.tracing import OTHER_PROGRAM, Packet, Session
from ..host import clock, kernel
from ..host.bpf import build
from ..host.bpf import tracing as port
from ..host.groups import processes
from ..host.lock import host_lock
from ..host.root import check_root
from ..host.sockets.tagging import Tags, tag_apart
from .host import Host, RunCommand
from .observe import locate

_LOOK_SECONDS = 0.02  # between two looks at what was told
_CHECK_SECONDS = 0.1  # ... at whether all is as it was
_AT_ONCE = 10_000  # packets of one look
_END_SECONDS = 10.0  # for the lock, at the end

DURATION, MAX_EVENTS, REPLACED, UNLOADED, RULE_REMOVED = (
    "duration",
    "max_events",
    "replaced",
    "unloaded",
    "rule_removed",
)
_NUMBERS = "the kernel's programs know the process by another number. Trace from the host's namespace"
_EARLY = {
    REPLACED: "another task has loaded a program meanwhile",
    UNLOADED: "another task has unloaded the program meanwhile",
    RULE_REMOVED: "the rule was removed meanwhile",
}


class Asked(t.NamedTuple):
    """What a trace is asked for."""

    wanted: tracing.Wanted
    rule: str | None
    places: Request | None  # cgroups, by whatever names
    pid: int | None
    object: str | None


class Traced(t.NamedTuple):
    sessions: list[Session]
    lost: int  # packets that were not told, since nobody read fast enough
    ended: str
    sees_refusals: bool  # whether it is told what other programs drop
    warnings: list[str]


def trace(
    run_command: RunCommand, asked: Asked, check: bool, show: t.Callable[[Session], object] = lambda session: None
) -> Traced:
    """``show`` gets each session as soon as nothing can change it any more. With ``check`` only what would be refused
    is looked for.
    """
    check_root()
    located = locate([asked.places]) if asked.places else []
    named = [place.path for places, _warnings in located for place in places]
    if check:
        with Host.opened(run_command, changes=False) as host:
            _Trace(host, asked, named)
        foretold = asked.wanted.direction != "in" and bool(port.places_of_refusals())
        return Traced([], 0, DURATION, foretold, [])
    with port.claimed(), contextlib.ExitStack() as stack:
        with Host.opened(run_command, changes=True) as host:
            host.complete()
            host.attachments.end_trace()  # that of a killed one: nobody else traces now
            running = _Trace(host, asked, named)
            running.warnings += [
                *host.lost.warnings(check=False),
                *(text for _places, told in located for text in told),
            ]
            running.begin(stack)
        try:
            found = running.follow(show)
        finally:
            problems = running.end()
    return found._replace(warnings=[*found.warnings, *problems])


class _Trace:
    def __init__(self, host: Host, asked: Asked, named: t.Sequence[str]) -> None:
        """Raises LimiterError: ``no_program``, ``untraceable``, ``no_rule``, ``dead_process``, ``bad_cgroup_path``."""
        self._host, self._asked = host, asked
        self.warnings: list[str] = []
        current = host.attachments.current()
        if current is None or host.maps is None:
            raise LimiterError(
                "no_program",
                "nothing is traced",
                "no program is loaded on this host",
                "Any rule task loads it, and so does speed_limit_program",
            )
        self._path = self._object(current)
        self._rule = self._rule_asked_for()
        if asked.pid is not None and processes.read(asked.pid) is None:
            raise LimiterError("dead_process", f"pid: process {asked.pid} does not exist", "", "Give a living process")
        given = asked.places.cgroup_paths if asked.places else ()
        self._patterns = [normal("cgroup_paths:", host.cgroups.relative("cgroup_paths:", path)) for path in given]
        self._patterns += named
        self._rules = host.cgroups.rules_by_id()
        self._cgroups: dict[int, str | None] = {}
        self._programs: dict[tracing.Listed, list[dict[str, t.Any]] | None] = {}
        self._told: list[_Told] = []
        self._latest: dict[int, _Told] = {}  # by the address of the packet
        self._sees_refusals = False

    def _object(self, current: Program) -> str:
        """The object that the program was loaded from: what traces must decide as it does."""
        path = self._asked.object or build.OBJECT
        why = f"the program that limits was not loaded from {path}"
        if self._host.is_earlier:
            why = "an earlier version of this collection loaded the program that limits"
        else:
            try:
                build.check_owner(path)
                if current.identity in (
                    build.identity_of_object(path),
                    path == build.OBJECT and build.built_identity(),
                ):
                    return path
            except LimiterError as error:
                if error.kind != "no_object":
                    raise
                why = f"{error.what}: {error.why}"
        raise LimiterError(
            "untraceable",
            "the program that limits cannot be traced",
            why,
            "Run speed_limit_program, which loads this version's, or name in object what was loaded",
        )

    def _rule_asked_for(self) -> int:
        """The id, or 0."""
        name = self._asked.rule
        if name is None:
            return 0
        found = self._host.cgroups.identifier(self._host.cgroups.rule_cgroup(name))
        if found is None:
            raise LimiterError("no_rule", f"rule: there is no rule {name!r}", "", "speed_limit_info shows the rules")
        return found

    @kernel.explained()
    def begin(self, stack: contextlib.ExitStack) -> None:
        """Puts the trace in place. What fails is undone."""
        host, wanted = self._host, self._asked.wanted
        tracers, places = [], []
        if wanted.direction != "in":
            tracers.append(catalog.TRACE)
            places = port.places_of_refusals()
            if places:
                tracers.append(catalog.TRACE_REFUSAL)
        if wanted.direction != "out":
            tracers.append(catalog.TRACE_ARRIVAL)
        process = self._asked.pid
        if process is not None and processes.has_host_numbers():
            tracers.append(catalog.TRACE_CREATION)
        elif process is not None:
            # A process of the host may have that number, too.
            process = 0
            self.warnings.append(f"{catalog.TRACE_CREATION.refused}, because this is another PID namespace: {_NUMBERS}")
        asked = tracing.pack_filter(wanted, self._rule, bool(self._patterns), process, places)
        blind = bool(host.opened_maps.control().blind)
        loaded = port.load(host.libbpf, stack, self._path, asked, tracers, blind)
        self._tracer = loaded.tracer
        self._watch()
        try:
            refused = host.attachments.begin_trace(stack, loaded)
        except BaseException:
            host.attachments.end_trace()
            raise
        if not places and wanted.direction != "in":
            refused = {**refused, catalog.TRACE_REFUSAL: "/proc/kallsyms does not tell where its functions are"}
        self._begin_ns = clock.now()
        self._tell_refusals(refused)

    def _tell_refusals(self, refused: t.Mapping[t.Any, str]) -> None:
        for row, why in refused.items():
            if row is not catalog.TRACE_REFUSAL or OTHER_PROGRAM in self._asked.wanted.outcomes:
                self.warnings.append(f"{row.refused}, because the kernel refuses {row.name}: {why}")
        self._sees_refusals = self._asked.wanted.direction != "in" and catalog.TRACE_REFUSAL not in refused

    def _tag(self) -> None:
        """The sockets that the process has already. Its owner can hold this up, so the host is not locked."""
        if self._asked.pid is None:
            return
        tags = Tags(self._tracer.watch_socket)
        missed = tag_apart([self._asked.pid], tags, [self._tracer.sockets.fd]).missed
        self.warnings += [f"not traced: {text}" for text in missed]

    def _watch(self) -> None:
        """The cgroups that the patterns name now: those of a service are made anew when it restarts."""
        if not self._patterns:
            return
        cgroups = self._host.cgroups
        found = {one for pattern in self._patterns for one in cgroups.matching(parse("cgroup_paths", pattern))}
        ids = [cgroups.identifier(cgroup) for cgroup in sorted(found)[: tracing.MOST_CGROUPS]]
        self._tracer.watch_cgroups([number for number in ids if number is not None])
        if len(found) > tracing.MOST_CGROUPS or cgroups.too_large:
            text = f"not all cgroups are traced that fit {', '.join(self._patterns)}: there are too many"
            self.warnings += [] if text in self.warnings else [text]

    def follow(self, show: t.Callable[[Session], object]) -> Traced:
        """Reads until the end, whatever ends it."""
        self._tag()
        sessions: list[Session] = []

        def flush(count: int) -> None:
            for told in self._told[:count]:
                if self._latest.get(told.packet.context) is told:
                    del self._latest[told.packet.context]
                session = self._session(told)
                if session is not None and len(sessions) < self._asked.wanted.most:
                    sessions.append(session)
                    show(session)
            del self._told[:count]

        with self._tracer.reading(self._take) as read:
            ended = ""
            end = time.monotonic() + self._asked.wanted.duration
            check = 0.0
            while not ended:
                ready = len(self._told)
                read()
                flush(ready)  # whether another program refused it was told by now
                now = time.monotonic()
                if len(sessions) + len(self._told) >= self._asked.wanted.most:
                    ended = MAX_EVENTS if self._is_full(len(sessions)) else ""
                elif now >= end:
                    ended = DURATION
                if not ended and now >= check:
                    ended = self._ended_by_others()
                    self._watch()
                    # With very many cgroups, most of the time is still for what is told.
                    check = time.monotonic() + max(_CHECK_SECONDS, 10 * (time.monotonic() - now))
                if not ended:
                    time.sleep(_LOOK_SECONDS)
            read()
            flush(len(self._told))
        warnings = list(self.warnings)
        if ended in _EARLY:
            warnings.append(f"the trace ended before its time: {_EARLY[ended]}")
        lost = self._tracer.lost()
        if lost:
            warnings.append(f"{lost} packets were not told, since there were more than could be read: ask for fewer")
        return Traced(sessions, lost, ended, self._sees_refusals, list(dict.fromkeys(warnings)))

    def _is_full(self, shown: int) -> bool:
        return shown + sum(self._is_wanted(told) for told in self._told) >= self._asked.wanted.most

    def _take(self, packet: Packet) -> bool:
        if packet.kind == tracing.REFUSED:
            before = self._latest.pop(packet.context, None)
            if before is not None:
                before.refused = True
            return True
        told = _Told(packet)
        self._latest[packet.context] = told
        self._told.append(told)
        return len(self._told) < _AT_ONCE

    def _is_wanted(self, told: _Told) -> bool:
        outcomes = self._asked.wanted.outcomes
        return not outcomes or told.outcome in outcomes

    def _session(self, told: _Told) -> Session | None:
        if not self._is_wanted(told):
            return None
        packet = told.packet
        for number in (packet.cgroup, *(rule.cgroup for rule in packet.rules)):
            if number and number not in self._cgroups:
                self._cgroups[number] = self._host.path_of(number)
        key = packet.kind, packet.cgroup, packet.programs
        if key not in self._programs:
            self._programs[key] = self._programs_of(packet)
        if any(rule.rule not in self._rules for rule in packet.rules):
            self._rules.update(self._host.cgroups.rules_by_id())
        names = tracing.Names(self._rules, self._cgroups, self._programs)
        return tracing.session(packet, self._begin_ns, names, told.refused)

    def _programs_of(self, packet: Packet) -> list[dict[str, t.Any]] | None:
        """As the packet lists them, or else as the kernel does now; None where nobody knows."""
        listed = self._queried(packet)
        if not packet.lists_programs:
            return listed
        by_id = {program["id"]: program for program in listed or ()}
        return [by_id.get(number) or self._gone(number) for number in packet.programs]

    def _queried(self, packet: Packet) -> list[dict[str, t.Any]] | None:
        cgroup = self._cgroups.get(packet.cgroup)
        if cgroup is None:
            return None
        hook = catalog.TRACE_ARRIVAL.hook if packet.kind == tracing.IN else catalog.EGRESS
        try:
            return self._host.attachments.on_hook(cgroup, hook, self._tracer.ids())
        except LimiterError as error:
            if error.kind != "no_cgroup":
                raise
            return None

    def _gone(self, number: int) -> dict[str, t.Any]:
        """A program that ran, and does not run any more for that cgroup, or whose cgroup is gone."""
        name = self._host.attachments.program_name(number)
        ours = number in self._tracer.ids()
        return {"id": number, "name": name, "attach_flags": None, "cgroup": None, "ours": ours}

    def _ended_by_others(self) -> str:
        cgroups = self._host.cgroups
        if self._rule and cgroups.identifier(cgroups.rule_cgroup(self._asked.rule or "")) != self._rule:
            return RULE_REMOVED
        if not self._tracer.replaces:
            return ""
        traces = self._host.attachments.limits_now(self._tracer.program_id)
        return UNLOADED if traces is None else "" if traces else REPLACED

    def end(self) -> list[str]:
        """Has the untraced program back. Returns why the next task has to do that instead."""
        try:
            with host_lock(_END_SECONDS):
                self._host.attachments.end_trace(self._tracer.untraced)
        except LimiterError as error:
            return [
                f"the program that traces still limits, and the next task that changes something replaces it: {error}"
            ]
        return []


class _Told:
    """A packet, and whether the kernel has said since that another program refused it."""

    def __init__(self, packet: Packet) -> None:
        self.packet, self.refused = packet, False

    @property
    def outcome(self) -> str:
        return OTHER_PROGRAM if self.refused and not self.packet.is_dropped else self.packet.outcome
