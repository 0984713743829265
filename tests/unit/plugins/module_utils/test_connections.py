# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""core/connections.py: what is told of a connection, by what the programs keep of it and by TCP_INFO."""

from __future__ import annotations

import struct
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import connections
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.connections import (
    FAST,
    SILENT,
    UNTOLD,
    Ends,
    Gathered,
    Seen,
    Summary,
    why_unpaced,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import (
    PACING,
    PACING_FIELDS,
    UNPACED,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.measured import (
    Connections,
    Measured,
    of_connections,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.pacing import Ability
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters

SECOND = 1_000_000_000
NOW = 1000 * SECOND
ENDS = Ends("192.0.2.1", 40000, "192.0.2.7", 443)
HELD = 2
ADOPTS = Ability("on", None, adopts=True)
OLD = Ability("on", None, adopts=False)


def stored(**fields: int) -> bytes:
    given = {
        "rules[0]": 7,
        "rules[1]": 8,
        "share": 100_000,
        "set": 97_000,
        "own": UNPACED,
        "sent_ns": NOW - 1000,
        "tightest": 1,
        "marks[1].flags": HELD,
        "round_trip_us": 850,
        **{name.replace("_at_", "[").replace("_of_", "]."): value for name, value in fields.items()},
    }
    return PACING.pack(*(given.get(name, 0) for name in PACING_FIELDS))


def seen(inode: int = 1, **fields: int) -> Seen:
    return connections.seen(inode, 4026531840, ENDS, 55, stored(**fields))


def test_what_the_programs_keep_of_a_connection() -> None:
    one = seen()
    assert (one.states, one.bottleneck, one.share, one.round_trip_us) == ((7, 8), 8, 100_000, 850)
    assert one.waits(NOW) and one.unpaced() is None
    assert not seen(marks_at_1_of_flags=0).waits(NOW) and not seen(tightest=0).waits(NOW)


def test_a_connection_that_has_been_silent_waits_for_nothing() -> None:
    """At a small share the next burst comes only after seconds."""
    assert not seen(sent_ns=NOW - 2 * SECOND).waits(NOW)
    assert seen(sent_ns=NOW - 2 * SECOND, share=750).waits(NOW)
    assert not seen(sent_ns=0).sends(NOW)


def test_who_was_told_nothing_has_no_bottleneck() -> None:
    one = seen(share=UNPACED >> 1)
    assert (one.bottleneck, one.share, one.held) == (0, 0, False)
    silent = connections.seen(1, 2, ENDS, 55, None)
    assert (silent.states, silent.share, silent.waits(NOW)) == ((), 0, False)


@pytest.mark.parametrize(
    ("one", "why", "ability", "words"),
    [
        (connections.seen(1, 2, ENDS, 55, None), SILENT, ADOPTS, "sent nothing"),
        (seen(set=0), UNTOLD, ADOPTS, "another program has taken"),
        (seen(set=0), UNTOLD, OLD, "only Linux 6.12"),
        (seen(set=UNPACED), FAST, ADOPTS, "more than a socket can be told"),
        (seen(set=0), UNTOLD, Ability("off", None, adopts=False), "pacing is switched off"),
    ],
)
def test_why_a_connection_is_not_paced(one: Seen, why: str, ability: Ability, words: str) -> None:
    assert one.unpaced() == why
    assert words in why_unpaced(why, ability)


def tcp_info(**fields: t.Any) -> bytes:
    info = bytearray(connections.TCP_INFO_SIZE)
    info[5] = fields.get("options", 1)
    struct.pack_into("=I", info, 16, 1448)
    struct.pack_into("=I", info, 68, 850)
    struct.pack_into("=I", info, 80, 10)
    struct.pack_into("=I", info, 136, fields["segments"])
    struct.pack_into("=Q", info, 200, fields["bytes"])
    return bytes(info)


def test_the_rate_counts_ip_bytes() -> None:
    before = connections.sent(tcp_info(segments=10, bytes=14480), False, NOW)
    after = connections.sent(tcp_info(segments=110, bytes=14480 + 100 * 1448), False, NOW + SECOND)
    assert after.rate_since(before) == 100 * 1500
    assert (after.round_trip_us, after.window) == (850, 14480)
    bare = connections.sent(tcp_info(segments=0, bytes=0, options=0), True, NOW)
    assert bare.headers == 60
    assert before.rate_since(before) is None
    assert before.rate_since(after._replace(at_ns=NOW - 1)) == 0
    assert after.rate_since(before._replace(segments=(1 << 32) - 90)) == 100 * 1448 + 200 * 52


def test_of_very_many_those_that_wait_are_kept_and_all_are_counted() -> None:
    gathered = Gathered(3, NOW)
    waiting = [seen(number) for number in range(1, 4)]
    for number in range(1000):
        gathered.add(seen(1000 + number, marks_at_1_of_flags=0, share=10**6), [7, 8])
        if number % 400 == 0:
            gathered.add(waiting[number // 400], [7, 8])
    assert gathered.summaries[7] == Summary(1003, {}, {8: 3})
    assert {one.inode for one in gathered.kept()[8]} == {1, 2, 3}


def test_summaries_add_up() -> None:
    assert Summary(1, {SILENT: 1}, {7: 1}) + Summary(2, {SILENT: 1, UNTOLD: 1}, {}) == Summary(
        3, {SILENT: 2, UNTOLD: 1}, {7: 1}
    )


def test_the_fastest_come_first_and_unknown_ones_last() -> None:
    found = [Measured(seen(number), rate, None, 5, "a") for number, rate in ((1, 10), (2, None), (3, 20))]
    told = of_connections(Connections(Summary(), found, NOW), {8: "web"})
    assert [one["rate"] for one in told] == [20, 10, None]
    assert {one["binding_rule"] for one in told} == {"web"}


def test_counters_of_a_time_are_never_negative() -> None:
    """What another rule drops is taken back."""
    drops = (0, 5, 0, 0, 0, 0, 0, 0)
    then = Counters(10, 1000, 500, drops)
    assert Counters(12, 900, 700, (0, 7, 0, 0, 0, 0, 0, 0)) - then == Counters(2, 0, 200, (0, 2, 0, 0, 0, 0, 0, 0))
