# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the name of a systemd unit to the cgroups of its processes and sockets. Pure: what systemctl prints comes in.

A unit's cgroup is below its slice's, and is named like the unit, escapes included: ``/system.slice/a.service``. The
names of a slice say where it is: ``/foo.slice/foo-bar.slice``. While a unit runs it can be elsewhere, if its slice was
changed since it was started; both places count. Sockets that systemd opens for a service are in the cgroup of the
``.socket``, also after the service has taken them over.
"""

from __future__ import annotations

import re
import typing as t

from .errors import EMPTY, LimiterError

# What systemctl is asked for; it prints the properties that a unit's type has, in any order.
PROPERTIES = "Id,LoadState,LoadError,ControlGroup,Slice,TriggeredBy,Triggers,Accept"
# An instance that nobody has: it shows where the instances of a template are. It has no letters to be escaped.
PROBE = "0speed0limiter0"

_WITH_CGROUP = (".service", ".socket", ".slice", ".scope", ".mount", ".swap")
_WITHOUT = (".target", ".timer", ".path", ".device", ".automount")
_LONGEST = 255
_OF_THE_KERNEL = re.compile(
    r"[_.]|(notify_on_release|release_agent|tasks)$|(cgroup|cpu|cpuacct|cpuset|io|blkio|memory|devices|pids|"
    r"bpf-(firewall|devices|foreign|socket-bind|restrict-network-interfaces|bind-network-interface))\."
)


class Unit(t.NamedTuple):
    """A unit as systemctl shows it."""

    name: str  # not an alias
    state: str  # of its file: loaded, not-found, masked, bad-setting, error ...
    error: str  # what systemd says of that
    cgroup: str  # where it is now; empty while it is stopped
    slice: str  # where it will be when it is started; empty for the root slice and for what is not loaded
    triggered_by: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    accepts: bool = False  # a socket that starts an instance for each connection


def full_name(where: str, text: str) -> str:
    """The name as systemctl completes it. Raises LimiterError ``bad_unit``."""

    def bad(why: str, remedy: str) -> LimiterError:
        return LimiterError("bad_unit", f"{where}units: {text!r} is refused", why, remedy)

    if not text:
        raise bad("it is empty", EMPTY)
    if re.search(r"[*?\[\]]", text):
        pattern = f"/system.slice/{text}" if text.count("*") == 1 else "/system.slice/a-*.service"
        raise bad("a unit is one name", f"Give several cgroups as a path with a star: cgroup_paths: {pattern}")
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+", text) or len(text) > _LONGEST:
        raise bad("it is no name of a unit", "Write it as systemctl shows it, with escapes such as \\x2d")
    name = text if text.endswith(_WITH_CGROUP + _WITHOUT) else f"{text}.service"
    if name.endswith(_WITHOUT):
        raise bad("such a unit has no processes", "Give the service that it starts")
    stem, suffix = _split(name)
    if not stem or stem.startswith("@") or (suffix == ".slice" and "@" in stem):
        raise bad("it is no name of a unit", "Give a name such as a.service, a@b.service or a.slice")
    return name


def questions(name: str) -> list[str]:
    """The units to look at for a unit: itself, or an instance that shows where a template's are; and its sockets."""
    stem, suffix = _split(name)
    asked = [_probed(name)]
    if suffix == ".service":
        asked.append(_probed(f"{stem}.socket"))
        if "@" in stem:
            asked.append(f"{stem.partition('@')[0]}.socket")
    return asked


def instances(name: str) -> str | None:
    """For a template, what systemctl calls all its instances that it knows now."""
    stem, suffix = _split(name)
    return f"{stem}*{suffix}" if stem.endswith("@") else None


def parse(output: str) -> list[Unit]:
    """What ``systemctl show`` prints: a paragraph for each unit."""
    units = []
    for paragraph in re.split(r"\n\n+", output.strip("\n")):
        values = dict(line.partition("=")[::2] for line in paragraph.split("\n"))
        if "Id" in values:
            units.append(
                Unit(
                    values["Id"],
                    values.get("LoadState", ""),
                    _said(values.get("LoadError", "")),
                    values.get("ControlGroup", ""),
                    values.get("Slice", ""),
                    _words(values.get("TriggeredBy", "")),
                    _words(values.get("Triggers", "")),
                    values.get("Accept") == "yes",
                )
            )
    return units


def cgroups(
    where: str, name: str, shown: t.Mapping[str, Unit], running: t.Iterable[Unit] = (), present: bool = True
) -> list[str]:
    """The paths, with a star for the instances of a template.

    ``shown`` has what was asked by the names that were asked, and sockets by their own. ``running`` are the instances
    of a template that systemd knows. Without ``present``, a unit that is not there any more is where it would be if
    nobody had given it a slice. Raises LimiterError: ``unknown_unit``, ``unusable_unit``.
    """
    unit = shown[_probed(name)]
    if not unit.slice and not unit.cgroup and unit.name != "-.slice":
        if present:
            raise _not_loaded(where, name, unit)
        unit = unit._replace(slice=_usual_slice(unit.name))
    found = [place for one in (unit, *_sockets(name, unit, shown)) for place in _places(one)]
    found = [_starred(place) for place in found]
    for instance in running:
        if instance.cgroup and not any(_matches(pattern, instance.cgroup) for pattern in found):
            found.append(instance.cgroup)
    return list(dict.fromkeys(found))


def unseen_sockets(name: str, shown: t.Mapping[str, Unit]) -> list[str]:
    """Sockets with names of their own that start a service, and that have not been asked for."""
    return [one for one in shown[_probed(name)].triggered_by if one.endswith(".socket") and one not in shown]


def slice_path(name: str) -> str:
    """Where a slice is: ``foo-bar.slice`` is ``/foo.slice/foo-bar.slice``; ``-.slice`` is the root."""
    if name in ("-.slice", ""):
        return ""
    parts = name[: -len(".slice")].split("-")
    names = (f"{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))
    return "".join(f"/{escaped(name)}" for name in names)


def escaped(name: str) -> str:
    """A unit's name as the name of its cgroup: systemd keeps it apart from the kernel's files (cg_escape())."""
    return f"_{name}" if _OF_THE_KERNEL.match(name) else name


def _places(unit: Unit) -> list[str]:
    if unit.name.endswith(".slice"):
        return [slice_path(unit.name) or "/"]
    will_be = f"{slice_path(unit.slice)}/{escaped(unit.name)}" if unit.slice else ""
    return [place for place in (will_be, unit.cgroup) if place]


def _sockets(name: str, unit: Unit, shown: t.Mapping[str, Unit]) -> list[Unit]:
    found = []
    for asked in dict.fromkeys([*questions(name)[1:], *unit.triggered_by]):
        socket = shown.get(asked)
        if socket is None or not socket.slice or not socket.name.endswith(".socket"):
            continue
        starts = asked in unit.triggered_by or unit.name in socket.triggers
        if starts or (socket.accepts and asked == f"{unit.name.partition('@')[0]}.socket"):
            found.append(socket)
    return found


def _not_loaded(where: str, name: str, unit: Unit) -> LimiterError:
    said = unit.error.replace(PROBE, "")
    if unit.state != "not-found":
        why = said or f"systemd says {unit.state}"
        remedy = f"See systemctl status {name}" + ("; systemctl unmask lets it start" * (unit.state == "masked"))
        return LimiterError("unusable_unit", f"{where}units: {name} cannot be limited", why, remedy)
    if name.endswith(".scope"):
        remedy = "A scope is there only while it runs; give its path in cgroup_paths, which may have a star"
    else:
        remedy = (
            "See systemctl list-unit-files and systemctl list-units; what a user's own systemd runs is found by users, "
            "or by its path in cgroup_paths"
        )
    return LimiterError("unknown_unit", f"{where}units: {name} does not exist on this host", f"systemd: {said}", remedy)


def _usual_slice(name: str) -> str:
    """The slice of a unit that says nothing about it."""
    stem, suffix = _split(name)
    if suffix == ".slice":
        return ""
    if "@" in stem:
        escaped = re.sub(r"[-\\]|^\.", lambda match: f"\\x{ord(match.group()):02x}", stem.partition("@")[0])
        return f"system-{escaped}.slice"
    return "-.slice" if suffix in (".mount", ".swap") else "system.slice"


def _probed(name: str) -> str:
    stem, suffix = _split(name)
    return f"{stem}{PROBE}{suffix}" if stem.endswith("@") else name


def _starred(path: str) -> str:
    return re.sub(f"{PROBE}[^/]*{PROBE}|{PROBE}", "*", path)


def _matches(pattern: str, path: str) -> bool:
    return re.fullmatch("[^/]*".join(map(re.escape, pattern.split("*"))), path) is not None


def _split(name: str) -> tuple[str, str]:
    stem, _point, suffix = name.rpartition(".")
    return stem, f".{suffix}"


def _words(text: str) -> tuple[str, ...]:
    """A list of names. systemctl quotes those that have a backslash, and doubles it."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', text)
    return tuple(re.sub(r"\\(.)", r"\1", quoted) if quoted else bare for quoted, bare in found)


def _said(error: str) -> str:
    """The text of a D-Bus error: ``org.freedesktop.systemd1.NoSuchUnit "Unit a.service not found."``"""
    return (re.fullmatch(r'\S+ "(.*?)\.?"', error) or re.fullmatch("(.*)", error) or [error])[1]
