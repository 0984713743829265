# SPDX-License-Identifier: GPL-3.0-or-later
"""How many sockets have something in a pinned map of socket storage: an iterator counts them (kernel 5.9)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins

from . import bpf
from .foreign import INCLUDES

_COUNTS = f"""{INCLUDES}
struct {{
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
}} counted SEC(".maps");
struct storage {{ void *meta; void *map; void *socket; void *value; }};
SEC("iter/bpf_sk_storage_map") int count(struct storage *storage)
{{
    __u32 key = 0;
    __u64 *number = bpf_map_lookup_elem(&counted, &key);

    if (number && storage->socket)
        __sync_fetch_and_add(number, 1);
    return 0;
}}
char LICENSE[] SEC("license") = "GPL";
"""


def stored(compiled: Callable[[str], str], name: str = "rate_limit_pacing_map") -> int:
    """`compiled`: the fixture of that name."""
    with bpf.Object(compiled(_COUNTS)) as opened:
        opened.load("count")
        program, counted = opened.program("count"), opened.map("counted", 8)
    pinned = bpf.open_pin(pins.path(name))
    try:
        bpf.iterate(program, pinned)
        return int(struct.unpack("=Q", counted[bytes(4)])[0])
    finally:
        counted.close()
        os.close(pinned)
        os.close(program)
