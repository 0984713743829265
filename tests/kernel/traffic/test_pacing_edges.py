# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacing where it is hardest: very low and very high rates, many short connections, processes that pace themselves, and
rules that change or go while connections send.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.connections import UNPACED, Connection, borrowed
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, PORT, Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import ADOPTS, RELEASES, adopting
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    MBIT,
    MOST,
    RATE,
    SMALL,
    WINDOWS,
    Scene,
    assert_bound,
    assert_held,
    counters,
    pause,
    share_of,
    wait_until,
    when_begun,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE, SLOW

LOWEST = 8000  # 64 kbit/s
GBIT = 1000 * MBIT
SERVER_PORT = 5001


# ---- rates


def test_the_lowest_rate_holds_and_starves_nobody(scene: Scene) -> None:
    """Two rules, one with a connection, one with eight of them: it is five packets a second."""
    bucket, pair = 3000, scene.pair
    rules = {connections: scene.limited(LOWEST, f"of-{connections}", bucket=str(bucket)) for connections in (1, 8)}
    before = pair.arrived()
    senders = {connections: pair.send_tcp(connections=connections, cgroup=rules[connections]) for connections in rules}
    pause(4.0)
    after = pair.arrived()
    share = (after.bytes - before.bytes) / LOWEST / 2 / (after.seconds - before.seconds)
    print(f"{share:.3f} of the limits")
    assert_bound(before, after, 2 * LOWEST, 2 * bucket)
    for connections, sender in senders.items():
        with borrowed(sender.pid) as each:
            assert [connection.info.acknowledged > 0 for connection in each] == [True] * connections
    # They begin with their buckets, and with what may wait for its time at the end.
    assert share > 0.5


@pytest.mark.parametrize("rate", [MBIT, 10 * MBIT])
def test_initial_windows_do_not_overrun_a_low_rate(scene: Scene, rate: int) -> None:
    """Sixteen of them are 230 KB."""
    cgroup = scene.limited(rate, bucket=str(rate // SMALL))
    before = scene.pair.arrived()
    scene.pair.send_tcp(connections=16, cgroup=cgroup)
    begun = when_begun(scene.pair, before)
    pause(1.0)
    after = scene.pair.arrived()
    passed, seconds = after.bytes - before.bytes, after.seconds - begun.seconds
    print(f"{passed / seconds / rate:.3f} of the limit in the first second")
    # Of each connection two segments go unpaced.
    assert passed <= 1.1 * rate * seconds + 16 * 2 * 1500


def test_hundreds_of_short_connections_are_all_completed(scene: Scene) -> None:
    size, rate, count = 30_000, 2 * RATE, 1000 // PATIENCE
    cgroup, pair = scene.limited(rate, bucket=str(rate // 10)), scene.pair
    before = pair.arrived()
    done = pair.traffic("short", Pair.address, PORT, count, size, 32, cgroup=cgroup).result()
    after = pair.arrived()
    assert (done.bytes, done.errors) == (count * size, {})
    assert_bound(before, after, rate, rate // 10)
    share = (after.bytes - before.bytes) / (after.seconds - before.seconds) / rate
    print(f"{share:.3f} of the limit")


def acknowledged(sender: Process, seconds: float) -> float:
    """Bytes a second, on the wire, that a sender's peers have got."""
    with borrowed(sender.pid) as connections:
        begin, since = sum(connection.wire_bytes for connection in connections), time.monotonic()
        pause(seconds)
        sent = sum(connection.wire_bytes for connection in connections) - begin
        return sent / (time.monotonic() - since)


def test_one_connection_over_loopback_is_not_slowed_down_by_a_rate_that_it_does_not_reach(scene: Scene) -> None:
    """Pacing has its price in timers, but a third of what the machine does without a rule is more than any share."""
    rate, pair = 20 * GBIT, scene.pair
    cgroup = scene.cgroup("paced")
    pair.traffic("receive", "127.0.0.1", PORT)
    free = pair.send_tcp(address="127.0.0.1", cgroup=cgroup)
    pause(0.2)
    without = acknowledged(free, 0.7)
    free.finish()
    limiter.rule(name="paced", rate=str(rate), bucket=str(rate // SMALL), cgroup_path="/paced")
    limited = pair.send_tcp(address="127.0.0.1", cgroup=cgroup)
    pause(0.5)
    reached: list[float] = []
    # The machine may be busier in one window than it was without a rule.
    while not reached or reached[-1] < min(without, rate) / 3:
        assert len(reached) < WINDOWS, f"{reached} bytes/s in {WINDOWS} windows, {without} without a rule"
        reached.append(acknowledged(limited, 0.7))
        assert reached[-1] <= 1.05 * rate


def test_a_share_that_cannot_be_set_is_none(scene: Scene) -> None:
    """Programs set 32 bits: 34 Gbit/s. What does not fit must not become what is left of it."""
    cgroup = scene.limited(1 << 33)
    sender = scene.pair.send_tcp(cgroup=cgroup)
    with borrowed(sender.pid) as connections:
        wait_until(lambda: connections[0].info.acknowledged > 1_000_000, "a megabyte")
        assert [connection.pacing for connection in connections] == [UNPACED]
    assert counters()["packets"] > 100


# ---- a process's own SO_MAX_PACING_RATE


OWN = RATE // 5


@pytest.mark.parametrize("side", ["connects", "accepts"])
def test_the_lower_of_its_own_rate_and_its_share_holds_for_a_busy_connection(scene: Scene, side: str) -> None:
    cgroup, pair = scene.limited(RATE), scene.pair
    if side == "connects":
        sender = pair.traffic("tcp", Pair.address, PORT, LONG, 1, "cubic", OWN, cgroup=cgroup)
    else:
        sender = pair.traffic("serve", Pair.sender_address, SERVER_PORT, LONG, "cubic", OWN, cgroup=cgroup)
        pair.traffic("fetch", Pair.sender_address, SERVER_PORT, LONG, namespace=pair.receiver)
    pause(0.3)
    # Its own rate is of data alone.
    assert_held(pair, OWN, most=MOST + 0.05)
    with borrowed(sender.pid) as connections:
        assert [connection.pacing for connection in connections] == [OWN]
        limiter.rule(name="paced", state="absent")
        assert [connection.pacing for connection in connections] == [OWN]


def test_a_process_that_sets_its_own_rate_meanwhile_gets_no_more_than_its_share(scene: Scene) -> None:
    sender = scene.pair.send_tcp(cgroup=scene.limited(RATE))
    with borrowed(sender.pid) as connections:
        (connection,) = connections
        wait_until(lambda: connection.info.acknowledged > RATE // 10, "as much as a tenth of a second brings")
        connection.pacing = OWN
        pause(0.3)
        assert_held(scene.pair, OWN, 0.7, most=MOST + 0.05)
        for higher in (UNPACED, 2 * RATE):
            connection.pacing = higher
            wait_until(lambda: connection.pacing < RATE, f"its share instead of {higher}")
            pause(0.3)
            assert_held(scene.pair, RATE, 0.7)
        limiter.rule(name="paced", state="absent")
        if RELEASES:
            assert connection.pacing == 2 * RATE
        wait_until(lambda: connection.pacing == 2 * RATE, "its own rate")


# ---- changes


def test_a_changed_rate_reaches_live_connections(scene: Scene) -> None:
    sender = scene.pair.send_tcp(connections=4, cgroup=scene.limited(RATE))
    pause(0.5)
    with borrowed(sender.pid) as connections:
        for rate in (RATE // 5, RATE):
            limiter.rule(name="paced", rate=str(rate))
            elapsed = wait_until(partial(told, connections, rate), f"{rate} bytes/s are told to all")
            # 200 ms are promised; the rest is for a machine that is busy with something else.
            assert elapsed < 1.0 * PATIENCE
            pause(0.3)
            # What was sent before a lower rate was heard of may have been dropped.
            dropped = counters()["dropped_packets"]
            assert_held(scene.pair, rate)
            assert counters()["dropped_packets"] == dropped


def told(connections: list[Connection], rate: int) -> bool:
    """Whether together they may send about that much."""
    return 0.5 * rate < sum(connection.pacing for connection in connections) < 1.5 * rate


class Busy(NamedTuple):
    """Processes with busy connections that they made and accepted, and with one that is idle."""

    sender: Process
    server: Process
    idle: Process

    @classmethod
    def begin(cls, scene: Scene, cgroup: Path) -> Busy:
        pair = scene.pair
        sender = pair.send_tcp(connections=2, cgroup=cgroup)
        server = pair.traffic("serve", Pair.sender_address, SERVER_PORT, LONG, cgroup=cgroup)
        pair.traffic("fetch", Pair.sender_address, SERVER_PORT, LONG, namespace=pair.receiver)
        return cls(sender, server, pair.traffic("hold", Pair.address, PORT, LONG, cgroup=cgroup))

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self]


@contextlib.contextmanager
def connections_of(busy: Busy) -> Iterator[list[Connection]]:
    with borrowed(*busy.pids) as connections:
        assert len(connections) == 4
        yield connections


ENDS: dict[str, Callable[[], object]] = {
    "the rule goes": lambda: limiter.rule(name="paced", state="absent"),
    "the member goes": lambda: limiter.rule(name="paced", state="absent", cgroup_path="/paced"),
    "rules are purged": limiter.purge,
    "all is purged": lambda: limiter.purge("all"),
    "the program is unloaded": lambda: limiter.program(state="absent"),
}


@pytest.mark.parametrize("name", ENDS)
def test_connections_and_listeners_are_free_at_once(scene: Scene, name: str) -> None:
    busy = Busy.begin(scene, scene.limited(RATE // 5, bucket=str(RATE // 5 // SMALL)))
    by_hand = name in ("all is purged", "the program is unloaded")
    _assert_paced_and_then_free(scene.pair, busy, ENDS[name], RELEASES or by_hand)


def test_processes_that_are_moved_out_of_a_rule_are_free_at_once(scene: Scene) -> None:
    if ADOPTS:
        busy = Busy.begin(scene, scene.cgroup())
        limiter.rule(name="moved", rate=str(RATE // 5), bucket=str(RATE // 5 // SMALL), pids=busy.pids)
    else:  # what is older than its rule is not paced
        limiter.rule(name="moved", rate=str(RATE // 5), bucket=str(RATE // 5 // SMALL))
        busy = Busy.begin(scene, Path(Cgroups.find().absolute("/speed_limiter/moved")))
    _assert_paced_and_then_free(scene.pair, busy, lambda: limiter.rule(state="absent", pids=busy.pids), RELEASES)


def _assert_paced_and_then_free(pair: Pair, busy: Busy, end: Callable[[], object], at_once: bool) -> None:
    """Where it is not at once, it is with the next packets."""
    with connections_of(busy) as connections:
        wait_until_all(connections, lambda pacing: is_paced(pacing, RATE // 5), "all are paced")
        end()
        if at_once:
            assert [connection.pacing for connection in connections] == [UNPACED] * 4
        wait_until_all(connections, lambda pacing: pacing == UNPACED, "all are free")
    later = pair.traffic("fetch", Pair.sender_address, SERVER_PORT, LONG, namespace=pair.receiver)
    wait_until(lambda: _accepted(busy.server) == 2, "the later one is accepted")
    with borrowed(busy.server.pid) as accepted:
        wait_until(lambda: all(connection.info.acknowledged for connection in accepted), "the later one is served")
        assert [connection.pacing for connection in accepted] == [UNPACED] * 2
    later.kill()
    wait_until(lambda: share_of(pair, RATE // 5, 0.3) > 3, "nothing is limited any more")


def is_paced(pacing: int, rate: int) -> bool:
    """An idle connection knows what it was told at last: what half of a full bucket adds is spent in 100 ms."""
    return pacing <= rate + 10 * (rate // SMALL // 2)


def wait_until_all(connections: list[Connection], condition: Callable[[int], bool], what: str) -> None:
    """Before Linux 6.12 a connection hears of a change with its next packet, for which an idle one needs something to
    send.
    """

    def heard(connection: Connection) -> bool:
        if condition(connection.pacing):
            return True
        if not ADOPTS:
            with contextlib.suppress(BlockingIOError):  # then it has enough to send
                connection.socket.send(b"x", socket.MSG_DONTWAIT)
        return False

    wait_until(lambda: all(heard(connection) for connection in connections), what)


def _accepted(server: Process) -> int:
    with borrowed(server.pid) as connections:
        return len(connections)


def test_without_pacing_the_rule_still_limits(scene: Scene) -> None:
    rate, pair = RATE // 5, scene.pair
    bucket = rate // SMALL
    busy = Busy.begin(scene, scene.limited(rate, bucket=str(bucket)))
    with connections_of(busy) as connections:
        wait_until_all(connections, lambda pacing: is_paced(pacing, rate), "all are paced")
        limiter.program(pacing=False)
        before = pair.arrived()
        assert [connection.pacing for connection in connections] == [UNPACED] * 4
        pause(1.0)
        assert_bound(before, pair.arrived(), rate, bucket)
        assert pair.arrived().bytes - before.bytes > 0.1 * rate
        assert [connection.pacing for connection in connections] == [UNPACED] * 4
        limiter.program()
        wait_until_all(connections, lambda pacing: is_paced(pacing, rate), "all are paced again")


# ---- connections that are older than their rule


@adopting
@pytest.mark.parametrize("by", ["their cgroup", "their processes"])
def test_open_connections_are_paced_when_the_task_returns(scene: Scene, by: str) -> None:
    pair, rate, bucket = scene.pair, RATE, str(RATE // SMALL)
    busy = Busy.begin(scene, scene.cgroup())
    pause(0.3)
    with connections_of(busy) as connections:
        assert [connection.pacing for connection in connections] == [UNPACED] * 4
        retransmits = sum(connection.info.retransmits for connection in connections)
        if by == "their cgroup":
            limiter.rule(name="paced", rate=str(rate), bucket=bucket, cgroup_path="/paced")
        else:
            limiter.rule(name="paced", rate=str(rate), bucket=bucket, pids=busy.pids)
        assert all(connection.pacing <= rate for connection in connections)
        pause(0.5)

        def nothing_dropped() -> bool:
            dropped = counters()["dropped_packets"]
            assert_held(pair, rate)
            return bool(counters()["dropped_packets"] == dropped)

        # What was on its way when the rule was made may be dropped, which costs TCP a moment, and no retransmit. And
        # timers may be late in one window: what they make up for meets in a small bucket.
        assert any(nothing_dropped() for _window in range(3))
        assert sum(connection.info.retransmits for connection in connections) - retransmits <= (100 if SLOW else 20)


@adopting
def test_so_they_are_by_the_first_rule_of_a_host_which_loads_the_program(scene: Scene) -> None:
    busy = Busy.begin(scene, scene.cgroup())
    limiter.program(state="absent")
    with connections_of(busy) as connections:
        limiter.rule(name="paced", rate=str(RATE), bucket=str(RATE // SMALL), cgroup_path="/paced")
        assert all(connection.pacing <= RATE for connection in connections)
