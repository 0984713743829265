# SPDX-License-Identifier: GPL-3.0-or-later
"""What the program promises, seen from the receiver: how many bytes arrive, and what a sender notices."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import Dataplane, cgroup2
from ansible_collections.speed_limiter.ebpf.tests.support.net import DEADLINE, Arrived, Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import cells
from ansible_collections.speed_limiter.ebpf.tests.support.scene import GSO_PACKET, MBIT, assert_bound
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE, SLOW

RATE = 10 * MBIT // (5 if SLOW else 1)
Make = Callable[[str], Path]


@pytest.fixture
def program(limiter_object: str) -> Path:
    return Path(limiter_object)


@pytest.fixture
def plane(program: Path) -> Iterator[Dataplane]:
    it = Dataplane(program)
    yield it
    it.close()


@pytest.fixture
def pair(network: Pair) -> Iterator[Pair]:
    """The namespaces, which are slow to make, without the senders of the test before."""
    yield network
    network.stop()


@pytest.fixture
def make(plane: Dataplane, pair: Pair) -> Iterator[Make]:
    """Makes cgroups by their path below the mount, parents first. Gone, with what runs in them, after the test."""
    made: list[Path] = []

    def make_cgroup(path: str) -> Path:
        cgroup = cgroup2() / path
        cgroup.mkdir()
        made.append(cgroup)
        return cgroup

    yield make_cgroup
    pair.stop()
    for cgroup in reversed(made):
        cgroup.rmdir()


def passed(before: Arrived, after: Arrived) -> int:
    return after.bytes - before.bytes


def wait_for_drops(plane: Dataplane, rule: Path) -> None:
    """Until the bucket is spent."""
    deadline = time.monotonic() + DEADLINE
    while not plane.state_of(rule).dropped_packets:
        assert time.monotonic() < deadline, "nothing was dropped: the limit does not hold"
        time.sleep(0.01)


def rate_while(pair: Pair, seconds: float) -> float:
    """Bytes a second that arrive in the given time from now on."""
    before = pair.arrived()
    time.sleep(seconds * PATIENCE)
    after = pair.arrived()
    return passed(before, after) / (after.seconds - before.seconds)


def wait_for_rate(pair: Pair, least: float) -> None:
    """Until so many bytes a second arrive: a busy machine may not send them at once."""
    until(lambda: rate_while(pair, 0.2) > least)


def arrived_when_spent(plane: Dataplane, rule: Path, pair: Pair, rate: int) -> Arrived:
    """What has arrived at a moment at which the bucket holds less than two milliseconds' worth."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        arrived, state = pair.arrived(), plane.state_of(rule)
        # They belong together only where nothing came between them.
        together = time.monotonic() - arrived.seconds < 0.002 * PATIENCE
        if together and state.tokens + rate * (arrived.seconds - state.last_update_ns / 1e9) < 0.002 * rate:
            return arrived
        time.sleep(0.0005)
    raise AssertionError("the bucket is never spent: nothing is limited, or too little is offered")


def arrived_since_spending(plane: Dataplane, rule: Path, pair: Pair) -> Arrived:
    """What has arrived when the bucket was just emptied. It fills from then on, however late the count is read."""
    emptied = plane.spend(rule)
    return pair.arrived()._replace(seconds=emptied)


def spent_rate(plane: Dataplane, rule: Path, pair: Pair, rate: int, seconds: float = 1.2) -> float:
    """Bytes a second that arrive while the bucket is spent. It is a second deep in these tests, so that senders which
    get no CPU for a while lose nothing: they catch up, and the count is taken when they have."""
    plane.spend(rule)
    before = arrived_when_spent(plane, rule, pair, rate)
    time.sleep(seconds * PATIENCE)
    after = arrived_when_spent(plane, rule, pair, rate)
    return passed(before, after) / (after.seconds - before.seconds)


@pytest.fixture(scope="module")
def unlimited(network: Pair) -> float:
    """How many bytes this machine's TCP brings in the time of a test."""
    before = network.arrived()
    network.send_tcp(1.5, 4).result()
    network.stop()
    return float(passed(before, network.arrived()))


@pytest.mark.parametrize(
    ("rate", "connections", "congestion"),
    cells((10 * MBIT, 16, "cubic"), [MBIT, 10 * MBIT, 100 * MBIT, 1000 * MBIT], [1, 16], ["cubic", "bbr"]),
)
def test_tcp_never_leaks_and_never_starves(
    plane: Dataplane, make: Make, pair: Pair, unlimited: float, rate: int, connections: int, congestion: str
) -> None:
    rule = make("rule")
    bucket = rate // 2
    plane.set_rule(rule, rate, bucket)
    before = pair.arrived()
    pair.send_tcp(1.5, connections, congestion, cgroup=rule).result()
    after = pair.arrived()
    assert_bound(before, after, rate, bucket, packets=1)
    assert passed(before, after) > min(bucket + 0.1 * rate, 0.3 * unlimited)


@pytest.mark.parametrize(("senders", "factor"), cells((2, 5), [1, 2], [1.2, 5, 40]))
def test_udp_gets_the_limit_whatever_it_offers(
    plane: Dataplane, make: Make, pair: Pair, senders: int, factor: float
) -> None:
    rule, rate = make("rule"), RATE
    plane.set_rule(rule, rate, rate)
    cpus = sorted(os.sched_getaffinity(0))
    offered = int(rate * factor / senders)
    sending = [pair.send_udp(offered, cgroup=rule, cpu=cpus[n % len(cpus)]) for n in range(senders)]
    assert spent_rate(plane, rule, pair, rate) == pytest.approx(rate, rel=0.005)
    assert [sender.finish().errors for sender in sending] == [{}] * senders


def test_udp_beside_tcp_shares_one_limit(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, rate = make("rule"), 10 * RATE
    plane.set_rule(rule, rate, rate)
    udp = pair.send_udp(2 * rate, cgroup=rule)
    tcp = pair.send_tcp(connections=4, cgroup=rule)
    # Less only where the senders get no processor in time.
    assert 0.97 * rate <= spent_rate(plane, rule, pair, rate) <= 1.005 * rate
    assert udp.finish().errors == {}
    delivered = tcp.finish()
    assert delivered.errors == {}
    assert delivered.bytes > 0.01 * rate


def test_only_a_socket_that_asks_for_errors_sees_enobufs(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule = make("rule")
    plane.set_rule(rule, MBIT, 3000)
    assert set(pair.send_udp(40 * MBIT, 0.3, option="recverr", cgroup=rule).result().errors) == {"ENOBUFS"}


def test_connections_are_made_and_closed_while_udp_floods(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule = make("rule")
    plane.set_rule(rule, RATE, 100_000)
    pair.send_udp(10 * RATE, 5.0 * PATIENCE, cgroup=rule)
    wait_for_drops(plane, rule)
    sent = pair.send_tcp(1.0, 8, cgroup=rule).result()
    assert sent.errors == {}
    assert sent.bytes > 0


@pytest.mark.every_kernel
def test_what_has_no_rule_is_not_limited(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, beside = make("rule"), make("beside")
    plane.set_rule(rule, MBIT, MBIT)
    before = pair.arrived()
    sent = pair.send_udp(100 * MBIT, 0.5, cgroup=beside).result()
    assert passed(before, pair.arrived()) > sent.bytes > 2 * MBIT
    assert plane.state_of(rule).packets == 0


def test_cgroups_below_a_rule_are_limited_with_it(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, _child, below = make("rule"), make("rule/child"), make("rule/child/grandchild")
    rate = RATE
    plane.set_rule(rule, rate, rate)
    pair.send_udp(5 * rate, cgroup=below)
    assert spent_rate(plane, rule, pair, rate) == pytest.approx(rate, rel=0.005)


@pytest.mark.every_kernel
def test_nested_rules_all_hold(plane: Dataplane, make: Make, pair: Pair) -> None:
    """Two children, of a rate and twice that, under two and a half: both floods get that, and each its own at most."""
    outer, inner, other = make("outer"), make("outer/inner"), make("outer/other")
    limits = {outer: 5 * RATE // 2, inner: RATE, other: 2 * RATE}
    for rule, rate in limits.items():
        plane.set_rule(rule, rate, rate)

    def flood() -> None:
        for cgroup in (inner, other):
            pair.send_udp(4 * RATE, cgroup=cgroup)

    flood()
    assert spent_rate(plane, outer, pair, limits[outer]) == pytest.approx(limits[outer], rel=0.005)
    # Counted between two moments at which nobody sends: who spends a bucket may lose what is charged meanwhile.
    pair.stop()
    before = {rule: plane.state_of(rule).bytes for rule in limits}
    since = time.monotonic()
    flood()
    time.sleep(1.0)
    pair.stop()
    elapsed = time.monotonic() - since
    charged = {rule: plane.state_of(rule).bytes - before[rule] for rule in limits}
    once = [plane.state_of(rule).once_bytes for rule in (outer, inner, other)]
    assert once == [0, plane.state_of(inner).bytes, plane.state_of(other).bytes]
    assert charged[inner] <= 1.005 * limits[inner] * elapsed + limits[inner]
    assert charged[other] <= 1.005 * limits[other] * elapsed + limits[other]
    # Refunds: what one rule passed and another dropped counts nowhere.
    assert charged[outer] == charged[inner] + charged[other] > RATE


def test_four_nested_rules_are_charged_and_give_back(plane: Dataplane, make: Make, pair: Pair) -> None:
    rules = [make("a"), make("a/b"), make("a/b/c"), make("a/b/c/d")]
    for rule in rules[1:]:
        plane.set_rule(rule, 1000 * MBIT, 1000 * MBIT)
    plane.set_rule(rules[0], MBIT, 10_000)
    sent = pair.send_udp(10 * MBIT, 0.5, cgroup=rules[3]).result()
    states = [plane.state_of(rule) for rule in rules]
    # Of all rules, what passed is counted once: by the innermost one.
    assert [state.once_bytes for state in states] == [0, 0, 0, states[3].bytes]
    assert states[0].dropped_packets > 0
    assert {(state.packets, state.bytes) for state in states} == {(states[0].packets, states[0].bytes)}
    assert [state.dropped_packets for state in states[1:]] == [0, 0, 0]
    assert states[0].packets + states[0].dropped_packets == sent.bytes // 1400


def test_members_of_a_rule_share_one_budget(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, one, two = make("rule"), make("one"), make("two")
    rate = RATE
    plane.set_rule(rule, rate, rate)
    for member in (one, two):
        plane.add_member(member, rule)
        pair.send_udp(2 * rate, cgroup=member)
    assert spent_rate(plane, rule, pair, rate) == pytest.approx(rate, rel=0.005)


def test_a_rule_met_twice_on_one_way_up_is_charged_once(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, below = make("rule"), make("rule/below")
    plane.set_rule(rule, RATE, RATE)
    plane.add_member(below, rule)
    before = pair.arrived()
    pair.send_udp(MBIT, 0.2, cgroup=below).result()
    assert plane.state_of(rule).bytes == pytest.approx(passed(before, pair.arrived()), abs=500)


def test_a_running_sender_follows_its_cgroup_into_a_rule_and_out(plane: Dataplane, make: Make, pair: Pair) -> None:
    """The answer that no rule holds is cached, too: a change of members must reach it."""
    rule, member = make("rule"), make("member")
    plane.set_rule(rule, MBIT, 10_000)
    pair.send_udp(20 * MBIT, cgroup=member)
    wait_for_rate(pair, 5 * MBIT)
    plane.add_member(member, rule)
    wait_for_drops(plane, rule)
    assert rate_while(pair, 0.5) < 2 * MBIT
    plane.remove_member(member)
    wait_for_rate(pair, 5 * MBIT)


def test_a_rule_without_configuration_limits_nothing(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule = make("rule")
    plane.add_member(rule, rule)
    sender = pair.send_udp(RATE, cgroup=rule)
    wait_for_rate(pair, RATE / 2)
    assert sender.finish().errors == {}


def borrow(process: Process, kind: int) -> socket.socket:
    """The first socket of a kind that another process has open (pidfd_getfd, kernel 5.6)."""
    pidfd = os.pidfd_open(process.pid)
    for entry in os.listdir(f"/proc/{process.pid}/fd"):
        if os.readlink(f"/proc/{process.pid}/fd/{entry}").startswith("socket:"):
            found = socket.socket(fileno=ctypes.CDLL(None).syscall(438, pidfd, int(entry), 0))
            if found.type == kind and found.family == socket.AF_INET:
                os.close(pidfd)
                return found
    raise AssertionError("no such socket")


@pytest.mark.parametrize("protocol", ["udp", pytest.param("tcp", marks=pytest.mark.every_kernel)])
def test_a_bound_socket_is_charged_to_its_rule(plane: Dataplane, make: Make, pair: Pair, protocol: str) -> None:
    """An open connection keeps the cgroup that it was made in, so its rule is written to the socket itself."""
    rule, elsewhere = make("rule"), make("elsewhere")
    rate = RATE
    plane.set_rule(rule, rate, rate)
    if protocol == "udp":
        sender = pair.send_udp(5 * rate, cgroup=elsewhere)
    else:
        sender = pair.send_tcp(cgroup=elsewhere)
    wait_for_rate(pair, 3 * rate)
    with borrow(sender, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM) as borrowed:
        plane.tag_socket(borrowed.fileno(), rule)
    before = arrived_since_spending(plane, rule, pair)
    wait_for_drops(plane, rule)
    time.sleep(1.0)
    assert_bound(before, pair.arrived(), rate, bucket=0, packets=1)


def test_a_bound_socket_still_obeys_the_rule_of_the_whole_host(plane: Dataplane, make: Make, pair: Pair) -> None:
    host, rule, elsewhere = make("host"), make("rule"), make("elsewhere")
    plane.set_rule(host, RATE, RATE)
    plane.set_rule(rule, 5 * RATE, 5 * RATE)
    plane.member[struct.pack("=Q", 1)] = struct.pack("=Q", host.stat().st_ino)  # 1: the root of cgroup2, everywhere
    plane.changed_members()
    sender = pair.send_udp(6 * RATE, cgroup=elsewhere)
    with borrow(sender, socket.SOCK_DGRAM) as borrowed:
        plane.tag_socket(borrowed.fileno(), rule)
    assert spent_rate(plane, host, pair, RATE) == pytest.approx(RATE, rel=0.005)
    assert plane.state_of(rule).bytes > RATE


def test_a_socket_bound_to_a_rule_that_is_gone_belongs_to_its_cgroup(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, gone = make("rule"), make("gone")
    plane.set_rule(rule, RATE, RATE)
    sender = pair.send_udp(6 * RATE, cgroup=rule)
    with borrow(sender, socket.SOCK_DGRAM) as borrowed:
        plane.tag_socket(borrowed.fileno(), gone)
    assert spent_rate(plane, rule, pair, RATE) == pytest.approx(RATE, rel=0.005)


def test_ipv6_is_limited_alike(plane: Dataplane, make: Make, pair: Pair) -> None:
    rule, rate = make("rule"), RATE
    plane.set_rule(rule, rate, rate)
    pair.send_udp(3 * rate, address=Pair.address6, cgroup=rule)
    assert spent_rate(plane, rule, pair, rate) == pytest.approx(rate, rel=0.005)
    pair.stop()
    before = arrived_since_spending(plane, rule, pair)
    pair.send_tcp(1.0, 4, address=Pair.address6, cgroup=rule).result()
    assert_bound(before, pair.arrived(), rate, bucket=0, packets=1)


@pytest.mark.parametrize("address", [Pair.address, Pair.address6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_segment_of_a_gso_packet_is_charged_its_headers(
    plane: Dataplane, make: Make, pair: Pair, address: str, protocol: str
) -> None:
    """With offloads off, a GSO packet is cut up after the hook: what is charged must be what arrives."""
    rule = make("rule")
    plane.set_rule(rule, 10_000 * MBIT, 10_000 * MBIT)
    before = pair.arrived()
    if protocol == "tcp":
        pair.send_tcp(0.2, 1, address=address, cgroup=rule).result()
    else:
        pair.send_udp(100 * MBIT, 0.2, 14_000, "gso", address=address, cgroup=rule).result()
    after, state = pair.arrived(), plane.state_of(rule)
    arrived_packets = after.packets - before.packets
    assert arrived_packets > 100
    # Resets and neighbour discovery do not pass the hook.
    assert 0 <= arrived_packets - state.packets <= 10
    assert 0 <= passed(before, after) - state.bytes <= 1000


def test_a_gso_packet_larger_than_the_bucket_passes_and_is_paid_back(program: Path) -> None:
    with Pair(offloads=True) as pair:
        plane, rule = Dataplane(program), cgroup2() / "rule"
        rule.mkdir()
        try:
            rate, bucket = RATE, 2000
            plane.set_rule(rule, rate, bucket)
            before = pair.arrived()
            pair.send_udp(3 * rate, 2.0, 42_000, "gso", cgroup=rule).result()
            after, state = pair.arrived(), plane.state_of(rule)
            assert state.bytes > rate
            assert state.bytes <= rate * (after.seconds - before.seconds) + bucket + GSO_PACKET
        finally:
            plane.close()
            rule.rmdir()
