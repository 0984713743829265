# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf/layout.h in Python: the bytes of the maps' keys and values. A test compares every offset with the C compiler's.

All structs are free of padding, so the formats are native byte order with standard sizes (``=``).
"""

from __future__ import annotations

import struct
import typing as t

from .policy import LIMIT, Limit
from .reasons import REASONS, Counters

SCHEMA = 5
MAX_RULES = 65536
MAX_BUDGETS = 65536
MAX_MEMBERS = 131072
MAX_NESTED = 4
MAX_DEPTH = 16
MAX_NAME = 255  # bytes of a cgroup's name, the kernel's NAME_MAX
MAX_SHAPES = 4  # of names with a star, below one node
MAX_STAR_TEXT = 127  # bytes of a name before its star, and behind it
MAX_EDGES = 262144
MAX_PLACES = 65536
MAX_PATTERN = 1008  # bytes of a pattern
NO_RULE = (1 << 64) - 1  # as the rule of a budget that is being made or removed
LEAF = 1 << 63  # beside the rule of a member: it is a leaf
RELEASED = 0  # as a socket's tag: its process was moved out of a rule again
UNPACED = (1 << 64) - 1  # as a pacing rate: no limit
PACING_OFF, PACING_ON, PACING_REFUSED = 0, 1, 2
DEPARTURE_AUTO, DEPARTURE_OFF = 0, 1

# A cgroup's id, or in state a budget's key: the key of config, state and member; the value of member and socket.
ID = struct.Struct("=Q")
FD = struct.Struct("=i")  # the key of socket storage, as user space sees it
INDEX = struct.Struct("=I")  # the key of control: 0

CONFIG = struct.Struct("=" + "".join(field.config.form for field in LIMIT if field.config))
FAIR_SHARE = struct.Struct("=18Q12I")
STATE = struct.Struct("=qQIIQQQQQIIQQQQQQQQQQQ" + FAIR_SHARE.format[1:] + f"{2 * len(REASONS)}QQQII")
PACING = struct.Struct("=4QQQQQIIIIIIII" + MAX_NESTED * "QII" + "Q")
CONTROL = struct.Struct("=IIIIII60sI")
EDGE = struct.Struct(f"=II{MAX_NAME + 1}s")
NODE = struct.Struct(f"=QI{MAX_SHAPES}II")
# Of a state, only the rule whose budget it is.
_BEFORE_LIMIT = struct.calcsize("=qQIIQQQQQII")
STATE_LIMIT = struct.Struct(f"={_BEFORE_LIMIT}xQ{STATE.size - _BEFORE_LIMIT - 8}x")
# ... and when it was last charged.
STATE_CHARGED = struct.Struct(f"=8xQ{_BEFORE_LIMIT - 16}xQ{STATE.size - _BEFORE_LIMIT - 8}x")
GRAPH = struct.Struct("=QII")
SLOT = struct.Struct("=IIQ")
PLACE = struct.Struct(f"=QII{MAX_PATTERN}s")


class FairShare(t.NamedTuple):
    """What the controller knows of a rule; bpf/layout.h explains the fields."""

    share: int = 0
    paced_rate: int = 0
    clock_ns: int = 0
    epoch: int = 0
    epoch_start_ns: int = 0
    period_ns: int = 0
    lag_ns: int = 0
    modest_bytes: int = 0
    largest_bytes: int = 0
    control_bytes: int = 0
    control_rate: int = 0
    handshake_bytes: int = 0
    handshake_rate: int = 0
    foreign_bytes: int = 0
    foreign_rate: int = 0
    foreign_latest: int = 0
    early_bytes: int = 0
    early_rate: int = 0
    active: int = 0
    active_before: int = 0
    unpaced: int = 0
    unpaced_before: int = 0
    holders: int = 0
    holders_before: int = 0
    elsewhere: int = 0
    elsewhere_before: int = 0
    newcomers: int = 0
    burst: int = 0
    foreign_burst: int = 0
    begun: int = 0


class Use(t.NamedTuple):
    """How a rule is used, as bpf/use.h measures it: in spans of a second, or longer where packets are rare."""

    start_ns: int = 0  # CLOCK_MONOTONIC of the packet that ended the span before and began this one
    bytes: int = 0  # Counters.bytes at that time
    rate: int = 0  # what passed in the span before, in bytes per second
    withheld_ns: int = 0  # CLOCK_MONOTONIC, when a packet was last dropped or got a notice; 0: never
    delayed_ns: int = 0  # ... when a packet last had to wait for its departure time
    bound_ns: int = 0  # ... when the rule last held somebody back, by these or as a bottleneck
    since_ns: int = 0  # ... since when it did so, without a break


class State(t.NamedTuple):
    """A rule's state, or a budget's, as of its last packet; bpf/layout.h explains the last five fields."""

    tokens: int = 0  # bytes; negative is debt
    refilled_ns: int = 0  # CLOCK_MONOTONIC
    counters: Counters = Counters()
    use: Use = Use()
    fair: FairShare = FairShare()
    limit: int = 0
    cgroup: int = 0
    swept: int = 0
    shared_packets: int = 0
    once_bytes: int | None = 0  # None: an earlier version counted, which did not know


class Pacing(t.NamedTuple):
    """One socket's pacing rates: the one that we set (0: none) and the one that its process wants."""

    set: int
    own: int


class Control(t.NamedTuple):
    """The one entry of the control map; bpf/layout.h explains the fields."""

    schema: int = SCHEMA
    generation: int = 0
    tagged_sockets: int = 0
    program_id: int = 0
    pacing: int = PACING_OFF
    blind: int = 0
    identity: str = ""
    departure: int = DEPARTURE_AUTO


class Graph(t.NamedTuple):
    """The one entry of the graph map; the fields are explained in bpf/layout.h."""

    root: int = 0
    node: int = 0
    source: int = 0


CONFIG_FIELDS = tuple(field.config.name for field in LIMIT if field.config)
STATE_FIELDS = (
    "tokens",
    "last_update_ns",
    "lock",
    "fraction",
    "packets",
    "bytes",
    "dropped_bytes",
    "rate",
    "bucket",
    "generation",
    "swept",
    "limit",
    "cgroup",
    "shared_packets",
    "use_start_ns",
    "use_bytes",
    "use_rate",
    "use_withheld_ns",
    "use_delayed_ns",
    "use_bound_ns",
    "use_since_ns",
    "once_bytes",
    *(f"fair.{field}" for field in FairShare._fields),
    *(f"drops[{index}]" for index in range(len(REASONS))),
    *(f"notices[{index}]" for index in range(len(REASONS))),
    "delayed_packets",
    "delay_ns",
    "waiting_size",
    "reserved",
)
PACING_FIELDS = (
    *(f"rules[{index}]" for index in range(MAX_NESTED)),
    "share",
    "set",
    "own",
    "sent_ns",
    "generation",
    "suspected",
    "tightest",
    "passed",
    "clamp",
    "flags",
    "segment",
    "round_trip_us",
    *(f"marks[{index}].{field}" for index in range(MAX_NESTED) for field in ("epoch", "bytes", "flags")),
    "departs_ns",
)
CONTROL_FIELDS = Control._fields
EDGE_FIELDS = ("above", "shape", "name")
PLACE_FIELDS = ("rule", "each", "reserved", "pattern")
SLOT_FIELDS = ("lock", "secret", "budget")
NODE_FIELDS = ("rule", "each", *(f"shapes[{index}]" for index in range(MAX_SHAPES)), "strange")
# Of a state: what it counts, and what a new layout takes over of one that was made with an earlier one.
COUNTER_FIELDS = (
    *STATE_FIELDS[STATE_FIELDS.index("packets") : STATE_FIELDS.index("rate")],
    *STATE_FIELDS[STATE_FIELDS.index("drops[0]") : STATE_FIELDS.index("waiting_size")],
)
KEPT_FIELDS = (*COUNTER_FIELDS, "limit", "shared_packets", "once_bytes", *(f"use_{field}" for field in Use._fields))
CARRIED = struct.Struct(f"=qQ{len(COUNTER_FIELDS)}Q")
CARRIED_FIELDS = ("tokens", "reference_ns", *(f"counters[{index}]" for index in range(len(COUNTER_FIELDS))))

_COUNTERS = STATE_FIELDS.index("packets")
_SWEPT, _LIMIT, _CGROUP, _SHARED = map(STATE_FIELDS.index, ("swept", "limit", "cgroup", "shared_packets"))
_USE = STATE_FIELDS.index("use_start_ns")
_ONCE = STATE_FIELDS.index("once_bytes")
_FAIR = STATE_FIELDS.index("fair.share")
_DROPS = STATE_FIELDS.index("drops[0]")
_NOTICES = STATE_FIELDS.index("notices[0]")
_DELAYED = STATE_FIELDS.index("delayed_packets")
# The two fields of Pacing, which the layouts of all versions have at this place.
_TOLD = struct.Struct("=QQ")
_TOLD_AT = struct.calcsize("=5Q")


def pack_limit(limit: Limit) -> bytes:
    return CONFIG.pack(*limit)


def pack_full_state(bucket: int, now: int) -> bytes:
    """A new state, with a full bucket at ``now`` (nanoseconds of CLOCK_MONOTONIC)."""
    return STATE.pack(bucket, now, *[0] * (len(STATE_FIELDS) - 2))


def unpack_state(data: bytes) -> State:
    fields = STATE.unpack(data)
    packets, passed, dropped = fields[_COUNTERS : _COUNTERS + 3]
    return State(
        fields[0],
        fields[1],
        Counters(
            packets,
            passed,
            dropped,
            fields[_DROPS:_NOTICES],
            fields[_NOTICES:_DELAYED],
            *fields[_DELAYED : _DELAYED + 2],
        ),
        Use._make(fields[_USE:_ONCE]),
        FairShare._make(fields[_FAIR:_DROPS]),
        fields[_LIMIT],
        fields[_CGROUP],
        fields[_SWEPT],
        fields[_SHARED],
        fields[_ONCE],
    )


def unpack_pacing(data: bytes) -> Pacing:
    return Pacing._make(_TOLD.unpack_from(data, _TOLD_AT))


def pack_control(control: Control) -> bytes:
    return CONTROL.pack(*control[:-2], control.identity.encode(), control.departure)


def unpack_control(data: bytes) -> Control:
    *numbers, identity, departure = CONTROL.unpack(data)
    return Control._make((*numbers, identity.rstrip(b"\0").decode("ascii", "replace"), departure))
