# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices whose fq holds few packets, for a short time or not for all, and devices with another queue."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, run
from ansible_collections.speed_limiter.ebpf.tests.support.queues import dropped_by_fq, queue, tc
from ansible_collections.speed_limiter.ebpf.tests.support.refusing import forbidding_looks
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    MBIT,
    Scene,
    assert_bound,
    counters,
    pause,
    share_of,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE


def test_a_short_queue_is_left_half_to_others(fq: Scene) -> None:
    """Of several rules, each of which may have more packets waiting than there is room for. What buckets let pass at
    once when their senders were asleep does not wait, and needs room, too.
    """
    queue(fq.pair, "fq", "limit", "80")
    rate = 4 * MBIT
    for name in ("one", "two", "three"):
        fq.pair.send_udp(2 * rate, size=272, cgroup=fq.limited(rate, path=name, bucket="3000"))
    pause(1.0)
    assert all(counters(name)["delayed_packets"] > 0 for name in ("one", "two", "three"))
    assert dropped_by_fq(fq.pair) == 0


def test_many_floods_leave_room_for_who_is_not_limited(fq: Scene) -> None:
    """Nothing is lost but what a rule itself drops, and tells."""
    queue(fq.pair, "fq", "limit", "400")
    cgroups = [fq.cgroup(f"flood{number}") for number in range(200)]
    rows = [{"name": path.name, "rate": "8000", "bucket": "3000", "cgroup_path": f"/{path.name}"} for path in cgroups]
    limiter.rules(*rows)
    before = fq.pair.arrived()
    code = f"""
import socket, time
def made(directory):
    open(directory + "/cgroup.procs", "w").write("0")
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(({Pair.address!r}, {PORT}))
    return s
free = made({str(fq.cgroup("free"))!r})
limited = [made(directory) for directory in {[str(path) for path in cgroups]!r}]
end, sent = time.monotonic() + {3 * PATIENCE}, 0
while time.monotonic() < end:
    free.send(bytes(72))
    sent += 1
    for s in limited:
        try:
            s.send(bytes(72))
        except PermissionError:
            pass
print(sent)
"""
    sent = int(run("nsenter", f"--net=/run/netns/{fq.pair.sender}", "python3", "-c", code))
    found = limiter.info(gather=["rules"])["rules"]
    assert len(found) == 200
    assert all(rule["counters"]["dropped_packets"] for rule in found)
    assert sum(rule["counters"]["delayed_packets"] for rule in found) > 0
    passed = sent + sum(rule["counters"]["packets"] for rule in found)
    until(lambda: fq.pair.arrived().packets - before.packets >= passed)
    assert dropped_by_fq(fq.pair) == 0


@pytest.mark.parametrize(
    "words", [("flow_limit", "20"), ("horizon", "10ms"), ("maxrate", "1mbit"), ("pacing",)], ids=lambda words: words[0]
)
def test_an_fq_that_holds_less_loses_and_lets_nothing_pass_unlimited(fq: Scene, words: tuple[str, ...]) -> None:
    queue(fq.pair, "fq", *words)
    rate = 4 * MBIT
    cgroup = fq.limited(rate, bucket=str(rate // 10))
    before = fq.pair.arrived()
    fq.pair.send_udp(rate * 3 // 2, cgroup=cgroup)
    fq.pair.send_tcp(cgroup=cgroup)
    pause(1.0)
    print(f"{share_of(fq.pair, rate, 2.0):.3f} of the limit, {dropped_by_fq(fq.pair)} dropped by fq")
    assert_bound(before, fq.pair.arrived(), rate, rate // 10)


def test_devices_that_have_fq_are_named_as_long_as_they_have_it(fq: Scene) -> None:
    def devices() -> list[str]:
        found: list[str] = limiter.info(gather=["program"])["program"]["departure"]["devices"]
        return found

    fq.limited(MBIT)
    assert devices() == []
    run("ip", "link", "add", "limiter-fq", "type", "dummy")
    try:
        run("ip", "link", "set", "limiter-fq", "up")
        run("tc", "qdisc", "replace", "dev", "limiter-fq", "root", "fq")
        assert devices() == ["limiter-fq"]
        run("tc", "qdisc", "replace", "dev", "limiter-fq", "root", "pfifo")
        assert devices() == []
    finally:
        run("ip", "link", "delete", "limiter-fq")


@pytest.mark.parametrize(
    "kind",
    [
        "none",
        "pfifo",
        "fq_codel",
        "netem",
        pytest.param("htb default 1", id="htb"),
        pytest.param("etf clockid CLOCK_TAI", id="etf"),
    ],
)
def test_on_another_queueing_discipline_no_packet_gets_a_time(fq: Scene, kind: str) -> None:
    tc(fq.pair, "delete", "dev", "veth0", "root")
    if kind != "none":
        queue(fq.pair, *kind.split())
    assert_never_delayed(fq)


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


@pytest.mark.every_kernel
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


@pytest.mark.every_kernel
def test_a_queueing_discipline_that_is_replaced_under_traffic_lets_nothing_pass_unlimited(fq: Scene) -> None:
    rate = 4 * MBIT
    cgroup = fq.limited(rate, bucket=str(rate // 10))
    before = fq.pair.arrived()
    fq.pair.send_udp(2 * rate, cgroup=cgroup)
    fq.pair.send_tcp(cgroup=cgroup)
    for kind in ("fq_codel", "fq", "pfifo", "fq", "netem", "fq"):
        pause(0.3)
        queue(fq.pair, kind)
    # What waits may leave at once when a queue goes, which it does not: a queue that goes drops it.
    assert_bound(before, fq.pair.arrived(), rate, rate // 10)


@pytest.mark.every_kernel
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
