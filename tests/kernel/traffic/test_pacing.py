# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP under a rule paces itself at the limit: all of it arrives, nothing is lost, and connections get the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.connections import Connection, borrowed, jain
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import SEES_SYN_ACKS, cells
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    FIRST_WINDOW,
    LEAST,
    MOST,
    RATE,
    SMALL,
    Scene,
    assert_bound,
    assert_held,
    counters,
    pause,
    share_of,
    staged,
    when_begun,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE, SLOW

SERVER_PORT = 5001
# Who connects, over what, with which congestion control.
WAYS = {
    "IPv4": (Pair.address, Pair.sender_address),
    "IPv6": (Pair.address6, Pair.sender_address6),
    "IPv4 in IPv6": (f"::ffff:{Pair.address}", f"::ffff:{Pair.sender_address}"),
}


def send(scene: Scene, cgroup: Path, side: str, way: str, congestion: str, connections: int) -> Process:
    """A process of the cgroup that sends all it can through connections that it made, or that it accepted."""
    receiver, sender = WAYS[way]
    pair = scene.pair
    if side == "connects":
        return pair.traffic("tcp", receiver, PORT, LONG, connections, congestion, cgroup=cgroup)
    server = pair.traffic("serve", sender, SERVER_PORT, LONG, congestion, cgroup=cgroup)
    pair.traffic("fetch", sender, SERVER_PORT, LONG, connections, namespace=pair.receiver)
    return server


class Harm(NamedTuple):
    """What befell some connections up to now."""

    segments: int
    retransmits: int
    dropped: int

    @classmethod
    def of(cls, connections: list[Connection]) -> Harm:
        infos = [connection.info for connection in connections]
        return cls(
            sum(info.segments for info in infos),
            sum(info.retransmits for info in infos),
            counters()["dropped_packets"],
        )


UNHARMED = Harm(0, 0, 0)


def assert_unharmed(connections: list[Connection], before: Harm = UNHARMED) -> None:
    """Next to nothing was sent twice or dropped: who drops cannot be said to pace. The bench counts both; here a busy
    machine may be so late that packets meet in a small bucket, and that TCP sends something again.
    """
    now = Harm.of(connections)
    segments = now.segments - before.segments
    assert now.dropped - before.dropped <= FIRST_WINDOW * len(connections) + segments // 50
    assert now.retransmits - before.retransmits <= max(10, segments // (100 if SLOW else 500))


CONGESTION = {"IPv4": "cubic", "IPv6": "bbr", "IPv4 in IPv6": "reno"}


@pytest.mark.parametrize(("side", "way"), cells(("connects", "IPv4"), ["connects", "accepts"], list(WAYS)))
def test_tcp_paces_itself_at_the_limit_from_its_first_second_on(scene: Scene, side: str, way: str) -> None:
    cgroup = scene.limited(RATE, bucket=str(RATE // SMALL))
    before = scene.pair.arrived()
    sender = send(scene, cgroup, side, way, CONGESTION[way], 4)
    begun = when_begun(scene.pair, before)
    assert share_of(scene.pair, RATE) <= MOST + 0.05
    assert_held(scene.pair, RATE)
    after = scene.pair.arrived()
    assert_bound(before, after, RATE, RATE // SMALL)
    assert begun.seconds < after.seconds
    with borrowed(sender.pid) as connections:
        assert len(connections) == 4
        assert all(connection.pacing < RATE for connection in connections)
        if SEES_SYN_ACKS or (side, way) != ("accepts", "IPv6"):
            assert_unharmed(connections)


@pytest.mark.parametrize("connections", [4, 16])
def test_connections_get_the_same(scene: Scene, connections: int) -> None:
    cgroup = scene.limited(RATE)
    before = scene.pair.arrived()
    sender = scene.pair.send_tcp(connections=connections, cgroup=cgroup)
    when_begun(scene.pair, before, RATE // 5)
    with borrowed(sender.pid) as each:
        begin = [connection.info.acknowledged for connection in each]
        pause(1.5)
        sent = [connection.info.acknowledged - at for connection, at in zip(each, begin)]
        print(f"Jain's index {jain(sent):.4f}")
        assert len(sent) == connections
        assert jain(sent) >= 0.95
        assert_unharmed(each)


def test_large_packets_are_paced_alike(clean_host: Cgroups) -> None:
    with Pair(offloads=True, mtu=9000) as pair, staged(pair, clean_host) as scene:
        cgroup = scene.limited(RATE)
        sender = pair.send_tcp(connections=4, cgroup=cgroup)
        with borrowed(sender.pid) as connections:
            _assert_acknowledged_at_the_limit(connections)


def test_loopback_is_paced_alike(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    pair = scene.pair
    pair.traffic("receive", "127.0.0.1", PORT)
    sender = pair.send_tcp(address="127.0.0.1", connections=4, cgroup=cgroup)
    with borrowed(sender.pid) as connections:
        _assert_acknowledged_at_the_limit(connections)


def _assert_acknowledged_at_the_limit(connections: list[Connection]) -> None:
    def sent() -> int:
        return sum(connection.wire_bytes for connection in connections)

    # TCP does not pace its first ten segments. Over loopback they are 640 KiB: some of them may have had to wait. And
    # what the bucket has saved is spent first.
    pause(2.0)
    before = Harm.of(connections)
    begin, since = sent(), time.monotonic()
    pause(1.0)
    share = (sent() - begin) / (time.monotonic() - since) / RATE
    print(f"{share:.4f} of the limit")
    assert len(connections) == 4
    assert LEAST <= share <= MOST
    assert_unharmed(connections, before)


def test_the_tightest_of_nested_rules_holds(scene: Scene) -> None:
    scene.limited(2 * RATE, "outer")
    inner = scene.limited(RATE // 2, "outer/inner")
    sender = scene.pair.send_tcp(connections=4, cgroup=inner)
    pause(0.5)
    assert_held(scene.pair, RATE // 2)
    dropped = [counters(name)["dropped_packets"] for name in ("outer", "inner")]
    assert max(dropped) <= 4 * FIRST_WINDOW
    with borrowed(sender.pid) as connections:
        assert all(connection.pacing < RATE // 2 for connection in connections)


def test_the_outer_rule_holds_for_the_sum_of_the_inner_ones(scene: Scene) -> None:
    scene.limited(RATE, "outer")
    senders = [
        scene.pair.send_tcp(connections=2, cgroup=scene.limited(RATE * 4 // 5, f"outer/{name}")) for name in "ab"
    ]
    pause(0.7)
    with borrowed(*(sender.pid for sender in senders)) as connections:
        before = [connection.info.acknowledged for connection in connections]
        assert_held(scene.pair, RATE, 1.2)
        sent = [connection.info.acknowledged - at for connection, at in zip(connections, before)]
    assert jain(sent) >= 0.9, sent


def test_members_of_a_rule_share_its_rate(scene: Scene) -> None:
    first = scene.limited(RATE, "first")
    second = scene.cgroup("second")
    limiter.rule(name="first", cgroup_path="/second")
    for cgroup in (first, second):
        scene.pair.send_tcp(connections=2, cgroup=cgroup)
    pause(0.5)
    assert_held(scene.pair, RATE)
    assert counters("first")["dropped_packets"] == 0


@pytest.mark.parametrize("factor", [0.5, 2, 10])
def test_tcp_holds_its_own_beside_udp(scene: Scene, factor: float) -> None:
    rate, pair = RATE // 2, scene.pair
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    cpus = sorted(os.sched_getaffinity(0))
    timeouts = pair.tcp_counter()
    before = pair.arrived()
    tcp = pair.send_tcp(connections=4, cgroup=cgroup, cpu=cpus[0])
    udp = pair.send_udp(int(factor * rate), cgroup=cgroup, cpu=cpus[-1])
    pause(0.7)
    with borrowed(tcp.pid) as connections:
        begin, sent = pair.arrived(), sum(connection.wire_bytes for connection in connections)
        share_of(pair, rate, 1.2)
        end, sent = pair.arrived(), sum(connection.wire_bytes for connection in connections) - sent
        of_tcp = sent / rate / (end.seconds - begin.seconds)
        print(f"TCP has {of_tcp:.3f} of the limit")
    assert_bound(before, end, rate, rate // 10)
    assert end.bytes - begin.bytes >= 0.9 * rate * (end.seconds - begin.seconds)
    assert of_tcp >= 0.35
    assert udp.finish().errors == {}
    assert pair.tcp_counter() == timeouts


def test_what_slow_connections_leave_the_others_get(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    scene.pair.traffic("trickle", Pair.address, PORT, LONG, 10, RATE // 1000, cgroup=cgroup)
    scene.pair.send_tcp(connections=2, cgroup=cgroup)
    pause(0.7)
    assert_held(scene.pair, RATE, 1.2, least=LEAST + 0.05)
    assert counters()["dropped_packets"] == 0


def test_a_sparse_connection_is_not_held_up_by_bulk_ones(scene: Scene) -> None:
    cgroup, pair = scene.limited(RATE), scene.pair
    pair.send_tcp(connections=4, cgroup=cgroup)
    pause(0.5)
    pair.traffic("echo", Pair.address, 5002, namespace=pair.receiver)
    sparse = pair.traffic("ping", Pair.address, 5002, 1.0, cgroup=cgroup)
    round_trips = sorted(sparse.result().round_trips)
    print(f"{len(round_trips)} round trips, median {round_trips[len(round_trips) // 2]:.2f} ms")
    assert round_trips[len(round_trips) // 2] < 10 * PATIENCE
    assert counters()["dropped_packets"] == 0
