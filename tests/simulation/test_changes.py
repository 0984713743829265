# SPDX-License-Identifier: GPL-3.0-or-later
"""How soon shares are right: after a connection came or went, a change of the limit, and when the state was spoiled."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import Runner
from judge import PACKETS_OF_DEBT, jain
from scenarios import MBIT, between, epoch, greedy_scenario, spending
from simulator import BBR, CUBIC, RENO, Change, Flow, Scenario

EVENT = 3.0  # seconds, in which the bucket is spent
QUICKLY = 0.2
WATCHED = 0.3


def near(rng: random.Random, start: float = 0, stop: float = 0) -> Flow:
    """A connection in the same data centre or host."""
    kind, round_trip = rng.choice([CUBIC, RENO, BBR]), between(rng, 50e-6, 0.001)
    return Flow(kind, start=start, stop=stop, round_trip=round_trip, window=1 << 28)


def nearby(rng: random.Random) -> tuple[int, list[Flow]]:
    """A rate of 100 Mbit/s and more, and connections that each may send two packets in 100 ms, of whatever size."""
    rate = int(between(rng, 100 * MBIT, 10_000 * MBIT))
    count = int(between(rng, 1, min(64, rate / (10 * MBIT))))
    return rate, [near(rng, start=rng.uniform(0, 0.01)) for _i in range(count)]


def after_event(runner: Runner, seed: int, flows: list[Flow], changes: list[Change]) -> list[float]:
    """Of each flow and of all (last), what it sent in the time that is watched, as a part of the limit."""
    bins = [EVENT, EVENT + QUICKLY, EVENT + QUICKLY + WATCHED]
    scenario = Scenario(seed, flows, changes, bins[-1], bins, large_bursts=bool(seed % 2))
    span = runner.run(scenario).bins[-1]
    return [sent / WATCHED / changes[-1].rate for sent in [*span.flows, span.bytes]]


def arrival(runner: Runner, seed: int) -> tuple[float, float]:
    rng = random.Random(seed)
    rate, flows = nearby(rng)
    flows.append(near(rng, start=EVENT))
    parts = after_event(runner, seed, flows, [Change(0, rate, rate)])
    return parts[-2] * len(flows), parts[-1]


def test_a_new_connection_has_its_share_within_200_ms(runner: Runner) -> None:
    found = runner.each(200, lambda seed: arrival(runner, seed))
    runner.within("of its share", [share for share, _total in found], 0.6, 1.6)
    runner.within("of the limit", [total for _share, total in found], 0.9, 1.1)


def departure(runner: Runner, seed: int) -> float:
    rng = random.Random(seed)
    rate, flows = nearby(rng)
    flows += [near(rng, stop=EVENT) for _i in range(rng.randint(1, len(flows)))]
    return after_event(runner, seed, flows, [Change(0, rate, rate)])[-1]


def test_what_connections_leave_is_taken_within_200_ms(runner: Runner) -> None:
    runner.within("of the limit", runner.each(200, lambda seed: departure(runner, seed)), 0.85, 1.25)


def new_limit(runner: Runner, seed: int) -> float:
    rng = random.Random(seed)
    rate, flows = nearby(rng)
    other = max(100 * MBIT, int(rate * between(rng, 0.2, 5)))
    return after_event(runner, seed, flows, [Change(0, rate, rate), Change(EVENT, other, other)])[-1]


def test_a_new_limit_holds_within_200_ms(runner: Runner) -> None:
    runner.within("of the limit", runner.each(200, lambda seed: new_limit(runner, seed)), 0.85, 1.1)


def first_seconds(runner: Runner, seed: int, kinds: list[int]) -> tuple[float, float]:
    """What passes in the first second, and in the two that come when the bucket is spent, as parts of the limit."""
    rng = random.Random(seed)
    rate = int(between(rng, MBIT, 10_000 * MBIT))
    count = int(between(rng, 1, min(64, rate / (MBIT // 8))))
    flows = [
        Flow(rng.choice(kinds), round_trip=between(rng, 50e-6, 0.02), start=rng.uniform(0, 0.1)) for _i in range(count)
    ]
    scenario = Scenario(seed, flows, [Change(0, rate, rate)], 1)
    spent = 1 + spending(scenario)
    scenario = replace(scenario, duration=spent + 2, bins=[1, spent, spent + 2])
    first, _between, later = runner.run(scenario).bins
    return (first.bytes - PACKETS_OF_DEBT) / rate, later.bytes / 2 / rate


def test_the_first_second_may_have_the_bucket_and_those_after_it_have_the_limit(runner: Runner) -> None:
    parts = runner.each(300, lambda seed: first_seconds(runner, seed, [CUBIC, RENO, BBR]))
    runner.within("of the limit, first", [first for first, _later in parts], 0, 2)
    runner.within("of the limit, later", [later for _first, later in parts], 0.97, 1.03)


SPOILED: dict[str, int] = {
    "random bytes": 0,
    "all bits": 1,
    "zeroes": 2,
    "a clock in five hours": 3,
    "clocks of five hours ago": 4,
    "an epoch that begins in five hours": 5,
    "numbers that could be": 6,
}


def spoiled(kind: int) -> Callable[[Runner, int], tuple[float, float]]:
    def examine(runner: Runner, seed: int) -> tuple[float, float]:
        settled = greedy_scenario(seed)
        at = settled.duration
        # What could be is believed, and averaged out over some epochs.
        believed = 10 + 40 * epoch(settled) if kind == SPOILED["numbers that could be"] else 0
        recovered = at + 1 + believed + 20 * settled.flows[0].round_trip + 20 * epoch(settled)
        end = recovered + max(1, 40 * epoch(settled))
        scenario = replace(settled, duration=end, bins=[at, recovered, end], garbage_at=at, garbage_kind=kind)
        span = runner.run(scenario).bins[-1]
        return span.bytes / (end - recovered) / scenario.changes[0].rate, jain(span.flows)

    return examine


@pytest.mark.parametrize("kind", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_state_recovers_within_a_second_and_some_packets(runner: Runner, kind: int) -> None:
    examine = spoiled(kind)
    found = runner.each(40, lambda seed: examine(runner, seed))
    runner.within("of the limit", [total for total, _fairness in found], 0.9, 1.05)
    runner.within("Jain", [fairness for _total, fairness in found], 0.97)
