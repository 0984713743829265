# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Departure times, as far as one can tell from outside whether packets get them: bpf/departure.h."""

from __future__ import annotations

import typing as t

from .model import Program

FQ, MANY = "fq", ("mq", "mqprio")
ROOT = 0xFFFFFFFF
_MAJOR = 0xFFFF0000


class Qdisc(t.NamedTuple):
    """A queueing discipline of a device."""

    device: str
    handle: int
    parent: int
    kind: str


def holding(qdiscs: t.Sequence[Qdisc] | None) -> list[str] | None:
    """The devices that hold packets until their time: fq is at the root, or below each of mq's queues. None as
    ``qdiscs``: the kernel does not tell.
    """
    if qdiscs is None:
        return None
    found = []
    for root in (one for one in qdiscs if one.parent == ROOT):
        leaves = [
            one.kind
            for one in qdiscs
            if one.device == root.device and one.parent != ROOT and one.parent & _MAJOR == root.handle
        ]
        if root.kind == FQ or (root.kind in MANY and leaves and set(leaves) == {FQ}):
            found.append(root.device)
    return sorted(found)


def about(program: Program, earlier: bool = False) -> dict[str, t.Any]:
    """``program.departure`` of a module's result. ``earlier``: it is of a version that had no departure times."""
    if earlier:
        return {"state": "off", "reason": "the program is of an earlier version, and lets no packet wait"}
    if program.departure == "off":
        return {
            "state": "off",
            "reason": "departure times are switched off: speed_limit_program with departure=auto switches them on",
        }
    if program.blind:
        return {
            "state": "refused",
            "reason": "the kernel forbids BPF to read its memory, so the program cannot see which devices have fq",
        }
    return {"state": "on", "reason": None}
