# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf/layout.h in Python: the bytes of the maps' keys and values. A test compares every offset with the C compiler's.

All structs are free of padding, so the formats are native byte order with standard sizes (``=``).
"""

from __future__ import annotations

import struct
import typing as t

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Counters, Limit

SCHEMA = 1
MAX_RULES = 65536
MAX_MEMBERS = 131072
MAX_NESTED = 4
MAX_DEPTH = 16
RELEASED = 0  # as the rule of a socket: its process was moved out of a rule again

ID = struct.Struct("=Q")  # a cgroup's id: the key of config, state and member; the value of member and socket
FD = struct.Struct("=i")  # the key of the socket storage, as user space sees it
INDEX = struct.Struct("=I")  # the key of control: 0

CONFIG = struct.Struct("=QQ")
STATE = struct.Struct("=qQIIQQQQQ")
CONTROL = struct.Struct("=IIII64s")

CONFIG_FIELDS = ("rate_bps", "bucket_size")
STATE_FIELDS = (
    "tokens",
    "last_update_ns",
    "lock",
    "fraction",
    "packets",
    "bytes",
    "dropped_packets",
    "dropped_bytes",
    "congestion_marks",
)
CONTROL_FIELDS = ("schema", "generation", "bound_sockets", "program_id", "identity")


class Control(t.NamedTuple):
    """The one entry of the control map; the fields are explained in bpf/layout.h."""

    schema: int = SCHEMA
    generation: int = 0
    bound_sockets: int = 0
    program_id: int = 0
    identity: str = ""


def pack_limit(limit: Limit) -> bytes:
    return CONFIG.pack(limit.rate, limit.bucket)


def unpack_limit(data: bytes) -> Limit:
    return Limit(*CONFIG.unpack(data))


def pack_full_state(bucket: int, now: int) -> bytes:
    """A state whose bucket is full at ``now`` (nanoseconds of CLOCK_MONOTONIC) and that has counted nothing."""
    return STATE.pack(bucket, now, 0, 0, 0, 0, 0, 0, 0)


def unpack_counters(data: bytes) -> Counters:
    return Counters(*STATE.unpack(data)[4:])


def pack_control(control: Control) -> bytes:
    return CONTROL.pack(*control[:4], control.identity.encode())


def unpack_control(data: bytes) -> Control:
    *numbers, identity = CONTROL.unpack(data)
    return Control._make((*numbers, identity.rstrip(b"\0").decode("ascii", "replace")))
