# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP under a rule paces itself at the limit: all of it arrives, nothing is lost, and connections get the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from connections import Connection, borrowed, jain
from net import PORT, Pair, Process
from scene import MBIT, Scene, assert_bound, counters, share_of, staged, when_begun

RATE = 100 * MBIT
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
        return pair.traffic("tcp", receiver, PORT, 60, connections, congestion, cgroup=cgroup)
    server = pair.traffic("serve", sender, SERVER_PORT, 60, congestion, cgroup=cgroup)
    pair.traffic("fetch", sender, SERVER_PORT, 60, connections, namespace=pair.receiver)
    return server


def assert_unharmed(connections: list[Connection], name: str = "paced") -> None:
    """Next to nothing was sent twice, and nothing was dropped: who drops cannot be said to pace."""
    infos = [connection.info for connection in connections]
    assert sum(info.retransmits for info in infos) <= max(3, sum(info.segments for info in infos) // 1000), infos
    assert counters(name)["dropped_packets"] == 0


@pytest.mark.parametrize("side", ["connects", "accepts"])
@pytest.mark.parametrize(("way", "congestion"), [("IPv4", "cubic"), ("IPv6", "bbr"), ("IPv4 in IPv6", "reno")])
def test_tcp_paces_itself_at_the_limit_from_its_first_second_on(
    scene: Scene, side: str, way: str, congestion: str
) -> None:
    cgroup = scene.limited(RATE)
    before = scene.pair.arrived()
    sender = send(scene, cgroup, side, way, congestion, 4)
    begun = when_begun(scene.pair, before)
    assert share_of(scene.pair, RATE) <= 1.1
    assert 0.9 <= share_of(scene.pair, RATE) <= 1.05
    after = scene.pair.arrived()
    assert_bound(before, after, RATE, RATE)
    assert begun.seconds < after.seconds
    with borrowed(sender.pid) as connections:
        assert len(connections) == 4
        assert all(connection.pacing < RATE for connection in connections)
        assert_unharmed(connections)


@pytest.mark.parametrize("connections", [4, 16])
def test_connections_get_the_same(scene: Scene, connections: int) -> None:
    cgroup = scene.limited(RATE)
    before = scene.pair.arrived()
    sender = scene.pair.send_tcp(connections=connections, cgroup=cgroup)
    when_begun(scene.pair, before, RATE // 5)
    with borrowed(sender.pid) as each:
        begin = [connection.info.acknowledged for connection in each]
        time.sleep(1.5)
        sent = [connection.info.acknowledged - at for connection, at in zip(each, begin)]
        print(f"Jain's index {jain(sent):.4f}")
        assert len(sent) == connections
        assert jain(sent) >= 0.95
        assert_unharmed(each)


def test_a_pair_of_large_packets_is_paced_alike() -> None:
    with Pair(offloads=True, mtu=9000) as pair, staged(pair) as scene:
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

    time.sleep(0.5)
    begin, since = sent(), time.monotonic()
    time.sleep(1.5)
    share = (sent() - begin) / (time.monotonic() - since) / RATE
    print(f"{share:.4f} of the limit")
    assert len(connections) == 4
    assert 0.9 <= share <= 1.05
    assert_unharmed(connections)
