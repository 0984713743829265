# SPDX-License-Identifier: GPL-3.0-or-later
"""What a packet tells of its connection and what the connection is told, compiled for user space."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

BPF = Path(__file__).resolve().parents[2] / "bpf"
PACING_MOST = 2**32 - 1
UNPACED = 2**64 - 1

SHIM = """
#include <stdbool.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#include "connection.h"

__u64 round_trip(__u32 bytes, __u32 segments, __u32 flags, struct packet *packet)
{
    *packet = (struct packet){
        .bytes = bytes, .segments = segments, .tcp = flags & 1, .control = flags >> 1 & 1, .paced = flags >> 2 & 1,
        .held = flags >> 3 & 1, .early = flags >> 4 & 1, .begins = flags >> 5 & 1, .refused = flags >> 6 & 1,
        .idle = flags >> 7 & 1,
    };
    *packet = packet_unpack(packet_pack(packet));
    return packet->tcp | packet->control << 1 | packet->paced << 2 | packet->held << 3 | packet->early << 4 |
           packet->begins << 5 | packet->refused << 6 | packet->idle << 7;
}

__u32 less(__u64 a, __u64 b)
{
    return connection_less(a, b);
}

__u64 payload(__u64 share, __u32 segment, __u64 mss, __u64 headers)
{
    struct rate_limit_pacing pacing = { .share = share, .segment = segment };

    return connection_payload(&pacing, mss, headers);
}

__u32 window(__u64 share, __u32 segment, __u64 mss, __u64 round_trip_us)
{
    struct rate_limit_pacing pacing = { .share = share, .segment = segment };

    return connection_window(&pacing, mss, round_trip_us);
}

bool begins_slowly(__u64 share, __u64 segment, bool waits)
{
    struct rate_limit_pacing pacing = { .share = share };

    return connection_begins_slowly(&pacing, segment, waits);
}

__u32 average(__u32 segment, __u32 bytes, __u32 segments, __u32 headers)
{
    struct rate_limit_pacing pacing = { .segment = segment };
    struct connection seen = { .headers = headers };
    struct packet packet = { .bytes = bytes, .segments = segments };

    connection_note_segment(&seen, &pacing, &packet);
    return pacing.segment;
}

/* The place that binds after the rules' offers. */
__u64 offers(const __u64 *shares, __u32 rules, __u64 *share)
{
    struct rate_limit_pacing pacing = { .share = LIMITER_UNPACED >> 1 };

    for (__u32 place = 0; place < rules; place++)
        connection_take_offer(&pacing, place, shares[place]);
    *share = pacing.share;
    return pacing.tightest;
}
"""


class Packet(ctypes.Structure):
    """bpf/packet.h: the beginning of struct packet."""

    _fields_ = [("bytes", ctypes.c_uint32), ("segments", ctypes.c_uint32), ("rest", ctypes.c_uint64 * 4)]


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("connection")
    (directory / "shim.c").write_text(SHIM, encoding="ascii")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    command += ["-fsanitize=signed-integer-overflow,integer-divide-by-zero,shift", "-fsanitize-undefined-trap-on-error"]
    command += ["-I", str(BPF), "-o", str(directory / "shim.so"), str(directory / "shim.c")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(directory / "shim.so"))
    number, size = ctypes.c_uint64, ctypes.c_uint32
    library.round_trip.argtypes, library.round_trip.restype = [size, size, size, ctypes.POINTER(Packet)], number
    library.less.argtypes, library.less.restype = [number, number], size
    library.payload.argtypes, library.payload.restype = [number, size, number, number], number
    library.window.argtypes, library.window.restype = [number, size, number, number], size
    library.average.argtypes, library.average.restype = [size, size, size, size], size
    library.offers.argtypes = [ctypes.POINTER(number), size, ctypes.POINTER(number)]
    library.offers.restype = number
    library.begins_slowly.argtypes, library.begins_slowly.restype = [number, number, ctypes.c_bool], ctypes.c_bool
    return library


sizes = st.integers(0, 2**32 - 1)
shares = st.one_of(st.integers(1, 2**20), st.integers(1, 2**35), st.integers(1, UNPACED), st.just(UNPACED))
segments = st.integers(1, 65_535)  # an MSS is at least 1, and 16 bits
headers = st.sampled_from([40, 52, 72])


@given(bytes=sizes, count=st.integers(0, 65_535), flags=st.integers(0, 255))
def test_a_packet_is_what_was_packed(header: ctypes.CDLL, bytes: int, count: int, flags: int) -> None:
    packet = Packet()
    assert header.round_trip(bytes, count, flags, ctypes.byref(packet)) == flags
    assert (packet.bytes, packet.segments) == (bytes, count)


@given(a=st.integers(0, 2**63 - 1), b=st.integers(0, 2**63 - 1))
@example(a=2**63 - 1, b=0)
@example(a=0, b=2**63 - 1)
def test_less_is_less_of_what_63_bits_can_say(header: ctypes.CDLL, a: int, b: int) -> None:
    assert header.less(a, b) == (a < b)


@given(share=shares, segment=st.integers(0, 65_535), mss=segments, headers=headers)
def test_a_connection_is_never_told_nothing_nor_more_than_its_share(
    header: ctypes.CDLL, share: int, segment: int, mss: int, headers: int
) -> None:
    rate = header.payload(share, segment, mss, headers)
    assert 1 <= rate <= share
    if share <= 2 * PACING_MOST:
        payload = segment if 0 < segment < mss - mss // 8 else mss
        # With the headers of its segments it sends its share, rounded down to bytes per second of payload.
        assert rate == max(1, share * payload // (payload + headers))


# The kernel's round trip is srtt_us >> 3, of 32 bits.
@given(share=shares, segment=st.integers(0, 65_535), mss=segments, round_trip=st.integers(0, 2**29 - 1))
def test_a_window_is_four_segments_at_least_or_not_clamped(
    header: ctypes.CDLL, share: int, segment: int, mss: int, round_trip: int
) -> None:
    window = header.window(share, segment, mss, round_trip)
    if share >= 2_500_000:
        assert window == 0
        return
    payload = segment if 0 < segment < mss - mss // 8 else mss
    assert window == max(4, 2 * share * (20_000 + round_trip) // 1_000_000 // payload)


@given(
    segment=st.integers(0, 65_535),
    payload=st.integers(1, 65_535),
    count=st.integers(0, 45),
    headers=headers,
)
def test_the_average_segment_is_between_what_it_was_and_what_is_sent(
    header: ctypes.CDLL, segment: int, payload: int, count: int, headers: int
) -> None:
    average = header.average(segment, max(1, count) * (payload + headers), count, headers)
    assert average >= 1
    if segment:
        assert min(segment, payload) - 1 <= average <= max(segment, payload)
    else:
        assert average == payload


@given(offered=st.lists(st.integers(1, UNPACED >> 1), min_size=1, max_size=4))
def test_the_smallest_offer_is_the_share_and_its_rule_binds(header: ctypes.CDLL, offered: list[int]) -> None:
    share = ctypes.c_uint64()
    place = header.offers((ctypes.c_uint64 * 4)(*offered), len(offered), ctypes.byref(share))
    assert share.value == min(offered)
    assert offered[place] == min(offered)


@pytest.mark.parametrize(
    ("share", "waits", "slowly"),
    [
        (2_500_000, False, False),
        (2_499_999, False, True),
        (2_499_999, True, False),
        (150_000, True, False),  # ten segments in 100 ms
        (149_999, True, True),
        (149_999, False, True),
    ],
)
def test_a_connection_begins_with_all_that_tcp_wants_where_that_can_be_paid_or_can_wait(
    header: ctypes.CDLL, share: int, waits: bool, slowly: bool
) -> None:
    assert bool(header.begins_slowly(share, 1500, waits)) is slowly
