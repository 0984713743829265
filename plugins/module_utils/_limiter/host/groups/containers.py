# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the runtimes of this host, by their own commands, where containers are."""

from __future__ import annotations

import typing as t

from ...core import containers
from ...core.containers import VIRTUAL_MACHINE, Container, Found
from ...core.errors import LimiterError
from .. import tools
from . import processes


class Containers:
    """The containers of a task; a runtime is asked once for all of them where it can be."""

    def __init__(self, names: t.Iterable[str]) -> None:
        """``names`` have passed `containers.check_name`. Raises nothing: `cgroup` does."""
        wanted = list(dict.fromkeys(names))
        self._found: Found = {}
        self._names = wanted
        self._said: dict[str, list[str]] = {}  # what each command said of what it does not have
        self._silent: list[str] = []
        for command, ask in _RUNTIMES.items() if wanted else ():
            path = tools.find(command)
            if path is None:
                continue
            try:
                found, said = ask(path, wanted)
            except LimiterError as error:
                found, said = {}, [error.why]
                self._silent.append(f"containers: {error.what}: {error.why}; its containers are not known")
            for name, listed in found.items():
                self._found.setdefault(name, []).extend(listed)
            self._said[command] = said

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
        places = {_place(here, one): one for one in runs}
        if len(places) > 1:
            raise LimiterError(
                "ambiguous_container",
                f"{here} is the name of several containers",
                "; ".join(f"{one.runtime}: {one.title}" for one in places.values()),
                "Give the id of one, or its path in cgroup_paths",
            )
        ((place, one),) = places.items()
        warnings = list(self._silent)
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
    if place is None:
        raise LimiterError(
            "shared_cgroup",
            f"{here} has no cgroup of its own ({one.runtime})",
            f"its first process, {one.pid}, is in {process.cgroup}, where others may be, too",
            "Start it with a cgroup of its own, or give a path in cgroup_paths",
        )
    return place


def _stopped(here: str, one: Container) -> LimiterError:
    return LimiterError(
        "container_not_running",
        f"{here} does not run ({one.runtime})",
        "a container has a cgroup only while it runs",
        "Start it first, or limit the cgroup parent that it is started with",
    )


# ---- the runtimes: what they have of these names, and what they said about the others


def _docker(path: str, names: list[str]) -> tuple[Found, list[str]]:
    return _inspected("Docker", path, names)


def _podman(path: str, names: list[str]) -> tuple[Found, list[str]]:
    return _inspected("Podman", path, names)


def _inspected(runtime: str, path: str, names: list[str]) -> tuple[Found, list[str]]:
    _code, output, errors = tools.ask([path, "container", "inspect", "--", *names])
    return containers.of_docker(runtime, names, output), tools.lines(errors)


def _crictl(path: str, names: list[str]) -> tuple[Found, list[str]]:
    found: Found = {}
    _code, output, errors = tools.ask([path, "ps", "--output", "json"])
    for name, identities in containers.listed_by_crictl(names, output).items():
        shown = (tools.ask([path, "inspect", identity])[1] for identity in identities)
        found[name] = [one for text in shown for one in containers.of_crictl(text)]
    return found, tools.lines(errors)


def _lxc(path: str, names: list[str]) -> tuple[Found, list[str]]:
    found: Found = {}
    said: list[str] = []
    for name in names:
        code, output, errors = tools.ask([path, "--name", name, "--pid", "--no-humanize"])
        if code == 0:
            found[name] = [containers.of_lxc(name, output)]
        said += tools.lines(errors or output * bool(code))
    return found, said


# Unlike systemctl, machinectl takes no list.
_SHOWN = ("--property=Unit", "--property=Leader", "--property=Class")


def _machinectl(path: str, names: list[str]) -> tuple[Found, list[str]]:
    found: Found = {}
    said: list[str] = []
    for name in names:
        _code, output, errors = tools.ask([path, "show", *_SHOWN, "--", name])
        one = containers.of_machinectl(name, output)
        if one:
            found[name] = [one]
        said += tools.lines(errors)
    return found, said


_RUNTIMES: t.Mapping[str, t.Callable[[str, list[str]], tuple[Found, list[str]]]] = {
    "docker": _docker,
    "podman": _podman,
    "crictl": _crictl,
    "lxc-info": _lxc,
    "machinectl": _machinectl,
}
