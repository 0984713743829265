# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP beside datagrams, greedy connections beside some that want little, and sockets that cannot be paced."""

from __future__ import annotations

import random

from conftest import Runner
from judge import jain
from scenarios import MBIT, between, datagrams, mixed_scenario
from simulator import ACKS, BBR, CUBIC, RENO, UDP, Change, Flow, Scenario

# By default a bucket is a second of the limit. Where more is offered than the limit, it passes first.
BUCKET = 1.0


def part_of_tcp(runner: Runner, seed: int) -> float:
    """What TCP got, of what datagrams leave it: half of the limit, or more where they want less."""
    scenario = mixed_scenario(seed)
    span, rate = runner.run(scenario).bins[-1], scenario.changes[0].rate
    foreign = next(flow for flow in scenario.flows if flow.kind == UDP)
    tcp = sum(sent for sent, flow in zip(span.flows, scenario.flows) if flow.tcp) / (span.end - span.begin)
    return tcp / (rate - min(rate / 2, foreign.wire(foreign.rate)))


def test_datagrams_have_up_to_half_and_tcp_the_rest(runner: Runner) -> None:
    parts = runner.each(200, lambda seed: part_of_tcp(runner, seed))
    # In small buckets large packets of several connections meet too few tokens, and each waits 200 ms for the next try.
    runner.within("of TCP's part", parts, 0.5)
    assert not runner.sampled or sorted(parts)[len(parts) // 10] >= 0.95


def flood(runner: Runner, seed: int) -> float:
    rng = random.Random(seed)
    rate = int(between(rng, 10 * MBIT, 1000 * MBIT))
    flows = [Flow(rng.choice([CUBIC, RENO]), round_trip=0.0003) for _i in range(4)]
    times = rng.choice([1, 2, 10])
    flows += [datagrams(rng, rate, times / 2) for _cpu in range(2)]
    begin = 2 + 2 * BUCKET
    bins = [begin, begin + 1]
    scenario = Scenario(seed, flows, [Change(0, rate, int(BUCKET * rate))], bins[-1], bins, clock_skew=20e-6)
    return runner.run(scenario).bins[-1].bytes / rate


def test_a_flood_from_two_cpus_passes_no_more_than_the_limit(runner: Runner) -> None:
    runner.within("of the limit", runner.each(40, lambda seed: flood(runner, seed)), 0.98, 1.02)


def modest_and_greedy(runner: Runner, seed: int) -> tuple[float, float, float]:
    """Ten that want 1 Mbit/s in all, two that want all, under 100 Mbit/s."""
    rng = random.Random(seed)
    kinds, rate, seconds = [CUBIC, RENO, BBR], 100 * MBIT, 3

    def flow(wants: int) -> Flow:
        chunk = int(between(rng, 100, 4_000))
        return Flow(rng.choice(kinds), round_trip=between(rng, 1e-4, 0.02), rate=wants, chunk=chunk)

    modest = [flow(MBIT // 10) for _i in range(10)]
    flows = [*modest, flow(0), flow(0), Flow(ACKS, rate=50_000, chunk=52)]
    span = runner.run(Scenario(seed, flows, [Change(0, rate, rate)], 2 + seconds, [2, 2 + seconds])).bins[-1]
    least = min(sent / one.wire(one.rate * seconds) for sent, one in zip(span.flows, modest))
    return span.bytes / seconds / rate, jain(span.flows[10:12]), least


def test_ten_connections_of_little_leave_the_rest_to_two_greedy_ones(runner: Runner) -> None:
    found = runner.each(200, lambda seed: modest_and_greedy(runner, seed))
    runner.within("of the limit", [total for total, _fairness, _least in found], 0.99, 1.01)
    runner.within("Jain of the greedy", [fairness for _total, fairness, _least in found], 0.99)
    runner.within("of what the others want", [least for _total, _fairness, least in found], 0.8, 1.2)


def not_paced(runner: Runner, seed: int) -> float:
    rng = random.Random(seed)
    rate = int(between(rng, MBIT, 1000 * MBIT))
    flows = [
        Flow(rng.choice([CUBIC, RENO]), round_trip=between(rng, 1e-4, 0.02), unpaced=bool(i % 2))
        for i in range(rng.randint(2, 8))
    ]
    # Bytes as a part of what the limit allows while the bucket empties and is watched.
    return (
        runner.run(Scenario(seed, flows, [Change(0, rate, int(BUCKET * rate))], 6)).bins[-1].bytes / (6 + BUCKET) / rate
    )


def test_connections_that_are_not_paced_are_limited_all_the_same(runner: Runner) -> None:
    runner.within("of rate and bucket", runner.each(60, lambda seed: not_paced(runner, seed)), 0.5, 1.02)
