# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the sender's device has fq, packets wait for their limit; on any other device nothing changes."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.connections import borrowed, jain
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, Process, run
from ansible_collections.speed_limiter.ebpf.tests.support.parts import BULK, HALF, USED, Drops, assert_parts
from ansible_collections.speed_limiter.ebpf.tests.support.refusing import forbidding_looks
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    MBIT,
    Scene,
    assert_bound,
    counters,
    pause,
    share_of,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE, SLOW

SERVED = 5001
PAGE = 10_000
WORKERS = 4


def tc(pair: Pair, *arguments: str) -> None:
    run("tc", "-n", pair.sender, "qdisc", *arguments)


def dropped_by_fq(pair: Pair) -> int:
    shown = json.loads(run("tc", "-n", pair.sender, "-s", "-j", "qdisc", "show", "dev", "veth0"))
    return next(int(queue["drops"]) for queue in shown if queue["kind"] == "fq")


@pytest.fixture
def fq(scene: Scene) -> Iterator[Scene]:
    """A sender whose device has fq."""
    try:
        tc(scene.pair, "replace", "dev", "veth0", "root", "fq")
    except RuntimeError:
        pytest.skip("this kernel has no fq")
    yield scene
    subprocess.run(["tc", "-n", scene.pair.sender, "qdisc", "delete", "dev", "veth0", "root"], check=False)


def asked(scene: Scene, rate: int, seconds: float) -> list[float]:
    """Milliseconds that answers took, each on a new connection."""
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    scene.pair.traffic("answer", Pair.sender_address, SERVED, cgroup=cgroup)
    arguments = ("ask", Pair.sender_address, SERVED, seconds, "new", WORKERS, PAGE)
    asking: Process = scene.pair.traffic(*arguments, namespace=scene.pair.receiver)
    waits = sorted(asking.result().round_trips)
    print(f"{len(waits)} answers: median {statistics.median(waits):.0f}, most {waits[-1]:.0f} ms; {counters()}")
    return waits


@pytest.mark.every_kernel
def test_a_connection_for_each_request_waits_for_the_limit_and_for_no_timer(fq: Scene) -> None:
    rate = 2 * MBIT
    before = fq.pair.tcp_counter(), fq.pair.tcp_counter("TCPSpuriousRTOs")
    waits = asked(fq, rate, 6.0 * PATIENCE)
    cycle = 1000 * WORKERS * 10_500 / rate
    # A busy machine is late with some.
    assert statistics.median(waits) < 1.2 * cycle
    assert waits[len(waits) * 9 // 10] < 2 * cycle
    assert counters()["dropped_packets"] == 0
    assert counters()["delayed_packets"] > 0
    assert counters()["mean_delay_us"] < 200_000
    now = fq.pair.tcp_counter(), fq.pair.tcp_counter("TCPSpuriousRTOs")
    assert sum(now) - sum(before) <= (len(waits) // 50 if SLOW else 0)


@pytest.mark.every_kernel
def test_datagrams_in_clumps_at_half_the_limit_are_not_lost(fq: Scene) -> None:
    rate = 8 * MBIT
    cgroup = fq.limited(rate, bucket="16000")
    fq.pair.send_udp(rate // 2, size=1372, option="clumps", cgroup=cgroup)
    pause(3.0)
    rule = limiter.info(name="paced", gather=["rules"])["rules"][0]
    found = rule["counters"]
    print(found)
    assert rule["use"]["binds"]
    assert found["packets"] > 100
    assert found["delayed_packets"] > 0
    assert found["mean_delay_us"] < 50_000
    # What a machine had no time for comes later at once, which is more than a clump.
    assert found["dropped_packets"] <= found["packets"] * 0.02


@pytest.mark.every_kernel
@pytest.mark.parametrize("size", [272, 1372])
def test_a_flood_has_the_limit_and_loses_what_is_beyond(fq: Scene, size: int) -> None:
    rate = 4 * MBIT
    cgroup = fq.limited(rate, bucket=str(rate // 10))
    before = fq.pair.arrived()
    fq.pair.send_udp(rate * 3 // 2, size=size, cgroup=cgroup)
    pause(1.0)
    assert share_of(fq.pair, rate, 2.0) > 0.95
    assert_bound(before, fq.pair.arrived(), rate, rate // 10)
    assert dropped_by_fq(fq.pair) == 0


@pytest.mark.every_kernel
def test_tcp_has_its_part_beside_datagrams_and_all_of_the_limit_is_used(fq: Scene) -> None:
    """fq paces for TCP there: TCP hands packets over before their time."""
    rate = 8 * MBIT
    cgroup = fq.limited(rate, bucket=str(rate // 10))
    before = fq.pair.arrived()
    tcp = fq.pair.send_tcp(connections=2, cgroup=cgroup)
    udp = fq.pair.send_udp(2 * rate, cgroup=cgroup)
    pause(1.0)
    assert_parts(fq.pair, rate, (tcp, HALF))
    udp.finish()
    pause(0.5)
    assert_parts(fq.pair, rate, (tcp, BULK))
    assert_bound(before, fq.pair.arrived(), rate, rate // 10)


@pytest.mark.every_kernel
def test_answers_on_kept_connections_share_the_limit(fq: Scene) -> None:
    rate = 2 * MBIT // PATIENCE
    server = fq.pair.traffic(
        "answer", Pair.sender_address, SERVED, cgroup=fq.limited(rate, bucket=str(max(5000, rate // 50)))
    )
    arguments = ("ask", Pair.sender_address, SERVED, LONG, "kept", 4, 1000)
    fq.pair.traffic(*arguments, namespace=fq.pair.receiver)
    pause(2.0)
    drops = Drops()
    with borrowed(server.pid) as connections:
        begin = [connection.info.acknowledged for connection in connections]
        used = share_of(fq.pair, rate, 2.0)
        sent = [connection.info.acknowledged - at for connection, at in zip(connections, begin)]
    assert used >= USED
    assert jain(sent) >= 0.9, sent
    assert drops.part < 0.02


def test_nested_rules_and_ipv6_wait_for_the_slower_one(fq: Scene) -> None:
    rate = 4 * MBIT
    fq.limited(rate, bucket=str(rate // 10))
    cgroup = fq.limited(2 * rate, path="paced/inner", bucket=str(rate // 5))
    before = fq.pair.arrived()
    fq.pair.send_udp(rate * 3 // 2, cgroup=cgroup, address=Pair.address6)
    pause(1.0)
    assert share_of(fq.pair, rate, 1.0) > 0.95
    assert_bound(before, fq.pair.arrived(), rate, rate // 10)
    assert counters()["delayed_packets"] > 0
    assert counters("inner")["dropped_packets"] == 0


def test_a_short_queue_is_left_half_to_others(fq: Scene) -> None:
    """Of several rules, each of which may have more packets waiting than there is room for. What buckets let pass at
    once when their senders were asleep does not wait, and needs room, too.
    """
    tc(fq.pair, "replace", "dev", "veth0", "root", "fq", "limit", "80")
    rate = 4 * MBIT
    for name in ("one", "two", "three"):
        fq.pair.send_udp(2 * rate, size=272, cgroup=fq.limited(rate, path=name, bucket="3000"))
    pause(1.0)
    assert all(counters(name)["delayed_packets"] > 0 for name in ("one", "two", "three"))
    assert dropped_by_fq(fq.pair) == 0


@pytest.mark.parametrize(
    "kind",
    [
        "none",
        "pfifo",
        "fq_codel",
        "netem",
        pytest.param("htb default 1", id="htb"),
    ],
)
def test_on_another_queueing_discipline_no_packet_gets_a_time(fq: Scene, kind: str) -> None:
    tc(fq.pair, "delete", "dev", "veth0", "root")
    if kind != "none":
        tc(fq.pair, "replace", "dev", "veth0", "root", *kind.split())
    assert_never_delayed(fq)
    if kind == "none":
        tc(fq.pair, "replace", "dev", "veth0", "root", "pfifo")


@pytest.mark.every_kernel
@pytest.mark.parametrize(
    ("priority", "address"), [(7, Pair.address), (0, "239.1.2.3")], ids=["TC_PRIO_CONTROL", "multicast"]
)
def test_what_fq_does_not_hold_for_all_gets_no_time(fq: Scene, priority: int, address: str) -> None:
    code = f"""
import socket
open({str(fq.limited(MBIT // 8, bucket="3000") / "cgroup.procs")!r}, "w").write("0")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, {priority})
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton({Pair.sender_address!r}))
for i in range(30):
    s.sendto(bytes(1372), ({address!r}, {PORT}))
"""
    run("nsenter", f"--net=/run/netns/{fq.pair.sender}", "python3", "-c", code)
    found = counters()
    assert found["dropped_packets"] > 0
    assert found["delayed_packets"] == 0


def assert_never_delayed(scene: Scene) -> None:
    rate = 4 * MBIT
    cgroup = scene.limited(rate, bucket=str(rate // 10))
    before = scene.pair.arrived()
    scene.pair.send_udp(2 * rate, cgroup=cgroup)
    pause(0.7)
    assert_bound(before, scene.pair.arrived(), rate, rate // 10, packets=1)
    found = counters()
    assert found["dropped_packets"] > 0
    assert found["delayed_packets"] == 0


def test_with_departure_off_no_packet_gets_a_time(fq: Scene) -> None:
    done = limiter.program(departure="off")
    assert done["actions"] == ["switched departure times off"]
    try:
        assert not limiter.program(departure="off")["changed"]
        assert limiter.info(gather=["program"])["program"]["departure"]["state"] == "off"
        assert_never_delayed(fq)
    finally:
        assert limiter.program()["actions"] == ["switched departure times on"]


def test_where_the_kernel_forbids_looks_no_packet_gets_a_time_and_that_is_told(fq: Scene) -> None:
    with forbidding_looks():
        limiter.program(state="reloaded")
    try:
        assert_never_delayed(fq)
        told = limiter.info(gather=["program"])["program"]["departure"]
        assert told["state"] == "refused"
        assert "memory" in told["reason"]
    finally:
        limiter.program(state="reloaded")


def test_a_queueing_discipline_that_is_replaced_under_traffic_lets_nothing_pass_unlimited(fq: Scene) -> None:
    rate = 4 * MBIT
    cgroup = fq.limited(rate, bucket=str(rate // 10))
    before = fq.pair.arrived()
    fq.pair.send_udp(2 * rate, cgroup=cgroup)
    fq.pair.send_tcp(cgroup=cgroup)
    for kind in ("fq_codel", "fq", "pfifo", "fq", "netem", "fq"):
        pause(0.3)
        tc(fq.pair, "replace", "dev", "veth0", "root", kind)
    # What waits may leave at once when a queue goes, which it does not: a queue that goes drops it.
    assert_bound(before, fq.pair.arrived(), rate, rate // 10)


def test_the_time_that_a_process_gives_its_packet_stays(fq: Scene) -> None:
    """SO_TXTIME, later than what the limit would give."""
    cgroup, rate = fq.cgroup("timed"), MBIT
    limiter.rule(name="timed", rate=str(rate), bucket="3000", cgroup_path="/timed")
    arrived = fq.pair.arrived()
    code = f"""
import socket, struct, time
open({str(cgroup / "cgroup.procs")!r}, "w").write("0")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 61, struct.pack("iI", time.CLOCK_MONOTONIC, 0))
s.connect(({Pair.address!r}, {PORT}))
for i in range(3):
    s.sendmsg([bytes(1372)], [(socket.SOL_SOCKET, 61, struct.pack("=Q", time.monotonic_ns() + 1_000_000_000))])
print(time.monotonic())
"""
    sent = float(run("nsenter", f"--net=/run/netns/{fq.pair.sender}", "python3", "-c", code))
    while fq.pair.arrived().packets < arrived.packets + 3:
        assert time.monotonic() < sent + 20
        time.sleep(0.01)
    assert time.monotonic() - sent >= 0.9


def test_leaves_of_mq_hold_packets_only_if_all_are_fq(scene: Scene) -> None:
    sender = scene.pair.sender
    try:
        run("ip", "-n", sender, "link", "add", "many", "numtxqueues", "4", "type", "dummy")
        run("tc", "-n", sender, "qdisc", "replace", "dev", "many", "root", "handle", "8001:", "mq")
        for leaf in range(1, 5):
            run("tc", "-n", sender, "qdisc", "replace", "dev", "many", "parent", f"8001:{leaf}", "fq")
    except RuntimeError:
        pytest.skip("this kernel has no fq, or no dummy device")
    run("ip", "-n", sender, "address", "add", "10.254.0.1/24", "dev", "many")
    run("ip", "-n", sender, "link", "set", "many", "up")
    rate = MBIT
    cgroup = scene.limited(rate, bucket="3000")
    scene.pair.traffic("udp", "10.254.0.2", PORT, LONG, 2 * rate, cgroup=cgroup)
    pause(0.5)
    assert counters()["delayed_packets"] > 0
    run("tc", "-n", sender, "qdisc", "replace", "dev", "many", "parent", "8001:3", "fq_codel")
    pause(0.2)
    before = counters()
    pause(0.5)
    now = counters()
    assert now["packets"] > before["packets"]
    assert now["delayed_packets"] == before["delayed_packets"]
