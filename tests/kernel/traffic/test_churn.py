# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that come and go leave the others what they do not use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.parts import BULK, USED, Silence, assert_parts
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    RATE,
    Scene,
    StateEntry,
    assert_bound,
    counters,
    pause,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE
from ansible_collections.speed_limiter.ebpf.tests.support.spoiled import SPOILED
from ansible_collections.speed_limiter.ebpf.tests.support.storage import stored

SERVER_PORT = 5001
SLOWER = RATE // 5  # at which some dozens of packets a second are not nothing


@pytest.mark.parametrize(
    ("size", "rate", "per_second", "least"),
    [
        pytest.param(0, RATE, 100, BULK, marks=pytest.mark.every_kernel, id="that send nothing"),
        pytest.param(2000, RATE, 200, BULK - 0.05, id="that send two segments"),
    ],
)
def test_what_new_connections_leave_a_bulk_one_gets(
    scene: Scene, size: int, rate: int, per_second: int, least: float
) -> None:
    cgroup, pair = scene.limited(rate, bucket=str(rate // 10)), scene.pair
    before = pair.arrived()
    bulk = pair.send_tcp(cgroup=cgroup)
    pair.traffic("churn", Pair.address, PORT, LONG, per_second // PATIENCE, size, cgroup=cgroup)
    pause(0.7)
    assert_parts(pair, rate, (bulk, least))
    assert_bound(before, pair.arrived(), rate, rate // 10)


@pytest.mark.parametrize("per_second", [10, 50])
def test_what_small_answers_on_new_connections_leave_a_bulk_one_gets(scene: Scene, per_second: int) -> None:
    cgroup, pair = scene.limited(SLOWER, bucket=str(SLOWER // 10)), scene.pair
    bulk = pair.send_tcp(cgroup=cgroup)
    pair.traffic("answer", Pair.sender_address, SERVER_PORT, cgroup=cgroup)
    asking = ("churn", Pair.sender_address, SERVER_PORT, LONG, per_second // PATIENCE, 0, 100)
    pair.traffic(*asking, namespace=pair.receiver)
    pause(0.7)
    assert_parts(pair, SLOWER, (bulk, BULK))


def test_handshakes_from_outside_leave_a_download_the_rest(scene: Scene) -> None:
    cgroup, pair = scene.limited(SLOWER, bucket=str(SLOWER // 10)), scene.pair
    download = pair.traffic("serve", Pair.sender_address, 5002, LONG, cgroup=cgroup)
    pair.traffic("fetch", Pair.sender_address, 5002, LONG, namespace=pair.receiver)
    pair.traffic("receive", Pair.sender_address, SERVER_PORT, cgroup=cgroup)
    handshakes = ("churn", Pair.sender_address, SERVER_PORT, LONG, 200 // PATIENCE, 0)
    pair.traffic(*handshakes, namespace=pair.receiver)
    pause(0.7)
    assert_parts(pair, SLOWER, (download, BULK - 0.05), used=USED)


def churning(scene: Scene, cgroup: Path, per_second: int) -> tuple[Process, Process]:
    """A bulk connection beside new ones that send nothing, and those."""
    pair = scene.pair
    bulk = pair.send_tcp(cgroup=cgroup)
    others = pair.traffic("churn", Pair.address, PORT, LONG, per_second // PATIENCE, 0, cgroup=cgroup)
    return bulk, others


def test_thousands_of_connections_leave_nothing_behind(scene: Scene, compiled: Callable[[str], str]) -> None:
    cgroup, pair = scene.limited(RATE, bucket=str(RATE // 10)), scene.pair
    pair.traffic("receive", Pair.sender_address, SERVER_PORT, cgroup=cgroup)
    begin, passed = stored(compiled), counters()
    before = pair.arrived()
    # The last acknowledgement of a connection, which no socket sends, is theirs who close first: those outside.
    handshakes = ("churn", Pair.sender_address, SERVER_PORT, 8.0, 1200 // PATIENCE, 0)
    closed = pair.traffic(*handshakes, namespace=pair.receiver).result().bytes
    # The listener has something from its first answer on.
    until(lambda: stored(compiled) <= begin + 1)
    after, now = pair.arrived(), counters()
    print(f"{closed} connections, {now}")
    assert closed >= 4000 // PATIENCE
    # What leaves without a socket is not charged: address resolution, resets, an answer to what is old.
    packets, size = (after.packets - before.packets, after.bytes - before.bytes)
    assert 0 <= packets - (now["packets"] - passed["packets"]) <= 20 + closed // 100
    assert 0 <= size - (now["bytes"] - passed["bytes"]) <= 60 * (20 + closed // 100)
    assert now["dropped_packets"] == 0
    bulk = pair.send_tcp(cgroup=cgroup)
    pause(0.5)
    assert_parts(pair, RATE, (bulk, BULK))


CHOSEN = ["random-0", "all-zero", "all-ones", "many-holders", "no-share", "epoch-ahead", "clock-ahead"]


@pytest.mark.parametrize("name", CHOSEN)
def test_a_state_that_went_wrong_in_the_midst_of_it_is_right_again_within_a_second(scene: Scene, name: str) -> None:
    pair = scene.pair
    bulk, _others = churning(scene, scene.limited(SLOWER, bucket=str(SLOWER // 10)), 100)
    pause(0.5)
    entry = StateEntry()
    try:
        SPOILED[name](entry)
    finally:
        entry.close()
    pause(1.0)
    assert_parts(pair, SLOWER, (bulk, BULK))


def test_reloading_in_the_midst_of_it_leaves_no_gap_and_no_stall(scene: Scene) -> None:
    pair, bucket = scene.pair, RATE // 10
    bulk, _others = churning(scene, scene.limited(RATE, bucket=str(bucket)), 100)
    pause(0.5)
    before = pair.arrived()
    with Silence(pair) as silence:
        for _time in range(3):
            limiter.program(state="reloaded")
    assert_bound(before, pair.arrived(), RATE, bucket)
    assert silence.longest <= 0.2 * PATIENCE
    assert_parts(pair, RATE, (bulk, BULK))
