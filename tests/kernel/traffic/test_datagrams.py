# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP beside what cannot be told a rate: datagrams of all sizes, and TCP that is told none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.connections import UNPACED, Connection, borrowed
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.parts import HALF, USED, assert_parts, parts_of
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import cells
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    MBIT,
    RATE,
    Scene,
    assert_bound,
    counters,
    pause,
    share_of,
)

GSO = 46 * 1400  # as many segments as a packet of 64 kB has


@pytest.mark.parametrize(("rate", "size"), cells((10 * MBIT, 65_000), [10 * MBIT, RATE], [100, 65_000, 20_000, GSO]))
def test_tcp_keeps_its_part_beside_datagrams(scene: Scene, rate: int, size: int) -> None:
    pair, bucket = scene.pair, rate // 10
    cgroup = scene.limited(rate, bucket=str(bucket))
    before = pair.arrived()
    tcp = pair.send_tcp(cgroup=cgroup)
    udp = pair.send_udp(
        (3 if size == 100 else 10) * rate, size=size, option="gso" if size == GSO else "", cgroup=cgroup
    )
    pause(0.7)
    # The headers of fragments are made behind the hook: 20 B of each 1480.
    assert_parts(pair, rate, (tcp, HALF), used=0.9)
    assert share_of(pair, rate, 1.0) <= 1.05
    assert_bound(before, pair.arrived(), rate * 103 // 100, bucket)
    assert udp.finish().errors == {}


def test_a_raw_socket_of_tcps_protocol_is_none_of_tcps(scene: Scene) -> None:
    """The kernel takes it for a TCP socket, whose fields lie behind its end."""
    pair, bucket = scene.pair, RATE // 10
    cgroup = scene.limited(RATE, bucket=str(bucket))
    before = pair.arrived()
    tcp = pair.send_tcp(cgroup=cgroup)
    pair.send_udp(5 * RATE, option="raw", cgroup=cgroup)
    pause(0.7)
    assert_parts(pair, RATE, (tcp, HALF), used=0.9)
    assert_bound(before, pair.arrived(), RATE * 103 // 100, bucket)


@pytest.mark.parametrize(("connections", "congestion"), [(1, "bbr"), (16, "cubic")])
def test_tcp_whose_sockets_have_no_memory_for_us_leaves_an_honest_one_its_part(
    scene: Scene, connections: int, congestion: str
) -> None:
    """Keys of TCP_MD5SIG, for which nobody needs a privilege, take all that a socket may have. What nobody can tell a
    rate has half of the limit, whatever its number; bbr, which believes what it once measured, takes a quarter.
    """
    pair, rate = scene.pair, RATE // 5
    cgroup = scene.limited(rate)
    other = pair.traffic("tcp", Pair.address, PORT, LONG, connections, congestion, "", "keys", cgroup=cgroup)
    pause(1.0)
    with borrowed(other.pid) as each:
        if any(connection.pacing != UNPACED for connection in each):
            pytest.skip("this kernel signs no TCP, or has memory left")
    honest = pair.send_tcp(cgroup=cgroup)
    pause(1.5)
    assert_parts(pair, rate, (honest, HALF), (other, 0.1 if congestion == "bbr" else HALF - 0.1), seconds=2.0)


@contextmanager
def raised_again_and_again(process: Process) -> Iterator[None]:
    """What the process may send, by itself, to all that there is."""
    done = threading.Event()

    def work(connection: Connection) -> None:
        while not done.wait(0.0002):
            connection.pacing = UNPACED

    with borrowed(process.pid) as connections:
        thread = threading.Thread(target=work, args=connections)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def test_who_raises_its_pacing_rate_again_and_again_leaves_an_honest_one_its_part(scene: Scene) -> None:
    pair, rate = scene.pair, RATE // 5
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    other, honest = pair.send_tcp(cgroup=cgroup), pair.send_tcp(cgroup=cgroup)
    before = pair.arrived()
    with raised_again_and_again(other):
        pause(0.7)
        # By turns it is TCP and foreign, which is as good as two connections, and no better.
        assert_parts(pair, rate, (honest, 0.3))
    assert_bound(before, pair.arrived(), rate, rate // 10)


def test_who_keeps_little_unsent_gets_as_much_as_a_greedy_one(scene: Scene) -> None:
    pair, rate = scene.pair, 2 * RATE
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    low = pair.traffic("tcp", Pair.address, PORT, LONG, 1, "cubic", "", "lowat", cgroup=cgroup)
    greedy = pair.send_tcp(cgroup=cgroup)
    pause(0.7)
    assert_parts(pair, rate, (low, HALF), (greedy, HALF))


def test_a_flood_of_acknowledgements_leaves_data_its_part(scene: Scene) -> None:
    """Somebody sends to a limited server, which acknowledges more than the limit gives."""
    pair, rate = scene.pair, MBIT // 2
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    pair.traffic("receive", Pair.sender_address, 5003, cgroup=cgroup)
    bulk = pair.send_tcp(cgroup=cgroup)
    pause(0.5)
    before = pair.arrived()
    pair.traffic("tiny", Pair.sender_address, 5003, LONG, 4, namespace=pair.receiver)
    pause(0.7)
    assert_parts(pair, rate, (bulk, HALF), seconds=2.0)
    assert_bound(before, pair.arrived(), rate, rate // 10)


def test_connections_are_made_beside_a_flood_of_acknowledgements(scene: Scene) -> None:
    pair, rate = scene.pair, MBIT // 2
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    pair.traffic("receive", Pair.sender_address, 5003, cgroup=cgroup)
    pair.traffic("tiny", Pair.sender_address, 5003, LONG, 4, namespace=pair.receiver)
    until(lambda: counters()["drops"]["empty"] > 100)
    begin = pair.tcp_counter("TCPSynRetrans")
    pair.traffic("churn", Pair.address, PORT, 2.0, 10, 0, cgroup=cgroup).result()
    print(counters())
    assert pair.tcp_counter("TCPSynRetrans") == begin


def test_a_rule_whose_only_traffic_are_syns_holds_and_is_right_afterwards(scene: Scene) -> None:
    """Nobody answers at that address."""
    pair, rate = scene.pair, MBIT // 4
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    before = pair.arrived()
    trying = pair.traffic("syn", Pair.address, 5999, 2.0, 1000, cgroup=cgroup)
    tried = trying.result().bytes
    after = pair.arrived()
    assert_bound(before, after, rate, rate // 10)
    print(f"{tried} tried, {counters()}")
    bulk = pair.send_tcp(cgroup=cgroup)
    pause(0.7)
    assert_parts(pair, rate, (bulk, USED - 0.02))
    assert parts_of(pair, rate).used <= 1.2
