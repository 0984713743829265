# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands of container runtimes print, and which cgroup is a container's own. Pure.

Nothing that a container says of itself counts: only its runtime's id or name for it, and the kernel's word for where
its first process is. A cgroup is the container's own if its name has that id. So a cgroup that others share is seen, as
is a pid that was used again, or one of another machine (a remote daemon's). json is imported where it is used.
"""

from __future__ import annotations

import re
import typing as t

from .errors import EMPTY, LimiterError

LXC = "LXC"
VIRTUAL_MACHINE = "virtual machine"
_COMMON = ("system.slice", "machine.slice", "user.slice")  # parents of containers that have none of their own
_ID = re.compile(r"[0-9a-f]{12,64}")


class Container(t.NamedTuple):
    """A container as its runtime shows it."""

    runtime: str  # as the world calls it: Docker, Podman ...
    title: str  # what tells it from others with its name
    mark: str  # matches the name of its own cgroup
    pid: int  # of its first process; 0 while it is stopped
    advice: str = ""  # what helps if it has another cgroup when it is made anew; empty where it has the same one


Found = dict[str, list[Container]]  # by the name or id that was asked for


def check_name(where: str, name: str) -> None:
    """Raises LimiterError ``bad_container`` for what no runtime has as a name or id."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", name):
        raise LimiterError(
            "bad_container",
            f"{where}containers: {name!r} is refused",
            "it is no name or id of a container" if name else "it is empty",
            "Give one container's name or id, as its runtime shows it" if name else EMPTY,
        )


def of_docker(runtime: str, names: t.Sequence[str], output: str) -> Found:
    """What ``docker container inspect NAME...`` printed, or Podman's, which is alike."""
    found: Found = {}
    for one in _read(output):
        identity, title = str(one.get("Id", "")), str(one.get("Name", "")).lstrip("/")
        pid = (one.get("State") or {}).get("Pid")
        if not _ID.fullmatch(identity) or not isinstance(pid, int):
            continue
        advice = "Start it with --cgroup-parent=NAME.slice, and limit the unit NAME.slice"
        container = Container(runtime, f"{title} {identity[:12]}", _named_by(identity), pid, advice)
        for name in names:
            if name == title or _is_id(name, identity):
                found.setdefault(name, []).append(container)
    return found


def listed_by_crictl(names: t.Sequence[str], output: str) -> dict[str, list[str]]:
    """What ``crictl ps --output json`` printed: the ids for each name. A pod's container has the name of its
    specification, so several pods may have one.
    """
    found: dict[str, list[str]] = {}
    for listing in _read(output):
        for one in listing.get("containers") or []:
            identity, title = str(one.get("id", "")), str((one.get("metadata") or {}).get("name", ""))
            for name in names:
                if _ID.fullmatch(identity) and (name == title or _is_id(name, identity)):
                    found.setdefault(name, []).append(identity)
    return found


def of_crictl(output: str) -> list[Container]:
    """What ``crictl inspect ID`` printed."""
    found = []
    for one in _read(output):
        status = one.get("status") or {}
        identity, pid = str(status.get("id", "")), (one.get("info") or {}).get("pid")
        if not _ID.fullmatch(identity) or not isinstance(pid, int):
            continue
        labels = status.get("labels") or {}
        pod = [labels.get(f"io.kubernetes.pod.{key}") for key in ("namespace", "name")]
        title = "/".join(str(part) for part in (*pod, (status.get("metadata") or {}).get("name")) if part)
        advice = "Limit its pod by cgroup_paths, with stars for what is not known before"
        found.append(Container("CRI", f"{title} {identity[:12]}", _named_by(identity), pid, advice))
    return found


def of_lxc(name: str, output: str) -> Container:
    """What ``lxc-info --name NAME --pid --no-humanize`` printed: nothing while the container is stopped."""
    text = output.strip()
    pid = int(text) if text.isascii() and text.isdecimal() else 0
    return Container(LXC, name, rf"lxc\.payload\.{re.escape(name)}(-[0-9]+)?", pid)


def of_machinectl(name: str, output: str) -> Container | None:
    """What ``machinectl show NAME`` printed of Unit, Leader and Class."""
    values = dict(line.partition("=")[::2] for line in output.splitlines())
    unit, leader = values.get("Unit", ""), values.get("Leader", "")
    if not unit or not leader.isdecimal():
        return None
    runtime = VIRTUAL_MACHINE if values.get("Class") == "vm" else "systemd-nspawn"
    return Container(runtime, name, re.escape(unit), int(leader))


def own_cgroup(container: Container, path: str) -> str | None:
    """The container's cgroup from that of its first process, which may be below it (an init system's); None where it
    has none of its own.
    """
    parts = path.split("/")
    if ".." in parts or "*" in path:
        return None
    for count, part in enumerate(parts):
        if re.fullmatch(container.mark, part):
            return "/".join(parts[: count + 1])
    return None


def advice(container: Container, place: str) -> str:
    """How to limit what is made anew, too; empty where nothing need be done."""
    above = place.split("/")[-2]
    if container.advice and above.endswith(".slice") and above not in _COMMON and container.runtime != "CRI":
        return f"It was started in {above}: limit that unit instead"
    return container.advice


def _named_by(identity: str) -> str:
    """docker-ID.scope, libpod-ID, cri-containerd-ID.scope, crio-ID.scope, or the id alone."""
    return rf"([a-z-]+-)?{identity}(\.scope)?"


def _is_id(name: str, identity: str) -> bool:
    return _ID.fullmatch(name) is not None and identity.startswith(name)


def _read(output: str) -> list[dict[str, t.Any]]:
    """One object, or a list of them; none where it is no JSON, as when only errors were printed."""
    import json

    try:
        found = json.loads(output)
    except ValueError:
        return []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]
