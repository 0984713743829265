# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's arithmetic, compiled for user space: nothing overflows, and shares can be lived with."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

BPF = Path(__file__).resolve().parents[2] / "bpf"
SECOND = 10**9
LEAST_SHARE = 750  # a packet of two segments in four seconds
TCP, HELD, CONTROL, EARLY, BEGINS = 1, 2, 4, 8, 16  # of Event.flags

SHIM = """
#include <stdbool.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#include "verdict.h"

unsigned long size(void)
{
    return sizeof(struct rate_limit_state);
}

__u64 period(const struct rate_limit_state *state)
{
    return state->fair.period_ns;
}

__u64 paced_rate(const struct rate_limit_state *state)
{
    return state->fair.paced_rate;
}

/* As after an epoch with so many connections, all held back, and now also over. */
void crowd(struct rate_limit_state *state, __u32 connections, __u32 burst, __u64 lag, __u64 modest, __s64 debt,
           __u64 now)
{
    struct fair_share *fair = &state->fair;

    fair->active = fair->active_before = fair->holders = fair->holders_before = connections;
    fair->burst = burst;
    fair->lag_ns = lag;
    fair->modest_bytes = modest;
    fair->share = 0;
    fair->epoch_start_ns = now - fair->period_ns;
    fair->clock_ns = now + debt;
}

void spoil(struct rate_limit_state *state, const unsigned char *garbage, __u32 bytes)
{
    for (__u32 i = 0; i < sizeof(state->fair); i++)
        ((unsigned char *)&state->fair)[i] = garbage[i % bytes];
}

void start(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
    token_bucket_fill(state, bucket);
    state->last_update_ns = now;
    fair_share_change_limit(state, rate, bucket, now);
}

__u64 join(struct rate_limit_state *state, __u64 now)
{
    return demand_join(state, now);
}

struct answer answer;

/* What a refund takes back: as of this epoch. */
void counted(const struct rate_limit_state *state, const struct fair_share_mark *mark, __u64 found[7])
{
    const struct fair_share *fair = &state->fair;
    __u64 values[7] = { fair->clock_ns, fair->modest_bytes, fair->foreign_bytes, fair->early_bytes, fair->begun,
                        mark->epoch == fair->epoch ? mark->bytes : 0, state->bytes };

    __builtin_memcpy(found, values, sizeof(values));
}

static struct packet packet_of(__u32 bytes, __u32 flags)
{
    struct packet packet = { .bytes = bytes, .segments = 1 };

    packet.tcp = flags & 1;
    packet.paced = packet.tcp && !(flags & 256);
    packet.held = packet.tcp && flags & 2;
    packet.control = packet.tcp && flags & 4;
    packet.early = packet.tcp && flags & 8;
    packet.begins = packet.early && flags & 16;
    packet.refused = packet.tcp && flags & 32;
    packet.elsewhere = packet.tcp && flags & 64;
    packet.starved = packet.tcp && flags & 128;
    return packet;
}

/* Another rule refused the packet that was charged last. */
void refund(struct rate_limit_state *state, struct fair_share_mark *mark, __u32 bytes, __u32 flags)
{
    struct packet packet = packet_of(bytes, flags);

    verdict_refund(state, mark, answer, &packet);
}

bool passed(void)
{
    return answer.verdict != VERDICT_DROP;
}

__u64 charge(struct rate_limit_state *state, struct fair_share_mark *mark, __u64 now, __u32 bytes, __u32 flags,
             __u64 round_trip)
{
    struct packet packet = packet_of(bytes, flags);

    packet.round_trip_ns = round_trip;
    answer = verdict_charge(state, mark, &packet, now, true);
    return state->fair.share;
}

__u64 change(struct rate_limit_state *state, __u64 rate, __u64 now)
{
    fair_share_change_limit(state, rate, state->bucket, now);
    return state->fair.share;
}

__u64 offer(const struct rate_limit_state *state, bool early)
{
    return demand_offer(&state->fair, early);
}
"""


class Event(NamedTuple):
    """A packet, or a new connection (0 bytes), `gap` after the one before."""

    gap: int
    connection: int
    size: int
    flags: int  # as the shim's charge() takes them
    round_trip: int


class Rule:
    """A state with connections."""

    def __init__(self, header: ctypes.CDLL, rate: int, bucket: int) -> None:
        self._header = header
        self.rate, self.now = rate, 1000 * SECOND
        self._state = ctypes.create_string_buffer(header.size())
        self._marks = (ctypes.c_char * 16 * 8)()
        header.start(self._state, rate, bucket, self.now)

    @property
    def period(self) -> int:
        return int(self._header.period(self._state))

    @property
    def paced_rate(self) -> int:
        return int(self._header.paced_rate(self._state))

    def crowd(self, connections: int, burst: int, lag: int, modest: int, debt: int) -> None:
        self._header.crowd(self._state, connections, burst, lag, modest, debt, self.now)

    def spoil(self, garbage: bytes) -> None:
        self._header.spoil(self._state, garbage, len(garbage))

    def happens(self, event: Event) -> int:
        """The share after it."""
        self.now += event.gap
        if not event.size:
            return int(self._header.join(self._state, self.now))
        mark = ctypes.byref(self._marks, 16 * event.connection)
        arguments = event.size, event.flags, event.round_trip
        return int(self._header.charge(self._state, mark, self.now, *arguments))

    def copy(self) -> Rule:
        other = Rule(self._header, self.rate, 1)
        other.now = self.now
        other._state = ctypes.create_string_buffer(self._state.raw)
        other._marks = type(self._marks).from_buffer_copy(self._marks)
        return other

    def passes(self, event: Event) -> bool:
        self.happens(event)
        return bool(self._header.passed())

    def refund(self, event: Event) -> None:
        """Another rule refused what was charged last."""
        mark = ctypes.byref(self._marks, 16 * event.connection)
        self._header.refund(self._state, mark, event.size, event.flags)

    def counted(self, connection: int) -> list[int]:
        found = (ctypes.c_uint64 * 7)()
        self._header.counted(self._state, ctypes.byref(self._marks, 16 * connection), found)
        return list(found)

    def offer(self, early: bool) -> int:
        return int(self._header.offer(self._state, early))

    def change(self, rate: int) -> int:
        self.rate = rate
        return int(self._header.change(self._state, rate, self.now))


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("fair_share")
    (directory / "shim.c").write_text(SHIM, encoding="ascii")
    # A signed overflow, or a division by zero, ends the process instead of giving some number.
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    command += ["-fsanitize=signed-integer-overflow,integer-divide-by-zero,shift", "-fsanitize-undefined-trap-on-error"]
    command += ["-I", str(BPF), "-o", str(directory / "shim.so"), str(directory / "shim.c")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(directory / "shim.so"))
    number, state = ctypes.c_uint64, ctypes.c_void_p
    library.size.restype = ctypes.c_ulong
    size = ctypes.c_uint32
    library.period.argtypes, library.period.restype = [state], number
    library.paced_rate.argtypes, library.paced_rate.restype = [state], number
    library.crowd.argtypes = [state, size, size, number, number, ctypes.c_int64, number]
    library.spoil.argtypes = [state, ctypes.c_char_p, size]
    library.start.argtypes = [state, number, number, number]
    library.join.argtypes, library.join.restype = [state, number], number
    library.charge.argtypes = [state, state, number, size, size, number]
    library.charge.restype = number
    library.offer.argtypes, library.offer.restype = [state, ctypes.c_bool], number
    library.counted.argtypes = [state, state, ctypes.c_void_p]
    library.refund.argtypes = [state, state, size, size]
    library.passed.restype = ctypes.c_bool
    library.change.argtypes, library.change.restype = [state, number, number], number
    return library


rates = st.one_of(st.integers(8_000, 12_500_000_000), st.sampled_from([8_000, 125_000, 10**9, 12_500_000_000]))
buckets = st.one_of(st.integers(2_048, 2**40), st.integers(2_048, 3_000_000))
gaps = st.one_of(
    st.just(0), st.integers(0, 10**6), st.integers(0, 10**8), st.integers(0, 10 * SECOND), st.integers(0, 2**62)
)
sizes = st.one_of(st.integers(40, 1500), st.integers(1500, 68_000))
flags = st.integers(0, 511)
trips = st.one_of(st.integers(0, SECOND), st.integers(0, 2**63))
events = st.lists(st.builds(Event, gaps, st.integers(0, 7), st.just(0) | sizes, flags, trips), max_size=80)


def most(rate: int, bucket: int) -> int:
    """What TCP may send per second while a full bucket is spent, in 100 ms at the quickest."""
    return rate + 10 * bucket


def livable(share: int, rate: int, bucket: int) -> bool:
    """Or not known yet."""
    return not share or LEAST_SHARE <= share <= max(LEAST_SHARE, most(rate, bucket) * 5 // 4)


@given(rate=rates, bucket=buckets, events=events)
def test_a_share_is_never_more_than_a_quarter_above_rate_and_bucket_nor_next_to_nothing(
    header: ctypes.CDLL, rate: int, bucket: int, events: list[Event]
) -> None:
    rule = Rule(header, rate, bucket)
    for event in events:
        share = rule.happens(event)
        assert livable(share, rate, bucket)
        assert event.size or share
        assert 10_000_000 <= rule.period <= 4 * SECOND
        assert rate // 2 <= rule.paced_rate <= most(rate, bucket)
        # One that begins is offered no more than the others.
        assert livable(rule.offer(True), rate, bucket)
        assert rule.offer(True) <= rule.offer(False)


@given(rate=rates, bucket=buckets, events=events, other=rates)
def test_so_it_is_after_a_change_of_the_rate(
    header: ctypes.CDLL, rate: int, bucket: int, events: list[Event], other: int
) -> None:
    rule = Rule(header, rate, bucket)
    for event in events[: len(events) // 2]:
        rule.happens(event)
    assert livable(rule.change(other), other, bucket)
    for event in events[len(events) // 2 :]:
        assert livable(rule.happens(event), other, bucket)


@given(rate=rates, bucket=buckets, events=events, last=st.builds(Event, gaps, st.integers(0, 7), sizes, flags, trips))
@example(rate=10**6, bucket=10**6, events=[], last=Event(0, 0, 1500, TCP | EARLY | BEGINS, 0))
def test_a_packet_that_another_rule_refuses_counts_no_more_than_one_without_bytes(
    header: ctypes.CDLL, rate: int, bucket: int, events: list[Event], last: Event
) -> None:
    """But for the connection that it would have begun: that has not begun. And of one that was held earlier in this
    epoch, what it sent since may stay among the modest bytes until the epoch ends.
    """
    assume(not (last.flags & EARLY and last.flags & CONTROL))
    assume(not any(event.flags & HELD and event.connection == last.connection for event in events))
    rule = Rule(header, rate, bucket)
    for event in events:
        rule.happens(event)
    other = rule.copy()
    assume(rule.passes(last))
    rule.refund(last)
    # A rule of any size has tokens for it; `begins` only makes it wait for others.
    assume(other.passes(last._replace(size=0, flags=last.flags & ~BEGINS)))
    assert rule.counted(last.connection) == other.counted(last.connection)


@given(
    rate=rates,
    connections=st.integers(1, 65_535),
    burst=st.integers(0, 2**32 - 1),
    lag=st.integers(0, SECOND),
    modest=st.integers(0, 2**40),
    debt=st.integers(-10 * SECOND, 10 * SECOND),
)
def test_no_number_of_connections_overflows(
    header: ctypes.CDLL, rate: int, connections: int, burst: int, lag: int, modest: int, debt: int
) -> None:
    rule = Rule(header, rate, rate)
    rule.happens(Event(0, 0, 60, TCP, 0))
    rule.crowd(connections, burst, lag, modest, debt)
    assert livable(rule.happens(Event(0, 0, 1500, TCP | HELD, lag)), rate, rate)


@given(rate=rates, connections=st.integers(1, 65_535), debt=st.integers(-SECOND, SECOND // 20))
def test_a_share_is_at_least_half_of_the_equal_one(header: ctypes.CDLL, rate: int, connections: int, debt: int) -> None:
    rule = Rule(header, rate, rate)
    rule.happens(Event(0, 0, 60, TCP, 0))
    rule.crowd(connections, 3000, 0, 0, debt)
    share = rule.happens(Event(0, 0, 60, TCP, 0))
    assert share >= max(LEAST_SHARE, rate // connections // 2)


@given(rate=rates, garbage=st.binary(min_size=1, max_size=200), events=events)
def test_garbage_neither_overflows_nor_lasts(
    header: ctypes.CDLL, rate: int, garbage: bytes, events: list[Event]
) -> None:
    rule = Rule(header, rate, rate)
    rule.spoil(garbage)
    for event in events:
        rule.happens(event)
    # Nobody sends for a while: that is the end of anything that was believed.
    rule.happens(Event(20 * SECOND, 0, 1500, TCP | HELD, 0))
    assert livable(rule.happens(Event(10_000_000, 1, 1500, TCP | HELD, 0)), rate, rate)
