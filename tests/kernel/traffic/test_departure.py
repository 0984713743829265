# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the sender's device has fq, packets wait for their limit; on any other device nothing changes."""

from __future__ import annotations

import statistics
import subprocess
import time

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.connections import borrowed, jain
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, Process, run
from ansible_collections.speed_limiter.ebpf.tests.support.parts import BULK, HALF, USED, Drops, assert_parts
from ansible_collections.speed_limiter.ebpf.tests.support.queues import dropped_by_fq
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    MBIT,
    Scene,
    assert_bound,
    assert_held,
    counters,
    pause,
    share_of,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE, SLOW

SERVED = 5001
PAGE = 10_000
WORKERS = 4


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


@pytest.mark.every_kernel
def test_a_limit_that_changes_while_packets_wait_is_the_new_one(fq: Scene) -> None:
    rate = 8 * MBIT
    cgroup = fq.limited(rate, bucket=str(rate // 20))
    fq.pair.send_tcp(connections=2, cgroup=cgroup)
    fq.pair.send_udp(2 * rate, cgroup=cgroup)
    pause(1.0)
    for now in (rate // 4, rate):
        assert limiter.rule(name="paced", rate=str(now), bucket=str(rate // 20))["changed"]
        begin = fq.pair.arrived()
        assert_held(fq.pair, now)
        # What had its time before leaves at it.
        assert_bound(begin, fq.pair.arrived(), now, rate // 20 + rate // 5)
    assert counters()["delayed_packets"] > 0


def test_times_that_a_program_is_told_are_those_of_the_clock(fq: Scene) -> None:
    """SO_TIMESTAMPING at the sender, SO_TIMESTAMPNS at the receiver: the departure time is neither."""
    cgroup = fq.limited(MBIT, bucket="3000")
    port = PORT + 7
    receiving = f"""
import socket, struct, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 35, 1)
s.settimeout(20)
s.bind(({Pair.address!r}, {port}))
print("ready", flush=True)
for i in range(5):
    seconds, rest = struct.unpack("qq", s.recvmsg(2000, 200)[1][0][2])
    print(time.time() - seconds - rest / 1e9)
"""
    inside = ("nsenter", f"--net=/run/netns/{fq.pair.receiver}", "python3", "-c", receiving)
    with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout and receiver.stdout.readline() == "ready\n"
        sending = f"""
import select, socket, struct, time
open({str(cgroup / "cgroup.procs")!r}, "w").write("0")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 37, 1 << 1 | 1 << 4 | 1 << 11)
s.connect(({Pair.address!r}, {port}))
for i in range(5):
    s.send(bytes(1372))
poll = select.poll()
poll.register(s, select.POLLERR)
for i in range(5):
    assert poll.poll(20000)
    seconds, rest = struct.unpack("qq", s.recvmsg(2000, 200, socket.MSG_ERRQUEUE)[1][0][2][:16])
    print(time.time() - seconds - rest / 1e9)
"""
        sent = run("nsenter", f"--net=/run/netns/{fq.pair.sender}", "python3", "-c", sending)
        arrived, _errors = receiver.communicate(timeout=60)
    ages = [float(line) for line in (sent + arrived).split()]
    assert len(ages) == 10
    assert all(0 <= age < 20 for age in ages), ages
    assert counters()["delayed_packets"] > 0


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
