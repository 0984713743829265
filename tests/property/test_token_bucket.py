# SPDX-License-Identifier: GPL-3.0-or-later
"""The program's arithmetic, compiled for user space, against exact fractions and against the promise that it makes."""

from __future__ import annotations

import ctypes
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

BPF = Path(__file__).resolve().parents[2] / "bpf"
SECOND = 10**9
PASS, DROP, PASS_WITH_NOTICE = 1, 2, 3
GSO_PACKET = 65536
LARGEST_PACKET = GSO_PACKET + 45 * 60  # with the headers of all its segments

SHIM = """
#include <stdbool.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#include "verdict.h"

void refill(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
    token_bucket_refill(state, rate, bucket, now);
}

int charge(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now, __u32 bytes, __u32 segments, bool tcp,
           bool control)
{
    struct packet packet = { .bytes = bytes, .segments = segments, .tcp = tcp, .control = control };
    struct bounds bounds;

    state->rate = rate;
    state->bucket = bucket;
    token_bucket_refill(state, rate, bucket, now);
    bounds = verdict_bounds(state, &packet, now, false);
    return verdict_take(state, &bounds, &packet, now).verdict;
}

void refund(struct rate_limit_state *state, int verdict, __u32 bytes, __u32 segments, bool tcp, bool control)
{
    struct packet packet = { .bytes = bytes, .segments = segments, .tcp = tcp, .control = control };

    /* Without pacing the bucket's own notice is the only one. */
    verdict_refund(state, 0, (struct answer){ verdict, LIMITER_REASON_LOW, 0 }, &packet);
}

/* Passed, dropped and marked packets and bytes, of whatever reason. */
void counters(const struct rate_limit_state *state, __u64 found[5])
{
    _Static_assert(sizeof(*state) <= 1024, "State in Python");
    found[0] = state->packets;
    found[1] = state->bytes;
    found[2] = found[4] = 0;
    found[3] = state->dropped_bytes;
    for (int reason = 0; reason < LIMITER_REASONS; reason++) {
        found[2] += state->drops[reason];
        found[4] += state->notices[reason];
    }
}
"""


class State(ctypes.Structure):
    """bpf/layout.h: struct rate_limit_state, as far as the bucket and its verdicts go."""

    _fields_ = [
        ("tokens", ctypes.c_int64),
        ("last_update_ns", ctypes.c_uint64),
        ("lock", ctypes.c_uint32),
        ("fraction", ctypes.c_uint32),
        ("rest", ctypes.c_ubyte * 1000),
    ]

    def value(self) -> Fraction:
        assert 0 <= self.fraction < SECOND
        return Fraction(self.tokens * SECOND + self.fraction, SECOND)

    def counters(self, header: ctypes.CDLL) -> tuple[int, ...]:
        found = (ctypes.c_uint64 * 5)()
        header.counters(ctypes.byref(self), found)
        return tuple(found)


class Packet(NamedTuple):
    bytes: int
    segments: int
    tcp: bool
    control: bool = False


class Event(NamedTuple):
    """A packet that arrives `gap` after the one before, on a CPU whose clock was read `lag` earlier than it arrives."""

    gap: int
    lag: int
    packet: Packet


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("token_bucket")
    (directory / "shim.c").write_text(SHIM, encoding="ascii")
    # Undefined behaviour (a signed overflow) ends the process instead of giving some number.
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-fsanitize=signed-integer-overflow"]
    command += ["-fsanitize-undefined-trap-on-error", "-I", str(BPF), "-o", str(directory / "shim.so")]
    subprocess.run([*command, str(directory / "shim.c")], check=True)
    library = ctypes.CDLL(str(directory / "shim.so"))
    unsigned, size = ctypes.c_uint64, ctypes.c_uint32
    library.refill.argtypes = [ctypes.POINTER(State), unsigned, unsigned, unsigned]
    packet = (size, size, ctypes.c_bool, ctypes.c_bool)
    library.charge.argtypes = [ctypes.POINTER(State), unsigned, unsigned, unsigned, *packet]
    library.refund.argtypes = [ctypes.POINTER(State), ctypes.c_int, *packet]
    return library


rates = st.one_of(st.integers(8_000, 12_500_000_000), st.sampled_from([8_000, 125_000, 10**9, 12_500_000_000]))
buckets = st.one_of(st.integers(1, 2**47), st.integers(1, 3_000_000), st.sampled_from([1, 1500, 2**47]))
packets = st.builds(
    Packet,
    st.one_of(st.integers(20, 1500), st.integers(40, 128), st.integers(1500, LARGEST_PACKET)),
    st.integers(1, 45),
    st.booleans(),
    st.booleans(),
)
gaps = st.one_of(st.just(0), st.integers(0, 1000), st.integers(0, 10 * SECOND), st.integers(0, 2**40))
events = st.lists(
    st.builds(Event, gaps, st.one_of(st.just(0), st.integers(0, 10_000), st.integers(0, SECOND)), packets), max_size=60
)


def refilled(value: Fraction, rate: int, bucket: int, elapsed: int) -> Fraction:
    return min(Fraction(bucket), value + Fraction(elapsed * rate, SECOND))


@given(rate=rates, bucket=buckets, events=events, start=st.integers(0, 2**63), tokens=st.integers(-(2**20), 2**47))
def test_the_bucket_is_exact_whatever_the_order_of_clocks(
    header: ctypes.CDLL, rate: int, bucket: int, events: list[Event], start: int, tokens: int
) -> None:
    state = State(tokens=tokens, last_update_ns=start)
    value, last, time = Fraction(tokens), start, start
    for event in events:
        time += event.gap
        now = max(0, time - event.lag)
        verdict = header.charge(state, rate, bucket, now, *event.packet)
        value = refilled(value, rate, bucket, max(0, now - last))
        last = max(last, now)
        if verdict != DROP:
            value -= event.packet.bytes
        assert state.value() == value
        assert state.last_update_ns == last


@given(
    rate=rates,
    bucket=buckets,
    idle=st.integers(0, 2**64 - 1),
    tokens=st.integers(-(2**20), 2**47),
    fraction=st.integers(0, SECOND - 1),
)
@example(rate=12_500_000_000, bucket=2**47, idle=2**64 - 1, tokens=-(2**20), fraction=0)
@example(rate=8_000, bucket=2**47, idle=2**64 - 1, tokens=0, fraction=SECOND - 1)
@example(rate=8_000, bucket=2**47, idle=2**47 * 10**9 // 8_000, tokens=0, fraction=0)
@example(rate=12_500_000_000, bucket=1, idle=2**63 + 2**62, tokens=1, fraction=1)
def test_no_idle_time_overflows(
    header: ctypes.CDLL, rate: int, bucket: int, idle: int, tokens: int, fraction: int
) -> None:
    state = State(tokens=tokens, fraction=fraction)
    before = state.value()
    header.refill(state, rate, bucket, idle)
    assert state.value() == refilled(before, rate, bucket, idle)


@given(rate=rates, bucket=buckets, ahead=st.integers(SECOND + 1, 2**62), debt=st.integers(2**20 + 1, 2**62))
def test_what_cannot_be_is_forgotten(header: ctypes.CDLL, rate: int, bucket: int, ahead: int, debt: int) -> None:
    state = State(tokens=-rate - debt, last_update_ns=5 * SECOND + ahead)
    header.refill(state, rate, bucket, 5 * SECOND)
    assert (state.tokens, state.last_update_ns) == (0, 5 * SECOND)


@given(rate=rates, step=st.integers(1, 5000))
@settings(max_examples=20)
def test_nothing_is_lost_between_packets_that_come_faster_than_tokens(
    header: ctypes.CDLL, rate: int, step: int
) -> None:
    state = State()
    for now in range(step, step * 2000, step):
        header.refill(state, rate, 2**47, now)
    assert state.value() == Fraction(now * rate, SECOND)


@given(changes=st.lists(st.tuples(rates, buckets, gaps), max_size=20))
def test_a_new_rate_or_bucket_holds_from_the_next_packet_on(
    header: ctypes.CDLL, changes: list[tuple[int, int, int]]
) -> None:
    state, value, now = State(), Fraction(0), 0
    for rate, bucket, gap in changes:
        now += gap
        header.refill(state, rate, bucket, now)
        value = refilled(value, rate, bucket, gap)
        assert state.value() == value <= bucket


@given(rate=rates, bucket=buckets, events=events)
def test_no_interval_passes_more_than_rate_bucket_and_one_packet(
    header: ctypes.CDLL, rate: int, bucket: int, events: list[Event]
) -> None:
    state = State(tokens=bucket)
    passed: list[tuple[int, int]] = []  # time, bytes
    time = 0
    for event in events:
        time += event.gap
        now = max(0, time - event.lag)
        # Clocks that were read earlier belong to packets that come later, so the interval is one of arrival times.
        if header.charge(state, rate, bucket, now, *event.packet) != DROP:
            passed.append((time, event.packet.bytes))
    slack = max(GSO_PACKET, max((size for _time, size in passed), default=0))
    for first in range(len(passed)):
        total = 0
        for moment, size in passed[first:]:
            total += size
            # `lag` moves a packet's refill by at most that much against its arrival.
            elapsed = moment - passed[first][0] + max(event.lag for event in events)
            assert total <= Fraction(elapsed * rate, SECOND) + bucket + slack


@given(rate=rates, bucket=buckets, packet=packets, tokens=st.integers(-200_000, 2**47))
def test_verdicts(header: ctypes.CDLL, rate: int, bucket: int, packet: Packet, tokens: int) -> None:
    tokens = min(tokens, bucket)
    state = State(tokens=tokens)
    verdict = header.charge(state, rate, bucket, 0, *packet)
    # A datagram finds its bytes above the part of the debt that is TCP's.
    part = max(3000, min(rate // 8, GSO_PACKET) // 2)
    least = 0 if packet.tcp else max(0, min(packet.bytes, bucket) - part - 1)
    if tokens > least:
        assert verdict != DROP
    if verdict == DROP:
        assert state.counters(header) == (0, 0, packet.segments, packet.bytes, 0)
        assert state.tokens == tokens
        return
    marked = packet.segments if verdict == PASS_WITH_NOTICE else 0
    assert verdict in (PASS, PASS_WITH_NOTICE)
    assert state.counters(header) == (packet.segments, packet.bytes, 0, 0, marked)
    if not packet.tcp:
        assert verdict == PASS and tokens > least
    # A debt is what one packet leaves that found tokens, or what TCP may have: never more than a GSO packet.
    assert state.tokens >= -max(GSO_PACKET, packet.bytes)


@given(rate=rates, bucket=buckets)
def test_control_packets_pass_where_data_no_longer_does(header: ctypes.CDLL, rate: int, bucket: int) -> None:
    control, data = Packet(60, 1, True, True), Packet(1500, 1, True)
    state = State(tokens=0)
    while header.charge(state, rate, bucket, 0, *data) != DROP:
        pass
    assert header.charge(state, rate, bucket, 0, *Packet(60, 1, False)) == DROP
    assert header.charge(state, rate, bucket, 0, *control) == PASS_WITH_NOTICE
    while header.charge(state, rate, bucket, 0, *control) != DROP:
        pass
    debt = min(rate // 8, GSO_PACKET)
    assert -debt <= state.tokens < control.bytes - debt


@given(rate=rates, bucket=buckets, packet=packets, other=packets, tokens=st.integers(1, 2**47), gap=gaps)
def test_a_refund_leaves_no_trace(
    header: ctypes.CDLL, rate: int, bucket: int, packet: Packet, other: Packet, tokens: int, gap: int
) -> None:
    charged, untouched = State(tokens=min(tokens, bucket)), State(tokens=min(tokens, bucket))
    verdict = header.charge(charged, rate, bucket, gap, *packet)
    # One that was dropped is not refunded.
    assume(verdict != DROP)
    header.refund(charged, verdict, *packet)
    header.refill(untouched, rate, bucket, gap)
    assert charged.value() == untouched.value()
    assert charged.counters(header) == untouched.counters(header)
    assert header.charge(charged, rate, bucket, gap, *other) == header.charge(untouched, rate, bucket, gap, *other)
