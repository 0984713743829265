# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on the host, beside what tasks have asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import budgets, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import load
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter

from .meters import PASSING
from .model import Member
from .tasks import Host, stored

# Packets that one rule has charged and another then drops are taken back: who reads in between sees one a processor.
PASSING_PACKETS = 100


def differences(
    host: Host, members: Mapping[int, Member], pins: Mapping[str, Collection[str]], tidy: bool
) -> list[str]:
    """In words. ``pins``: those of each state of the program; ``tidy``: no process has ended since all was tidied up.
    Else rules may keep cgroups that nobody is in any more.
    """
    found, wanted = limiter.snapshot(*members), host.wanted
    own = {name: f"/speed_limiter/{name}" for name in wanted.rules}
    places = {
        pid: f"{member.home}/speed_limiter.{wanted.inside[pid]}" if pid in wanted.inside else member.home
        for pid, member in members.items()
    }
    leaves = {places[pid]: own[name] for pid, name in wanted.inside.items()}
    left = {cgroup for cgroup in found.cgroups if "/speed_limiter." in cgroup} - leaves.keys()
    cgroups = {*own.values(), *leaves}
    entries = {**{path: path for path in own.values()}, **leaves}
    entries.update({pattern: own[name] for name, rule in wanted.rules.items() for pattern in rule.places})
    gone = {key: rule for key, rule in found.members.items() if key not in entries}
    all_left = left
    if not tidy:
        gone = {key: rule for key, rule in gone.items() if rule not in own.values() or not _is_left(key)}
        left = set()
    remembered = found.remembered
    told = [
        *_differ("limits", {own[name]: Limit(*rule[:2]) for name, rule in wanted.rules.items()}, found.limits),
        *_differ("states", sorted(own.values()), list(found.states)),
        *_differ("places", places, found.places),
        *_differ("cgroups", sorted(cgroups), sorted({*found.cgroups} - all_left - {"/speed_limiter"})),
        *_differ("members", entries, {key: rule for key, rule in found.members.items() if key in entries}),
        *_differ("other members", {}, gone),
        *_differ("other leaves", [], sorted(left)),
        *_differ("pins", sorted(pins[host.program or ("maps" if host.maps else "none")]), sorted(found.pins)),
        *_differ("files", [], sorted({*found.files} - {"state.json"})),
        *_differ("in transit", (), remembered.in_transit),
        *_differ("automatic", [], [name for name in remembered.automatic if name not in wanted.rules]),
        *_differ("homes", {}, {name: home for name, home in remembered.homes.items() if name not in wanted.rules}),
        *_differ("stored", _stored(host), {name: _form(text) for name, text in found.stored.items()}),
    ]
    if remembered.last is not None and remembered.last not in wanted.rules:
        told.append(f"last: {remembered.last} is no rule")
    return told


def _is_left(key: str) -> bool:
    return key.startswith("gone: ") or "/speed_limiter." in key


def _stored(host: Host) -> dict[str, object]:
    return {f"rules.d/{name}.json": stored(rule) for name, rule in host.wanted.rules.items() if rule.persistent}


def _form(text: str) -> object:
    found = json.loads(text)
    found.pop("schema")
    return found


def _differ(what: str, wanted: object, found: object) -> list[str]:
    if wanted == found:
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        both = [key for key in wanted if key in found and wanted[key] == found[key]]
        wanted, found = ({key: it[key] for key in it if key not in both} for it in (wanted, found))
    elif isinstance(wanted, list) and isinstance(found, list):
        wanted, found = [it for it in wanted if it not in found], [it for it in found if it not in wanted]
    return [f"{what}: wanted {wanted}, found {found}"]


def counted() -> dict[int, Counters]:
    """Of each rule, by its id, with its budgets."""
    with_maps = Maps.open(load())
    if with_maps is None:
        return {}
    with with_maps as maps:
        found = {rule: seen for rule in maps.state_rules() if (seen := maps.counters(rule))}
        found.update({rule: seen.counters for rule, seen in budgets.counted(maps).items()})
    return found


def went_back(before: Mapping[int, Counters], after: Mapping[int, Counters]) -> list[str]:
    """Which counters of a rule are less than they were. A rule that is made again is another one."""
    told = []
    for rule in before.keys() & after.keys():
        for name, most in (
            ("packets", PASSING_PACKETS),
            ("bytes", PASSING),
            ("dropped_packets", 0),
            ("dropped_bytes", 0),
        ):
            old, new = getattr(before[rule], name), getattr(after[rule], name)
            if new < old - most:
                told.append(f"{name} of the rule with id {rule} went from {old} to {new}")
    return told


def memlock() -> dict[str, int]:
    """Bytes of the kernel's memory that each pinned map takes."""
    found = {}
    for name in os.listdir(pins.PIN_DIR):
        fd = bpf.open_pin(pins.path(name))
        try:
            about = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
        finally:
            os.close(fd)
        if "memlock" in about and "map_id" in about:
            found[name] = int(about["memlock"])
    return found
