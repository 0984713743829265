# SPDX-License-Identifier: GPL-3.0-or-later
"""How long packets wait, compiled for user space: what leaves at its time keeps the limit, in order, and in time."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

BPF = Path(__file__).resolve().parents[2] / "bpf"
SECOND = 10**9
HORIZON = SECOND // 20
PACKETS = 60  # that may wait
FRAGMENT = 1480  # IP makes of larger ones
FLOW_LIMIT = 100  # of fq
TCP, CONTROL, PACED = 1, 2, 4
RETURNS = {
    "start": None,
    "send": ctypes.c_int64,
    "bound": ctypes.c_int64,
    "size": ctypes.c_uint32,
    "room": ctypes.c_uint64,
    "wait_of": ctypes.c_uint64,
}

SHIM = """
#include <stdbool.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#include "departure.h"

static struct rate_limit_state state;

void start(__u64 rate, __u64 bucket, __u64 now)
{
    state = (struct rate_limit_state){};
    token_bucket_fill(&state, bucket);
    state.last_update_ns = now;
    fair_share_change_limit(&state, rate, bucket, now);
}

/* What bpf/charge.h and bpf/queue.h do. The time to wait; -1: dropped. */
__s64 send(__u64 now, __u32 bytes, __u32 flags)
{
    struct packet packet = { .bytes = bytes, .segments = 1, .tcp = flags & 1, .control = flags >> 1 & 1,
                             .paced = flags >> 2 & 1 };
    struct answer answer;

    if (departure_matters(state.tokens, state.rate, &packet))
        packet.room = departure_room(&state, &packet);
    answer = verdict_charge(&state, 0, &packet, now, flags >> 3 & 1);
    if (answer.verdict == VERDICT_DROP)
        return -1;
    if (!packet.room)
        return 0;
    state.waiting_size = departure_size(&state, &packet);
    return departure_wait(&state, &packet, now);
}

__u32 size(__s64 tokens, __u32 waiting, __u32 bytes, __u32 flags)
{
    struct rate_limit_state some = { .tokens = tokens, .waiting_size = waiting };
    struct packet packet = { .bytes = bytes, .segments = 1, .tcp = flags & 1, .control = flags >> 1 & 1 };

    return departure_size(&some, &packet);
}

__u64 room(__s64 tokens, __u64 rate, __u32 waiting, __u32 bytes)
{
    struct rate_limit_state some = { .tokens = tokens, .rate = rate, .waiting_size = waiting };
    struct packet packet = { .bytes = bytes };

    return departure_room(&some, &packet);
}

__s64 bound(__u64 rate, __u64 bucket, __u32 bytes, __u32 flags, bool waits)
{
    struct rate_limit_state some = { .rate = rate, .bucket = bucket, .tokens = -1 };
    struct packet packet = { .bytes = bytes, .segments = 1, .tcp = flags & 1, .control = flags >> 1 & 1,
                             .paced = flags >> 2 & 1, .idle = flags >> 3 & 1 };

    packet.room = waits ? departure_room(&some, &packet) : 0;
    return verdict_bounds(&some, &packet, 1, true).drop.tokens;
}

__u64 wait_of(__s64 tokens, __u64 rate, __u64 clock, __u64 paced, __u32 bytes, __u32 flags)
{
    struct rate_limit_state some = { .tokens = tokens, .rate = rate };
    struct packet packet = { .bytes = bytes };

    packet.tcp = flags & 1;
    packet.control = flags >> 1 & 1;
    packet.paced = flags >> 2 & 1;
    some.fair.clock_ns = clock;
    some.fair.paced_rate = paced;

    return departure_wait(&some, &packet, 1);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("departure")
    source, built = directory / "departure.c", directory / "departure.so"
    source.write_text(SHIM)
    sanitizers = ["-fsanitize=signed-integer-overflow,integer-divide-by-zero", "-fsanitize-undefined-trap-on-error"]
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", *sanitizers, "-shared", "-fPIC"]
    subprocess.run([*command, "-I", str(BPF), "-o", str(built), str(source)], check=True)
    found = ctypes.CDLL(str(built))
    for name, kind in RETURNS.items():
        getattr(found, name).restype = kind
    return found


def u64(number: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(number)


class Sent(NamedTuple):
    gap: int
    bytes: int


RATES = st.integers(1000, 10**10)
CLUMPS = st.lists(
    st.builds(Sent, st.integers(0, SECOND // 10) | st.just(0), st.integers(28, 65_535) | st.integers(28, 1500)),
    min_size=1,
    max_size=300,
)


@given(RATES, st.integers(3000, 10**8), CLUMPS)
@example(10**6, 3000, [Sent(0, 1400)] * 60 + [Sent(0, 100)] * 200)
@example(12_500_000, 100_000, [Sent(0, 8000)] * 100)
def test_datagrams_leave_within_the_limit_in_order_and_in_time(
    library: ctypes.CDLL, rate: int, bucket: int, packets: list[Sent]
) -> None:
    now = SECOND
    library.start(u64(rate), u64(bucket), u64(now))
    departures: list[tuple[int, int]] = []
    for packet in packets:
        now += packet.gap
        wait = library.send(u64(now), packet.bytes, 0)
        if wait < 0:
            continue
        assert wait <= HORIZON
        departures.append((now + wait, packet.bytes))
        assert sum(-(-size // FRAGMENT) for at, size in departures if at > now) <= FLOW_LIMIT
    # A nanosecond is lost in rounding.
    assert all(then[0] <= later[0] + 1 for then, later in zip(departures, departures[1:]))
    first = departures[0][0] if departures else 0
    passed = 0
    for at, size in departures:
        assert passed <= bucket + (at - first + 1) * rate / SECOND + 1
        passed += size


@given(st.integers(-(2**40), 2**40), st.integers(1, 18 * 10**9), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_what_may_wait_is_never_more_than_the_horizon_pays_or_the_queue_holds(
    library: ctypes.CDLL, tokens: int, rate: int, waiting: int, size: int
) -> None:
    room = library.room(ctypes.c_int64(tokens), u64(rate), ctypes.c_uint32(waiting), ctypes.c_uint32(size))
    assert room <= rate // 20
    assert room <= PACKETS * max(waiting, size)


@given(
    st.integers(-(2**34), 2**34),
    st.integers(0, 18 * 10**9),
    st.integers(0, 2**63 - 1),
    st.integers(0, 18 * 10**9),
    st.integers(0, 2**17),
    st.integers(0, 7),
)
def test_no_state_makes_a_packet_wait_for_more_than_a_second(
    library: ctypes.CDLL, tokens: int, rate: int, clock: int, paced: int, size: int, flags: int
) -> None:
    numbers = (ctypes.c_int64(tokens), u64(rate), u64(clock), u64(paced), size, flags)
    wait = library.wait_of(*numbers)
    assert wait <= SECOND
    if tokens + size >= 0 or flags & (TCP | CONTROL) == TCP | CONTROL:
        assert wait == 0
    if flags & (TCP | PACED) == TCP | PACED:
        assert wait <= library.wait_of(*numbers[:-1], 0)


@given(st.integers(1000, 10**10), st.integers(3000, 10**8), st.integers(40, 65_535), st.integers(0, 15))
@example(8000, 8000, 1500, TCP | PACED)
def test_nothing_is_dropped_sooner_because_it_could_wait(
    library: ctypes.CDLL, rate: int, bucket: int, size: int, flags: int
) -> None:
    waits, drops = (library.bound(u64(rate), u64(bucket), size, flags, here) for here in (True, False))
    assert waits <= drops


@given(st.integers(-(2**40), 2**40), st.integers(0, 1500), st.integers(40, 65_535))
def test_acknowledgements_do_not_change_the_size_of_what_waits(
    library: ctypes.CDLL, tokens: int, waiting: int, size: int
) -> None:
    assert library.size(ctypes.c_int64(tokens), waiting, size, TCP | CONTROL) == waiting
