# SPDX-License-Identifier: GPL-3.0-or-later
"""All that the collection can change on a host, as the kernel shows it, read without any code of the collection."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

PINS = Path("/sys/fs/bpf/speed_limiter")
MEMORY = Path("/run/speed_limiter")
BUILT = (Path("/usr/lib/speed_limiter"), Path("/usr/share/speed_limiter"))

LEAF = 1 << 63  # a mark beside the rule of a member


class ActionModule(ActionBase):
    """``hierarchy`` (cgroup -> id and processes), ``config``, ``members``, ``generation``, ``pacing``, ``pins``,
    ``link``, ``files`` and, from these, ``rules`` by name.
    """

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        mount = cgroup2()
        hierarchy: dict[str, dict[str, Any]] = {
            "/" + directory.relative_to(mount).as_posix().strip("."): {
                "id": directory.stat().st_ino,
                # Those of the root come and go with every task.
                "pids": []
                if directory == mount
                else sorted(map(int, (directory / "cgroup.procs").read_text().split())),
            }
            for directory in [mount, *(path for path in mount.rglob("*") if path.is_dir())]
        }
        config = {entry["key"]: entry["value"] for entry in dump("rate_limit_config_map")}
        members = {entry["key"]: entry["value"] & ~LEAF for entry in dump("rate_limit_member_map")}
        places = [entry["value"] for entry in dump("rate_limit_place_map")]
        names = {cgroup["id"]: path for path, cgroup in hierarchy.items()}
        # A leaf that nobody is in any more goes with the next task.
        empty = {cgroup["id"] for cgroup in hierarchy.values() if not cgroup["pids"]} - set(members.values())
        counted = {key: rule for key, rule in members.items() if key not in empty}
        rules = {
            path.rpartition("/")[2]: {
                "id": cgroup["id"],
                "rate": config.get(cgroup["id"], {}).get("rate_bps"),
                "bucket": config.get(cgroup["id"], {}).get("bucket_size"),
                "members": sorted(
                    [f"{mount}{names.get(key, key)}" for key, rule in counted.items() if rule == cgroup["id"]]
                    + [f"{mount}{place['pattern']}" for place in places if place["rule"] == cgroup["id"]]
                ),
                # Its own cgroup's, and those of its leaves.
                "pids": sorted(
                    pid
                    for place, other in hierarchy.items()
                    if place == path or place.endswith(f"/speed_limiter.{path.rpartition('/')[2]}")
                    for pid in other["pids"]
                ),
            }
            for path, cgroup in hierarchy.items()
            if path.startswith("/speed_limiter/")
        }
        return {
            "changed": False,
            "mount": str(mount),
            "hierarchy": hierarchy,
            "rules": rules,
            "config": config,
            "members": members,
            "generation": [entry["value"]["generation"] for entry in dump("rate_limit_control_map")],
            "pacing": [entry["value"]["pacing"] for entry in dump("rate_limit_control_map")],
            "pins": sorted(path.name for path in PINS.iterdir()) if PINS.is_dir() else [],
            "link": bpftool("link", "show", "pinned", str(PINS / "limit_egress_link")),
            "files": {
                str(path): digest(path)
                for top in (MEMORY, *BUILT)
                for path in top.rglob("*")
                if path.name != "lock" and not path.name.startswith(("reading", "settling", "tracing"))
            },
            "bpffs": any(line.split()[4] == "/sys/fs/bpf" for line in open("/proc/self/mountinfo", encoding="utf-8")),
        }


def cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _separator, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise RuntimeError("no cgroup2 is mounted here")


def digest(path: Path) -> list[Any]:
    status = path.stat()
    return [oct(status.st_mode), path.read_text(encoding="latin-1") if path.suffix == ".json" else status.st_size]


def dump(name: str) -> list[dict[str, Any]]:
    """A pinned map's entries; BTF makes them readable."""
    found = bpftool("map", "dump", "pinned", str(PINS / name))
    return [entry.get("formatted", entry) for entry in found] if isinstance(found, list) else []


def bpftool(*arguments: str) -> Any:
    path = arguments[-1]
    if not os.path.exists(path):
        return None
    # Its exit status tells nothing: Debian 13's shows a link and returns 255. A failure is an answer with "error".
    done = subprocess.run(["bpftool", "--json", *arguments], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    if isinstance(found, dict) and "error" in found:
        raise ValueError(f"bpftool {' '.join(arguments)}: {found['error']}")
    return found
