# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection has in a host's kernel: a row for each map, each program and the object file they come from.

Loading, attaching, pinning, listing, purging and docs/architecture.md follow these rows. CONTRIBUTING.md says how to
add one. A map that is not pinned begins empty with every program, and has no row.
"""

from __future__ import annotations

import struct
import typing as t

from . import layout

HASH, ARRAY, SOCKET_STORAGE = 1, 2, 24  # BPF_MAP_TYPE_*
TRACING_LINK, CGROUP_LINK, ITERATOR_LINK = 2, 3, 4  # BPF_LINK_TYPE_*


class MapRow(t.NamedTuple):
    """A map; its pin has its name.

    When its layout changes, the fields of its values that are ``kept`` are copied to a new one, by their names; where
    there are none, it begins empty.
    """

    name: str
    type: int
    key: struct.Struct
    value: struct.Struct
    since: int = 2  # the schema that brought it
    next: str = ""  # the pin of the one that will take its place, while a layout changes; none: its layout never does
    fields: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Hook(t.NamedTuple):
    """A kind of attachment, or of running."""

    name: str  # the section of its programs in the object file
    program_type: int  # BPF_PROG_TYPE_*
    attach_type: int  # BPF_CGROUP_*, BPF_TRACE_ITER
    link_type: int


class ProgramRow(t.NamedTuple):
    """A program and the pin of its link. A program with ``refused`` is optional."""

    name: str
    hook: Hook
    link: str = ""
    moving: str = ""  # the pin of its next link, while the attach point is being moved
    since: tuple[int, int] = (0, 0)  # an older kernel lacks what it needs; trying to load it there would take seconds
    refused: str = ""  # the consequence where the kernel refuses it
    paces: bool = False  # only there for pacing: left out without pacing, and removed when pacing is switched off
    carries: bool = False  # only there while a layout changes: pinned itself, under its name, and run


class Part(t.NamedTuple):
    """A part of a program that some kernels forbid: a byte in a section, 0 to leave the part out."""

    name: str
    section: str
    refused: str


class ObjectRow(t.NamedTuple):
    """An object file: its source in bpf/, what it must contain, and what it has for a trace."""

    source: str
    programs: tuple[ProgramRow, ...]  # each is loaded only together with all before it
    maps: tuple[MapRow, ...]
    tracers: tuple[ProgramRow, ...]  # of which the first is needed
    tracer_maps: tuple[str, ...]  # of those, not pinned


CONFIG = MapRow(
    "rate_limit_config_map",
    HASH,
    layout.ID,
    layout.CONFIG,
    next="rate_limit_config_map_new",
    fields=layout.CONFIG_FIELDS,
    kept=layout.CONFIG_FIELDS,
)
STATE = MapRow(
    "rate_limit_state_map",
    HASH,
    layout.ID,
    layout.STATE,
    next="rate_limit_state_map_new",
    fields=layout.STATE_FIELDS,
    kept=layout.KEPT_FIELDS,
)
MEMBER = MapRow("rate_limit_member_map", HASH, layout.ID, layout.ID)
SOCKET = MapRow("rate_limit_socket_map", SOCKET_STORAGE, layout.FD, layout.ID)  # nobody could copy it
PACING = MapRow(
    "rate_limit_pacing_map",
    SOCKET_STORAGE,
    layout.FD,
    layout.PACING,
    next="rate_limit_pacing_map_new",
    fields=layout.PACING_FIELDS,
)
SLOT = MapRow("rate_limit_slot_map", ARRAY, layout.INDEX, layout.SLOT, since=5)
EDGE = MapRow("rate_limit_edge_map", HASH, layout.EDGE, layout.INDEX, since=4)
NODE = MapRow("rate_limit_node_map", HASH, layout.INDEX, layout.NODE, since=4)
GRAPH = MapRow("rate_limit_graph_map", ARRAY, layout.INDEX, layout.GRAPH, since=4)
PLACE = MapRow("rate_limit_place_map", HASH, layout.INDEX, layout.PLACE, since=5)
CONTROL = MapRow("rate_limit_control_map", ARRAY, layout.INDEX, layout.CONTROL)  # every version has to read the schema
# Only there while the layout of the state changes.
CARRIED = MapRow("rate_limit_carried_map", HASH, layout.ID, layout.CARRIED)

EGRESS = Hook("cgroup_skb/egress", 8, 1, CGROUP_LINK)
SOCK_OPS = Hook("sockops", 13, 3, CGROUP_LINK)
TCP_ITERATOR = Hook("iter/tcp", 26, 28, ITERATOR_LINK)
TEST_RUN = Hook("tc", 3, 0, 0)  # never attached: user space runs it

LIMIT = ProgramRow("limit_egress", EGRESS, "limit_egress_link", "limit_egress_link_new")
CARRY = ProgramRow("carry_over", TEST_RUN, carries=True)
PACE = ProgramRow(
    "pace_sockets",
    SOCK_OPS,
    "pace_sockets_link",
    "pace_sockets_link_new",
    refused="TCP is not paced here; only the token bucket limits it",
    paces=True,
)
SETTLE = ProgramRow(
    "settle_sockets",
    TCP_ITERATOR,
    "settle_sockets_link",  # reading it runs it in the reader's network namespace
    since=(6, 1),  # bpf_setsockopt in iter/tcp
    refused="connections that are already open are paced and released later",
    paces=True,
)
# While a trace lasts: it has the place of LIMIT on its link, and is beside it in the object.
TRACE = ProgramRow("limit_and_trace", EGRESS)
TRACE_ARRIVAL = ProgramRow(
    "trace_arrival", Hook("cgroup_skb/ingress", 8, 0, CGROUP_LINK), refused="packets that arrive are not told"
)
TRACE_CREATION = ProgramRow(
    "trace_creation",
    Hook("cgroup/sock_create", 9, 2, CGROUP_LINK),
    refused="sockets that the process makes during the trace are not told",
)
TRACE_REFUSAL = ProgramRow(
    "trace_refusal",
    Hook("tp_btf/kfree_skb", 26, 23, TRACING_LINK),
    refused="packets that another program drops look as if they had passed",
)
UNTRACED = LIMIT.name  # the pin of LIMIT meanwhile
TRACER_SECTION = ".rodata.trace"  # what a trace is asked for
# In LIMIT: looking into the kernel's memory, which lockdown may forbid.
LOOK = Part(
    "kernel_memory",
    ".rodata.memory",
    "traffic that IPsec sends through a tunnel's device is charged twice, and reaches only half of its limit, and no "
    "packet waits where its device has fq",
)

# Control is pinned last: where it is, all the others are.
MAPS = (CONFIG, STATE, SLOT, MEMBER, EDGE, NODE, GRAPH, PLACE, SOCKET, PACING, CONTROL)
PROGRAMS = (LIMIT, CARRY, PACE, SETTLE)
TRACERS = (TRACE, TRACE_ARRIVAL, TRACE_CREATION, TRACE_REFUSAL)
TRACE_RING, TRACE_STATE, TRACE_CGROUPS, TRACE_SOCKETS = (
    "trace_ring",
    "trace_state_map",
    "trace_cgroup_map",
    "trace_socket_map",
)
TRACER_MAPS = (TRACE_RING, TRACE_STATE, TRACE_CGROUPS, TRACE_SOCKETS, "trace_passed_map")
LIMITER = ObjectRow("limiter.bpf.c", PROGRAMS, (*MAPS, CARRIED), TRACERS, TRACER_MAPS)


def links(programs: t.Iterable[ProgramRow]) -> dict[str, Hook]:
    """Pins of the programs' links, and the hook of each, in the order of detaching: pacing may last only as long as
    packets are limited.
    """
    ordered = sorted(programs, key=lambda program: not program.paces)
    return {pin: program.hook for program in ordered for pin in (program.moving, program.link) if pin}


LINKS = links(PROGRAMS)
PACING_LINKS = links(program for program in PROGRAMS if program.paces)
# Pins that are only there while a layout changes: of maps, then of programs.
NEXT = {row.next: row for row in MAPS if row.next}
CARRYING = tuple(program.name for program in PROGRAMS if program.carries)
PASSING = (*CARRYING, CARRIED.name, *NEXT)
PINS = (*(row.name for row in MAPS), *LINKS, *PASSING, UNTRACED)
