# SPDX-License-Identifier: GPL-3.0-or-later
"""Random scenarios from seeds, and what is to be expected of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from simulator import ACKS, BBR, CUBIC, RENO, UDP, Change, Flow, Scenario

MBIT = 125_000
GSO = 65_536
SLOW, SLOW_PACKET = 2_500_000, 0.05
LOWEST, HIGHEST = 8_000, 2_500_000_000  # 64 kbit/s, 20 Gbit/s


def between(rng: random.Random, least: float, most: float) -> float:
    """Evenly over the orders of magnitude."""
    return math.exp(rng.uniform(math.log(least), math.log(most)))


def max_min(rate: float, caps: list[float]) -> float:
    """The level up to which everybody is filled; infinite when all get what they want."""
    left, count = rate, len(caps)
    for cap in sorted(caps):
        if cap * count > left:
            return left / count
        left -= cap
        count -= 1
    return math.inf


def cap(flow: Flow) -> float:
    """What a flow would send at most, in IP bytes per second."""
    if flow.rate:
        return flow.wire(flow.rate)
    most = 0.9 * flow.window / (flow.round_trip + 50e-6)
    return flow.wire(min(most, flow.own_pacing or most))


def active(flow: Flow, at: float) -> bool:
    return flow.start <= at and not 0 < flow.stop <= at


def packet(flow: Flow, level: float, large_bursts: bool) -> float:
    """IP bytes that TCP sends at once; slow connections are kept from what would last long (bpf/pacing.h)."""
    size = level / 1000
    if large_bursts and flow.round_trip < 0.016:
        size += GSO / 2 ** (flow.round_trip * 1e6 // 512)
    if level < SLOW:
        size = min(size, level * (SLOW_PACKET + flow.round_trip))
    return max(2 * (flow.mss + flow.headers), min(size, GSO))


def epoch(scenario: Scenario) -> float:
    """Seconds in which each connection sends a packet, by the scenario's end: what the controller can see."""
    rate = scenario.changes[-1].rate
    flows = [flow for flow in scenario.flows if flow.tcp and not flow.stop]
    level = min(rate, max_min(rate, [cap(flow) for flow in flows])) if flows else rate
    most = max((packet(flow, level, scenario.large_bursts) for flow in flows), default=3000)
    return min(4.0, max(0.01, 1.5 * (len(flows) + 1) * most / rate))


def slowest(scenario: Scenario) -> float:
    return max((flow.round_trip for flow in scenario.flows if flow.tcp), default=0)


def spending(scenario: Scenario) -> float:
    """Seconds after which nothing is left of a bucket above its reserve: a tenth of that leaves a third of it."""
    return 10 * max(0.2, 4 * (epoch(scenario) + slowest(scenario)))


def settling(scenario: Scenario) -> float:
    """Seconds after which the shares are right again: the bound that the documentation states."""
    return 0.5 + 22 * slowest(scenario) + 16 * epoch(scenario) + spending(scenario)


def observed(scenario: Scenario) -> float:
    """Seconds over which single packets no longer matter."""
    return max(0.5, 10 * slowest(scenario), 40 * epoch(scenario))


def with_bins(scenario: Scenario, settled_from: float) -> Scenario:
    """The scenario, made as long as it takes to settle and to be observed; without pauses that bbr makes of its own."""
    begin = settled_from + settling(scenario)
    end = begin + observed(scenario)
    return Scenario(**{**vars(scenario), "duration": end, "bins": [begin, end], "probe_every": 1000})


def random_flow(rng: random.Random, rate: int, count: int, round_trip: float) -> Flow:
    fair = rate / count
    kind = rng.choice([RENO, CUBIC, CUBIC, BBR])
    own = rng.random()
    limited = rng.random() < 0.3
    app = int(max(200, fair * between(rng, 0.02, 3)))
    return Flow(
        kind=kind,
        round_trip=round_trip,
        rate=app if limited else 0,
        chunk=int(between(rng, 100, max(200, min(1 << 18, app)))),
        window=rng.choice([1 << 18, 1 << 20, 1 << 24, 1 << 28]),
        own_pacing=int(fair * between(rng, 0.1, 2)) + 500 if own < 0.05 else 0,
        headers=rng.choice([52, 52, 52, 72, 40]),
        mss=rng.choice([1448, 1448, 1428, 8948]) if fair > MBIT else 1448,
    )


def round_trips(rng: random.Random) -> Callable[[], float]:
    """Near, far, or a mix."""
    least, most = rng.choice([(50e-6, 0.001), (0.001, 0.05), (0.05, 0.3), (50e-6, 0.3)])
    same = between(rng, least, most)
    mixed = rng.random() < 0.6
    return lambda: between(rng, least, most) if mixed else same


def random_rate_and_count(rng: random.Random) -> tuple[int, int]:
    """From 1,000 connections down to what leaves each 1 kB/s."""
    rate = int(between(rng, LOWEST, HIGHEST))
    most = min(1000, rate // 1000)
    return rate, max(1, int(between(rng, 1, most + 1)))


def random_scenario(seed: int) -> Scenario:
    """TCP alone: greedy and app-limited connections, that come and go; changes of the rate."""
    rng = random.Random(seed)
    rate, count = random_rate_and_count(rng)
    round_trip = round_trips(rng)
    flows = [random_flow(rng, rate, count, round_trip()) for _i in range(count)]
    draft = Scenario(seed, flows, [Change(0, rate, rate)], 0, large_bursts=rng.random() < 0.7)
    busy = settling(draft) / 2
    changes = [Change(0, rate, max(2048, int(rate * between(rng, 0.01, 1))))]
    if rng.random() < 0.5:
        changes.append(Change(rng.uniform(0, busy), min(HIGHEST, max(LOWEST, int(rate * between(rng, 0.2, 5)))), rate))
    for i, flow in enumerate(flows):
        start = rng.choice([0.0, rng.uniform(0, busy)])
        stop = rng.uniform(start, busy) if i and rng.random() < 0.3 else 0
        flows[i] = Flow(**{**vars(flow), "start": start, "stop": stop})
    scenario = Scenario(
        seed,
        flows,
        changes,
        0,
        clock_skew=rng.choice([0, 3e-6, 20e-6]),
        timer_delay=rng.choice([10e-6, 100e-6]),
        large_bursts=draft.large_bursts,
    )
    return with_bins(
        scenario,
        max([change.at for change in changes] + [flow.start for flow in flows] + [flow.stop for flow in flows]),
    )


def greedy_scenario(seed: int) -> Scenario:
    """Greedy connections at one distance."""
    rng = random.Random(seed)
    rate, count = random_rate_and_count(rng)
    round_trip = round_trips(rng)()
    kinds = rng.choice([[RENO], [CUBIC], [BBR], [RENO, CUBIC, BBR]])
    flows = [
        Flow(kind=rng.choice(kinds), round_trip=round_trip, window=1 << 30, start=rng.uniform(0, 0.1))
        for _i in range(count)
    ]
    scenario = Scenario(seed, flows, [Change(0, rate, rate)], 0, large_bursts=rng.random() < 0.7)
    return with_bins(scenario, 0.1)


def datagrams(rng: random.Random, rate: int, times: float) -> Flow:
    return Flow(kind=UDP, rate=int(rate * times), chunk=rng.choice([200, 1200, 1472]))


def mixed_scenario(seed: int) -> Scenario:
    """TCP beside datagrams."""
    rng = random.Random(seed)
    rate, count = random_rate_and_count(rng)
    rate, count = max(rate, 1 * MBIT), min(count, 64)
    rate = min(rate, 1000 * MBIT)
    round_trip = round_trips(rng)
    flows = [
        Flow(kind=rng.choice([CUBIC, RENO, BBR]), round_trip=round_trip(), window=1 << 28, start=rng.uniform(0, 0.1))
        for _i in range(count)
    ]
    flows.append(datagrams(rng, rate, rng.choice([0.1, 0.3, 0.5, 1, 2, 10])))
    if rng.random() < 0.3:
        flows.append(Flow(kind=ACKS, rate=int(rate * 0.01) + 1, chunk=52, round_trip=round_trip()))
    scenario = Scenario(
        seed,
        flows,
        [Change(0, rate, max(2048, int(rate * rng.choice([0.02, 0.1, 1]))))],
        0,
        clock_skew=rng.choice([0, 5e-6]),
        large_bursts=rng.random() < 0.7,
    )
    return with_bins(scenario, 0.1)
