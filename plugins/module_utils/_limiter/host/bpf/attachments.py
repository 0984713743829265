# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs and their links: loading, replacing and moving them, and who else is on their hook.

A process that is killed anywhere in `Attachments.load` leaves something that the next load completes, and once the link
of what limits is pinned there is one at every moment, so that no packet is unlimited.
"""

from __future__ import annotations

import contextlib
import errno
import typing as t

from ...core import catalog, layout, schemas
from ...core.errors import LimiterError
from ...core.model import Program
from . import objects, pins, tracing
from .hooks import Hooks
from .libbpf import KernelError, Libbpf, reason
from .links import Links, Undo
from .maps import Maps
from .migrate import Migration

_PACING = {layout.PACING_OFF: "off", layout.PACING_ON: "on", layout.PACING_REFUSED: "refused"}


class Attached(t.NamedTuple):
    """Whether sockets are paced, and warnings of what the kernel refused of it."""

    paced: bool
    warnings: list[str]


class Attachments:
    """The programs of a host. ``cgroup_mount`` is where cgroup2 is mounted; cgroups are named by their path there."""

    def __init__(self, libbpf: Libbpf, cgroup_mount: str) -> None:
        self._libbpf, self._hooks, self._links = libbpf, Hooks(libbpf, cgroup_mount), Links(libbpf)
        self._migration = Migration(libbpf, self._links, cgroup_mount)

    def current(self) -> Program | None:
        """The program that limits now, of whatever version; None where none is attached, or where it has lost its
        pinned maps.

        Raises LimiterError: as `Maps.open`.
        """
        with contextlib.ExitStack() as stack:
            maps = stack.enter_context(self._maps(any_version=True))
            if maps is None or not pins.exists(catalog.LIMIT.link):
                return None
            info = self._links.info(catalog.LIMIT.link)
            cgroup = self._libbpf.cgroup_path_of(self._hooks.mount, info.cgroup_id) if info.cgroup_id else None
            if cgroup is None:  # the kernel detaches a link when its cgroup goes
                return None
            control = maps.control()
            # While a trace lasts, the one that was loaded is pinned.
            known = control.program_id in (info.prog_id, tracing.untraced_id(self._libbpf)) and control.identity
            pacing = _PACING.get(control.pacing, "off")
            if pacing == "on" and self._links.cgroup_id(catalog.PACE.link) != info.cgroup_id:
                pacing = "off"  # its link is lost, or is still somewhere else
            departure = "off" if control.departure == layout.DEPARTURE_OFF else "auto"
            identity = control.identity if known else "unknown"
            return Program(identity, cgroup, info.prog_id, info.id, pacing, departure, bool(control.blind))

    def unfinished(self) -> bool:
        """Whether a run was killed that moved the attach point, switched pacing off or changed the layout."""
        if any(program.moving and pins.exists(program.moving) for program in catalog.PROGRAMS):
            return True
        if self._migration.is_unfinished():
            return True
        current = self.current()
        return self.has_pacing_links() and (current is None or current.pacing != "on")

    def load(
        self,
        object_path: str,
        identity: str,
        cgroup: str,
        pacing: bool = True,
        release: t.Callable[[], list[str]] = list,
    ) -> Attached:
        """Makes the object's program the one that limits below ``cgroup``, with the maps and rules that are there.

        Without ``pacing``, or where the kernel refuses it, what paced before is left to `pacing.stop`. ``release``
        releases sockets of what an earlier version told them, where that has another layout.
        On any error, and on an interrupt, what was there before is put back.
        Raises LimiterError: as `pins.ensure` and `Maps.open`, ``bad_object`` where the object is not a limiter,
        ``load_failed`` with the verifier's words, ``not_permitted``, ``no_cgroup``, ``exclusive_program``,
        ``too_many_programs``.
        """
        pins.ensure()
        with self._maps():
            pass  # another version's maps are refused before anything is touched
        self.end_trace()
        self.complete()
        with Undo() as undo:
            try:
                loaded = self._load(object_path, identity, cgroup, pacing, release, undo)
            except BaseException:
                if self._migration.is_switched():
                    with contextlib.suppress(LimiterError, OSError):
                        self.complete()
                else:
                    undo.all()
                raise
        self.complete()
        return loaded

    def _load(
        self,
        object_path: str,
        identity: str,
        cgroup: str,
        pacing: bool,
        release: t.Callable[[], list[str]],
        undo: Undo,
    ) -> Attached:
        with contextlib.ExitStack() as stack:
            earlier = stack.enter_context(self._maps())
            if earlier is None:
                pins.drop_leftovers(self._libbpf)
            places = pins.places(earlier.schema if earlier else layout.SCHEMA)
            missing = [name for name in (*places.values(), *catalog.PASSING) if not pins.exists(name)]
            undo.add(lambda: pins.unpin(missing))
            cgroup_fd = stack.enter_context(self._hooks.open_cgroup(cgroup))
            self.refuse_exclusive(cgroup)
            loaded = objects.load(self._libbpf, stack, object_path, pacing, places)
            program_fd, refused = loaded.programs[catalog.LIMIT], dict(loaded.refused)
            program_id = self._libbpf.info(program_fd, "bpf_prog_info").id
            maps = stack.enter_context(self._maps())
            if maps is None:
                raise KernelError("the pinned maps cannot be opened", errno.ENOENT, "Run the task again")
            warnings = []
            if maps.is_earlier:
                if schemas.changed(catalog.PACING, maps.schema):
                    warnings = release()
                self._migration.fill(maps, loaded.programs[catalog.CARRY])
            before = maps.control()
            undo.add(lambda: self._restore_control(before))
            # Written first: no program that a killed run attached stays unknown, unless it had replaced another.
            blind = int(catalog.LOOK in refused)
            maps.write_control(before._replace(program_id=program_id, identity=identity, blind=blind))
            if maps.members():  # a control map that had to be made again says that there never were any
                maps.bump_generation()
            # What limits comes last: who finds it need not ask whether the rest was attached.
            if catalog.PACE in loaded.programs:
                refused.update(self._attach_pacing(loaded.programs, cgroup_fd, cgroup, undo))
            paced = pacing and catalog.PACE not in refused
            if paced:
                maps.set_pacing(layout.PACING_ON)
            elif before.pacing == layout.PACING_ON:
                maps.set_pacing(layout.PACING_OFF)  # who is killed now leaves links by which the next one sees it
            elif not self.has_pacing_links():
                maps.set_pacing(layout.PACING_REFUSED if pacing else layout.PACING_OFF)
            self._attach(program_fd, cgroup_fd, cgroup, undo)
        return Attached(paced, [*warnings, *_refusals(refused)])

    def _restore_control(self, before: layout.Control) -> None:
        """All but what only ever goes forward: the generation, and whether sockets were tagged."""
        with self._maps() as maps:
            if maps is not None:
                maps.set_pacing(before.pacing)  # with a new generation, if it is another one
                now = maps.control()
                maps.write_control(before._replace(generation=now.generation, tagged_sockets=now.tagged_sockets))

    def check_object(self, path: str) -> None:
        """What can be known of an object without loading it. Raises LimiterError ``bad_object``."""
        objects.check(self._libbpf, path)

    def unload(self) -> bool:
        """Detaches the programs; the maps stay. Whether there was something to detach. Sockets are to be released
        before (`pacing.stop`): they keep what they were told.
        """
        pins.check(self._libbpf, schema=None)
        self.end_trace()
        names = [name for name in catalog.LINKS if pins.exists(name)]
        for name in names:
            self._links.remove(name)
        return bool(names)

    def has_pacing_links(self) -> bool:
        """Whether anything paces sockets, or is left of what did."""
        return any(pins.exists(name) for name in catalog.PACING_LINKS)

    def detach_pacing(self) -> None:
        """Nothing paces sockets any more; the pins stay until they are released (`unpin_pacing`)."""
        for name, hook in catalog.PACING_LINKS.items():
            if hook.link_type == catalog.CGROUP_LINK and pins.exists(name):
                self._links.detach(name)

    def unpin_pacing(self) -> None:
        for name in catalog.PACING_LINKS:
            if pins.exists(name):
                self._links.remove(name)

    def remove_maps(self) -> list[str]:
        """Removes the pins, links included, and their directory where it is empty then; says what it removed."""
        pins.check(self._libbpf, schema=None)
        return pins.remove()

    def on_hook(
        self, cgroup: str, hook: catalog.Hook = catalog.EGRESS, also: t.Iterable[int] = ()
    ) -> list[dict[str, t.Any]]:
        """Every program that runs for a packet that a socket of ``cgroup`` sends: see `Hooks.running`. ``also``: ids of
        programs of ours without a pin.
        """
        return self._hooks.running(cgroup, self._limiting().union(also), hook)

    def program_name(self, program_id: int) -> str | None:
        """Of any program; None where it is gone."""
        return self._hooks.program_name(program_id)

    def runs_for(self, cgroup: str) -> bool:
        """Whether ours is among them."""
        return not self._limiting().isdisjoint(self._hooks.effective(cgroup))

    def _limiting(self) -> set[int]:
        return {self._links.info(name).prog_id for name in catalog.links([catalog.LIMIT]) if pins.exists(name)}

    def complete(self) -> bool:
        """A run was killed that moved the attach point or changed the layout: what it attached takes the old link's
        place, and its maps those of the earlier layout. One that traced: the untraced program comes back. Whether maps
        have changed.
        """
        if not tracing.is_claimed():
            self.end_trace()
        self._complete_move()
        return self._migration.finish()

    def begin_trace(self, stack: contextlib.ExitStack, loaded: tracing.Loaded) -> objects.Refusals:
        """What was loaded looks from now on, until ``stack`` ends or `end_trace`, what limits among it in the place of
        the untraced one. Returns what the kernel refused.
        """
        refused = dict(loaded.refused)
        with self._hooks.open_cgroup("/") as cgroup_fd:
            for row in loaded.tracer.beside:
                try:
                    loaded.tracer.attach(stack, row, cgroup_fd)
                except KernelError as error:
                    refused[row] = error.why
        if loaded.tracer.replaces:
            loaded.tracer.take_place(stack, self._links, loaded.opened)
        return refused

    def limits_now(self, program_id: int) -> bool | None:
        """Whether this program is the one that limits; None where none is loaded."""
        try:
            return bool(self._links.info(catalog.LIMIT.link).prog_id == program_id)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def trace(self) -> str | None:
        """Whether a trace is ``running``, or was killed and is ``left``; None where there is none."""
        if not pins.exists(catalog.UNTRACED):
            return None
        return "running" if tracing.is_claimed() else "left"

    def end_trace(self, kept: int | None = None) -> None:
        """The untraced program has its place again. Who traces sees that, and ends. ``kept``: as `tracing.put_back`."""
        tracing.put_back(self._libbpf, self._links, kept)

    def _complete_move(self) -> None:
        links = self._links
        links.complete(catalog.LIMIT)
        moving = catalog.PACE.moving
        if pins.exists(moving) and links.cgroup_id(moving) != links.cgroup_id(catalog.LIMIT.link):
            links.remove(moving)  # what limits was not moved yet
        links.complete(catalog.PACE)

    def refuse_exclusive(self, cgroup: str) -> None:
        """Raises LimiterError ``exclusive_program`` where somebody's program shares the hook with none."""
        found = self._hooks.exclusive(cgroup, catalog.EGRESS)
        if found is not None:
            raise LimiterError(
                "exclusive_program",
                f"the program cannot be attached to the cgroup {cgroup}",
                found.text,
                "Have its owner attach it with BPF_F_ALLOW_MULTI, as systemd does, detach it "
                f"(bpftool cgroup detach {self._hooks.mount + found.cgroup} egress id {found.program_id}), or choose a "
                "cgroup_path that is not below it",
            )

    def refuses_pacing(self, cgroup: str) -> str | None:
        """Why no program could pace the sockets below a cgroup, as far as that shows without trying."""
        found = self._hooks.exclusive(cgroup, catalog.SOCK_OPS)
        return found.text if found else None

    def refuses_object(self, path: str) -> bool:
        """Whether the kernel refuses an object's `catalog.PACE`, tried without attaching it. Only for where all maps
        are pinned already: it leaves nothing behind then. Raises LimiterError as `objects.load`.
        """
        with contextlib.ExitStack() as stack:
            places = pins.places(layout.SCHEMA)
            return catalog.PACE in objects.load(self._libbpf, stack, path, True, places).refused

    @contextlib.contextmanager
    def _maps(self, any_version: bool = False) -> t.Iterator[Maps | None]:
        maps = Maps.open(self._libbpf, any_version)
        if maps is None:
            yield None
            return
        with maps:
            yield maps

    def _attach(self, program_fd: int, cgroup_fd: int, cgroup: str, undo: Undo) -> None:
        try:
            self._links.to_cgroup(catalog.LIMIT, program_fd, cgroup_fd, undo)
        except KernelError as error:
            if error.errno != errno.E2BIG:
                raise
            raise LimiterError(
                "too_many_programs",
                f"the program cannot be attached to the cgroup {cgroup}",
                f"the kernel allows 64 programs on one hook of a cgroup, and 64 are attached: {reason(errno.E2BIG)}",
                "Detach some, or choose another cgroup_path",
            ) from error

    def _attach_pacing(
        self, programs: t.Mapping[catalog.ProgramRow, int], cgroup_fd: int, cgroup: str, undo: Undo
    ) -> objects.Refusals:
        """What was refused, and why: no reason not to limit."""
        why = self.refuses_pacing(cgroup)
        if why is not None:
            return {catalog.PACE: why}
        try:
            self._links.to_cgroup(catalog.PACE, programs[catalog.PACE], cgroup_fd, undo)
        except KernelError as error:
            return {catalog.PACE: error.why}
        try:
            self._links.to_iterator(catalog.SETTLE, programs.get(catalog.SETTLE), undo)
        except KernelError as error:
            self._links.to_iterator(catalog.SETTLE, None, undo)
            return {catalog.SETTLE: error.why}
        return {}


def _refusals(refused: objects.Refusals) -> list[str]:
    return [f"{row.refused}, because the kernel refuses {row.name}: {why}" for row, why in refused.items()]
