# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the device has fq: what cannot pace itself waits there for the bucket, and nothing else changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from conftest import Runner
from judge import quantile, spans_from
from scenarios import MBIT
from simulator import BBR, CUBIC, NEW, UDP, Bin, Change, Flow, Result, Scenario

SETTLED, SECONDS = 4, 10
NEAR = 0.0003
HORIZON = 0.05
TIMER = 0.2  # TCP sends again what is not acknowledged in this time
RECORDED = 3_000_000


def simulated(
    runner: Runner,
    flows: list[Flow],
    megabits: float,
    bucket: float = 0.1,
    waits: bool = True,
    horizon: float = 10,
    limit: int = 10_000,
    flow_limit: int = 100,
) -> Result:
    """`bucket`: seconds of the limit."""
    rate, end = int(megabits * MBIT), SETTLED + SECONDS
    scenario = Scenario(
        0,
        [replace(flow, waits=waits) for flow in flows],
        [Change(0, rate, max(3000, int(rate * bucket)))],
        end,
        [float(second) for second in range(1, end + 1)],
        requests=RECORDED,
        horizon=horizon,
        limit=limit,
        flow_limit=flow_limit,
    )
    return runner.run(scenario)


def settled(result: Result) -> Bin:
    return spans_from(result, SETTLED)


def loss(span: Bin, flow: int = 0) -> float:
    gone = span.dropped[flow] + span.lost[flow]
    return gone / max(1, gone + span.packets[flow])


def wire(answer: int) -> int:
    """IP bytes of an answer in segments, with SYN-ACK and FIN."""
    return answer + 52 * math.ceil(answer / 1448) + 112


def cells() -> list[tuple[int, int, float]]:
    """Megabits per second, connections, round trip: those whose answers all find room in the queue at a time."""
    every = [(megabits, count, far) for megabits in (2, 20) for count in (2, 8, 16, 32) for far in (NEAR, 0.01)]
    return [(megabits, count, far) for megabits, count, far in every if count * wire(10_000) < 0.35 * megabits * MBIT]


@pytest.mark.parametrize(("megabits", "count", "round_trip"), cells())
def test_a_connection_for_each_request_waits_only_for_the_limit(
    runner: Runner, megabits: int, count: int, round_trip: float
) -> None:
    requests = Flow(use=NEW, slots=count, answer=10_000, round_trip=round_trip)
    result = simulated(runner, [requests], megabits)
    took = [one.took for one in result.requests if one.at > SETTLED]
    span = settled(result)
    cycle = count * wire(10_000) / (megabits * MBIT) + 2 * round_trip
    assert quantile(took, 0.99) <= 1.2 * cycle
    assert span.lost == [0]
    assert span.wait[0] < TIMER
    if count * wire(10_000) / (2 * round_trip) > megabits * MBIT:
        assert span.bytes / SECONDS >= 0.98 * megabits * MBIT


@pytest.mark.parametrize("count", [16, 32])
def test_more_connections_than_find_room_wait_less_than_without_a_queue(runner: Runner, count: int) -> None:
    requests = Flow(use=NEW, slots=count, answer=10_000, round_trip=NEAR)
    late = [
        quantile([one.took for one in simulated(runner, [requests], 2, 1, waits).requests if one.at > SETTLED], 0.99)
        for waits in (True, False)
    ]
    assert late[0] < late[1]


@pytest.mark.parametrize("megabits", [8, 20, 100])
def test_datagrams_in_clumps_at_half_the_limit_are_not_lost(runner: Runner, megabits: int) -> None:
    clumps = Flow(UDP, rate=megabits * MBIT // 2, chunk=1400, clump=25)
    bucket = 16_000 / (megabits * MBIT)
    span = settled(simulated(runner, [clumps], megabits, bucket))
    assert loss(span) == 0
    assert span.wait[0] <= HORIZON
    assert loss(settled(simulated(runner, [clumps], megabits, bucket, waits=False))) > 0.3


@pytest.mark.parametrize("megabits", [2, 20, 100])
@pytest.mark.parametrize(("times", "size"), [(1.5, 100), (1.5, 300), (1.2, 1400), (2, 1400), (10, 1400)])
def test_a_steady_flood_loses_no_more_than_without_a_queue(
    runner: Runner, times: float, size: int, megabits: int
) -> None:
    if megabits * MBIT * times / size > 100_000:
        pytest.skip("more datagrams than are worth the time")
    flood = Flow(UDP, rate=int(megabits * MBIT * times), chunk=size)
    span = settled(simulated(runner, [flood], megabits))
    assert span.lost == [0]
    assert loss(span) <= loss(settled(simulated(runner, [flood], megabits, waits=False))) + 0.005
    assert 0.99 <= span.bytes / SECONDS / (megabits * MBIT) <= 1.005


@pytest.mark.parametrize("megabits", [2, 20, 100])
def test_small_datagrams_beside_a_flood_of_large_ones_are_lost_no_more_than_without(
    runner: Runner, megabits: int
) -> None:
    flows = [Flow(UDP, rate=2 * megabits * MBIT, chunk=1400), Flow(UDP, rate=20_000, chunk=100)]
    losses = [loss(settled(simulated(runner, flows, megabits, waits=waits)), 1) for waits in (True, False)]
    assert losses[0] <= losses[1] + 0.05


@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
@pytest.mark.parametrize("times", [0, 0.4, 1, 2, 10])
@pytest.mark.parametrize("megabits", [2, 20, 100])
def test_tcp_has_what_it_has_without_a_queue_and_does_not_wait_behind_datagrams(
    runner: Runner, megabits: int, times: float, kind: int
) -> None:
    flows = [Flow(kind, round_trip=NEAR) for _i in range(4)]
    if times:
        flows.append(Flow(UDP, rate=int(megabits * MBIT * times), chunk=1400))
    span, without = (settled(simulated(runner, flows, megabits, 1, waits)) for waits in (True, False))
    assert sum(span.flows[:4]) >= 0.98 * sum(without.flows[:4])
    assert max(span.wait[:4]) <= HORIZON
    assert span.bytes / SECONDS >= 0.98 * megabits * MBIT


@pytest.mark.parametrize(("limit", "flow_limit"), [(40, 100), (200, 100)])
def test_no_packet_is_added_to_a_queue_that_is_half_full(runner: Runner, limit: int, flow_limit: int) -> None:
    flows = [Flow(UDP, rate=MBIT // 4, chunk=300, clump=20) for _i in range(8)]
    assert sum(settled(simulated(runner, flows, 2, limit=limit, flow_limit=flow_limit)).lost) == 0


@pytest.mark.parametrize("size", [100, 1400])
def test_a_socket_that_sends_small_packets_behind_large_ones_has_no_more_in_the_queue_than_it_may(
    runner: Runner, size: int
) -> None:
    flows = [Flow(UDP, rate=10 * MBIT, chunk=1400), Flow(UDP, rate=10 * MBIT, chunk=size, clump=100)]
    assert settled(simulated(runner, flows, 10)).lost == [0, 0]


@pytest.mark.parametrize("horizon", [0.001, 0.01])
def test_fq_with_a_short_horizon_drops_what_waits_and_the_limit_holds(runner: Runner, horizon: float) -> None:
    flood = Flow(UDP, rate=20 * MBIT, chunk=1400)
    span = settled(simulated(runner, [flood], 10, horizon=horizon))
    assert span.bytes / SECONDS <= 1.005 * 10 * MBIT
    assert span.lost[0] > 0


@pytest.mark.parametrize("size", [2000, 8000, 65_000])
def test_fragments_of_large_datagrams_find_room_in_the_queue(runner: Runner, size: int) -> None:
    flood = Flow(UDP, rate=200 * MBIT, chunk=size)
    span = settled(simulated(runner, [flood], 100))
    assert span.lost == [0]
    assert span.bytes / SECONDS >= 0.99 * 100 * MBIT


@pytest.mark.parametrize("pages", [1, 50])
def test_what_waits_when_the_limit_falls_stops_nobody_for_long(runner: Runner, pages: int) -> None:
    """As far as it waits, it leaves as it was to leave; what comes then waits for no more than that."""
    flows = [Flow(use=NEW, slots=32, answer=10_000 * pages, round_trip=NEAR, waits=True)]
    changes = [Change(0, 50 * MBIT, 5 * MBIT), Change(SETTLED, MBIT, 100_000)]
    result = runner.run(Scenario(0, flows, changes, SETTLED + 3, [SETTLED, SETTLED + 0.4, SETTLED + 3]))
    before, at_once, after = result.bins
    assert before.bytes and at_once.bytes
    assert after.bytes >= 0.9 * 2.6 * MBIT
