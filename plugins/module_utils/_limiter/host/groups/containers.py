# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the runtimes of this host, by their own commands, where containers are."""

from __future__ import annotations

import os
import typing as t

from ...core import containers
from ...core.containers import LXC, VIRTUAL_MACHINE, Container, Found
from ...core.errors import LimiterError
from .. import tools
from . import processes
from .cgroups import Cgroups

Ask = t.Callable[..., "tuple[int, str, str]"]  # words for a runtime's command -> as `tools.ask`


class Containers:
    """The containers of a task; a runtime is asked once for all of them where it can be."""

    def __init__(self, names: t.Iterable[str], patience: tools.Patience) -> None:
        """``names`` have passed `containers.check_name`. Raises nothing: `cgroup` does."""
        wanted = list(dict.fromkeys(names))
        self._found: Found = {}
        self._names = wanted
        self._said: dict[str, list[str]] = {}  # what each command said of what it does not have
        self._silent: list[tuple[list[str], str]] = []  # names, and why a command did not answer for them
        one_by_one = [[name] for name in wanted]
        for command in _RUNTIMES if wanted else ():
            path = tools.find(command)
            if path is None:
                continue
            for some in one_by_one if command in _ONE_BY_ONE else [wanted]:
                self._look(command, lambda *words, path=path: patience.ask([path, *words]), some)

    def _look(self, command: str, ask: Ask, names: list[str]) -> None:
        try:
            found, said = _RUNTIMES[command](ask, names)
        except LimiterError as error:
            found, said = {}, [error.why]
            text = f"containers: {error.what}: {error.why}; its containers are not known"
            self._silent.append((names, text))
        for name, listed in found.items():
            self._found.setdefault(name, []).extend(listed)
        self._said.setdefault(command, []).extend(said)

    def cgroup(self, where: str, name: str) -> tuple[str, list[str]]:
        """The path of a container's cgroup, and warnings.

        Raises LimiterError: ``unknown_container``, ``ambiguous_container``, ``container_not_running``,
        ``shared_cgroup``, ``virtual_machine``.
        """
        here, found = f"{where}containers: {name}", self._found.get(name, [])
        if not found:
            raise self._unknown(here, name)
        runs = [one for one in found if one.pid]
        if not runs:
            raise _stopped(here, found[0])
        # Two commands may show one container, for example where `docker` is Podman's.
        places: dict[str, Container] = {}
        problems: list[LimiterError] = []
        for one in runs:
            try:
                places[_place(here, one)] = one
            except LimiterError as error:
                problems.append(error)
        if not places:
            raise problems[0]
        if len(places) > 1:
            raise LimiterError(
                "ambiguous_container",
                f"{here} is the name of several containers",
                "; ".join(f"{one.runtime}: {one.title}" for one in places.values()),
                "Give the id of one, or its path in cgroup_paths",
            )
        place, one = next(iter(places.items()))
        warnings = [*(text for names, text in self._silent if name in names), *map(str, problems)]
        advice = containers.advice(one, place)
        if advice:
            warnings.append(
                f"{here} is limited as {place}: a container that is made anew ({one.runtime}) has another cgroup, and "
                f"no limit. {advice}"
            )
        return place, warnings

    def _unknown(self, here: str, name: str) -> LimiterError:
        none = f"no command of a runtime is installed ({', '.join(_RUNTIMES)})"
        others = [other for other in self._names if other not in name]
        said = []
        for command, lines in self._said.items():
            about = [line for line in lines if name in line]
            about += [line for line in lines if not any(other in line for other in others)]
            said.append(f"{command}: {about[0] if about else 'it has none'}")
        return LimiterError(
            "unknown_container",
            f"{here} is not known on this host",
            "; ".join(said) or none,
            "Give a container of root's that runs; one of another user is found by users, or by cgroup_paths",
        )


def _place(here: str, one: Container) -> str:
    if one.runtime == VIRTUAL_MACHINE:
        raise LimiterError(
            "virtual_machine",
            f"{here} is a virtual machine",
            "what its guest sends leaves through no socket of this host",
            "Limit it inside, or at its network interface",
        )
    process = processes.read(one.pid)
    if process is None:
        raise _stopped(here, one)
    place = containers.own_cgroup(one, process.cgroup)
    if one.runtime == LXC and place is not None:
        _check_roots(here, one, place)
    if place is None:
        raise LimiterError(
            "shared_cgroup",
            f"{here} has no cgroup of its own ({one.runtime})",
            f"its first process, {one.pid}, is in {process.cgroup}, where others may be, too",
            "Start it with a cgroup of its own, or give a path in cgroup_paths",
        )
    return place


def _check_roots(here: str, one: Container, place: str) -> None:
    """While a container of LXC does not run, any user may answer for it, at a socket of that name."""
    cgroups, above = Cgroups.find(), os.path.dirname(place)
    while cgroups.is_roots(above):
        if above == "/":
            return
        above = os.path.dirname(above)
    raise LimiterError(
        "container_not_running",
        f"{here} does not run ({one.runtime})",
        f"a user answers for it, by process {one.pid} in {place}: {above} is not root's",
        "Start it first, or limit that user",
    )


def _stopped(here: str, one: Container) -> LimiterError:
    return LimiterError(
        "container_not_running",
        f"{here} does not run ({one.runtime})",
        "a container has a cgroup only while it runs",
        "Start it first, or limit the cgroup parent that it is started with",
    )


# ---- the runtimes: what they have of these names, and what they said about the others


def _docker(ask: Ask, names: list[str]) -> tuple[Found, list[str]]:
    return _inspected("Docker", ask, names)


def _podman(ask: Ask, names: list[str]) -> tuple[Found, list[str]]:
    return _inspected("Podman", ask, names)


def _inspected(runtime: str, ask: Ask, names: list[str]) -> tuple[Found, list[str]]:
    _code, output, errors = ask("container", "inspect", "--", *names)
    return containers.of_docker(runtime, names, output), tools.lines(errors)


def _crictl(ask: Ask, names: list[str]) -> tuple[Found, list[str]]:
    found: Found = {}
    _code, output, errors = ask("ps", "--output", "json")
    for name, identities in containers.listed_by_crictl(names, output).items():
        shown = (ask("inspect", identity)[1] for identity in identities)
        found[name] = [one for text in shown for one in containers.of_crictl(text)]
    return found, tools.lines(errors)


def _lxc(ask: Ask, names: list[str]) -> tuple[Found, list[str]]:
    (name,) = names
    code, output, errors = ask("--name", name, "--pid", "--no-humanize")
    found: Found = {name: [containers.of_lxc(name, output)]} if code == 0 else {}
    return found, tools.lines(errors or output * bool(code))


def _machinectl(ask: Ask, names: list[str]) -> tuple[Found, list[str]]:
    (name,) = names
    properties = ("--property=Unit", "--property=Leader", "--property=Class")
    _code, output, errors = ask("show", *properties, "--", name)
    one = containers.of_machinectl(name, output)
    return {name: [one]} if one else {}, tools.lines(errors)


_RUNTIMES: t.Mapping[str, t.Callable[[Ask, list[str]], tuple[Found, list[str]]]] = {
    "docker": _docker,
    "podman": _podman,
    "crictl": _crictl,
    "lxc-info": _lxc,
    "machinectl": _machinectl,
}
_ONE_BY_ONE = ("lxc-info", "machinectl")  # these take no list
