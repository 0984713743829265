# SPDX-License-Identifier: GPL-3.0-or-later
"""Random mixes of all that the model knows, judged second by second by what any of them can be promised."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from judge import spans_from
from scenarios import MBIT, between, cap, epoch, packet
from simulator import BBR, CUBIC, KEPT, NEW, OPEN, RENO, STREAM, UDP, Bin, Change, Flow, Result, Scenario

SECONDS = 4  # that are judged


def greedy(rng: random.Random, round_trip: float) -> Flow:
    return Flow(rng.choice([RENO, CUBIC, CUBIC, BBR]), round_trip=round_trip, window=1 << 28, start=rng.uniform(0, 0.1))


def modest(rng: random.Random, wants: float, round_trip: float) -> Flow:
    """Writes at least ten times a second."""
    rate = max(500, int(wants))
    return Flow(
        rng.choice([RENO, CUBIC]), rate=rate, chunk=int(between(rng, 50, max(60, rate / 10))), round_trip=round_trip
    )


def arrivals(rng: random.Random, wants: float, round_trip: float) -> Flow:
    """New connections, each with one answer that fits into a first window, and that want so much in all."""
    answer = rng.choice([0, 100, 2_000, int(between(rng, 100, 10_000))])
    every = max(1 / 2000, (answer + 300) / wants)
    slots = 20 + int(2 / every)
    return Flow(use=OPEN, answer=answer, every=every, slots=slots, passive=rng.random() < 0.7, round_trip=round_trip)


def requests(rng: random.Random, rate: float, round_trip: float, use: int) -> Flow:
    answer = int(between(rng, 60, max(100, min(50_000, rate / 20))))
    return Flow(use=use, slots=rng.randint(1, 12), answer=answer, round_trip=round_trip)


def datagrams(rng: random.Random, wants: float) -> Flow:
    gso, size = rng.random() < 0.2, int(between(rng, 100, min(65_000, max(200, wants / 20))))
    return Flow(UDP, rate=max(1, int(wants)), chunk=size, gso=gso, mss=1400 if gso else 1448)


def components(rng: random.Random, rate: float, anew: bool) -> Iterator[Flow]:
    """Each kind of traffic is there or not; the short connections want less than half of the limit."""
    far = rng.choice([0.0003, 0.0003, 0.002, 0.02, 0.05])

    def round_trip() -> float:
        return between(rng, 0.0001, far)

    for _i in range(rng.choice([0, 1, 1, 1, 2, 4, 8])):
        yield greedy(rng, round_trip())
    if rng.random() < 0.4:
        for _i in range(rng.randint(1, 9)):
            yield modest(rng, rate * between(rng, 0.002, 0.03), round_trip())
    if rng.random() < 0.5:
        yield arrivals(rng, rate * between(rng, 0.01, 0.4), round_trip())
    if rng.random() < 0.3:
        yield requests(rng, rate, round_trip(), KEPT)
    if anew:
        yield requests(rng, rate, round_trip(), NEW)
    if rng.random() < 0.3:
        yield datagrams(rng, rate * rng.choice([0.05, 0.2, 0.5, 2, 10]))


def busy(flow: Flow, rate: float) -> bool:
    """A flow whose connections want more than the whole limit, as far as their windows go."""
    if flow.kind == UDP or flow.use in (OPEN, NEW) or flow.rate:
        return False
    if flow.use == KEPT:
        return flow.slots * flow.answer / (flow.round_trip + 100e-6) > 2 * rate
    return cap(flow) > 2 * rate


def settled(scenario: Scenario, rate: float) -> float:
    """Seconds: as `settling` of the other scenarios, with the packets that the greedy send."""
    wanting = [flow for flow in scenario.flows if busy(flow, rate)]
    draft = replace(scenario, flows=[flow for flow in wanting for _i in range(flow.slots)] or [Flow()])
    far = max((flow.round_trip for flow in scenario.flows if flow.kind != UDP), default=0)
    return 1 + 22 * far + 16 * epoch(draft) + 10 * max(0.2, 4 * (epoch(draft) + far))


def world(seed: int, anew: bool = False, waits: bool = False) -> Scenario:
    """`anew`: with connections that are new for each request among them; `waits`: all devices have fq."""
    rng = random.Random(seed)
    rate = between(rng, MBIT, 200 * MBIT)
    flows = list(components(rng, rate, anew))
    while not flows:
        flows = list(components(rng, rate, anew))
    # One above the other; each flow enters at one of them, some at the innermost.
    rates = [int(rate * rng.choice([1, 1.2, between(rng, 1, 20)])) for _i in range(rng.choice([1, 1, 1, 2, 3, 4]))]
    rates[rng.randrange(len(rates))] = int(rate)
    entries = [0, *(rng.choice([0, 0, rng.randrange(len(rates))]) for _i in flows[1:])]
    bucket = rng.choice([0.02, 0.1, 1])
    draft = Scenario(
        seed,
        [replace(flow, rules=tuple(range(entry, len(rates))), waits=waits) for flow, entry in zip(flows, entries)],
        [Change(0, one, max(3000, int(one * bucket)), rule) for rule, one in enumerate(rates)],
        0,
        clock_skew=rng.choice([0, 5e-6]),
        large_bursts=rng.random() < 0.7,
        probe_every=1000,
    )
    begin = settled(draft, rate)
    bins = [begin, *(begin + second for second in range(1, SECONDS + 1))]
    return replace(draft, duration=bins[-1], bins=bins)


@dataclass(frozen=True)
class Complaint:
    kind: str
    text: str


def used(scenario: Scenario, span: Bin, rule: int) -> float:
    return span.rules[rule] / (span.end - span.begin) / scenario.changes[rule].rate


def complaints(scenario: Scenario, result: Result) -> Iterator[Complaint]:
    named = {f"second {number}": span for number, span in enumerate(result.bins[1:])}
    for name, span in {**named, "all seconds": spans_from(result, 1)}.items():
        for text in starved(scenario, span):
            yield Complaint("starved", f"{name}: {text}")
        for text in wronged(scenario, span):
            yield Complaint("wronged", f"{name}: {text}")
        for text in flooded(scenario, span):
            yield Complaint("flooded", f"{name}: {text}")


def sent(flow: Flow, span: Bin, i: int) -> float:
    """Bytes per second of one of its connections."""
    return span.flows[i] / flow.slots / (span.end - span.begin)


def starved(scenario: Scenario, span: Bin) -> Iterator[str]:
    connections = sum(flow.slots for flow in scenario.flows if flow.tcp and flow.use != OPEN)
    for i, flow in enumerate(scenario.flows):
        level = min(scenario.changes[rule].rate for rule in flow.rules) / (connections + 1)
        patience = 1 + flow.round_trip + 2 * packet(flow, level, scenario.large_bursts) / level
        if flow.tcp and span.silence[i] > patience:
            yield f"flow {i} waited {span.silence[i]:.2f} s"


def wronged(scenario: Scenario, span: Bin) -> Iterator[str]:
    """
    Max-min fairness, as Bertsekas and Gallager define it: whoever does not get what it wants has a bottleneck, a rule
    that is used up and where nobody gets more.
    """
    rate = min(change.rate for change in scenario.changes)
    for i, flow in enumerate(scenario.flows):
        if flow.kind == UDP or flow.use in (OPEN, NEW):
            continue
        mine = sent(flow, span, i)
        if flow.rate and mine >= 0.95 * flow.wire(flow.rate) - 2 * flow.chunk:
            continue
        if not flow.rate and not busy(flow, rate):
            continue
        found = []
        for rule in flow.rules:
            part, equal = used(scenario, span, rule), mine / max(1, most_sent(scenario, span, rule))
            slack = lumps(scenario, span, rule) / scenario.changes[rule].rate
            lump = packet(flow, mine + 1, scenario.large_bursts) / (span.end - span.begin)
            if part + slack >= 0.97 and mine + 2 * lump >= 0.9 * most_sent(scenario, span, rule):
                break
            found.append(f"rule {rule} used {part:.3f} + {slack:.3f}, of the most there {equal:.3f}")
        else:
            yield f"flow {i} ({mine:.0f} B/s): {'; '.join(found)}"


def lumps(scenario: Scenario, span: Bin, rule: int) -> float:
    """Bytes per second by which a span may miss its mean: each connection that wants more has a packet on the edge."""
    return sum(
        flow.slots * packet(flow, sent(flow, span, i) + 1, scenario.large_bursts)
        for i, flow in enumerate(scenario.flows)
        if rule in flow.rules and busy(flow, scenario.changes[rule].rate)
    ) / (span.end - span.begin)


def most_sent(scenario: Scenario, span: Bin, rule: int) -> float:
    """
    The most that any connection there sends that stays. Beside connections that are new for each request no share is
    promised: TCP does not pace their first segments.
    """
    here = [(i, flow) for i, flow in enumerate(scenario.flows) if rule in flow.rules and flow.kind != UDP]
    if any(flow.use == NEW for _i, flow in here):
        return 0
    return max(sent(flow, span, i) for i, flow in here if flow.use in (STREAM, KEPT))


def flooded(scenario: Scenario, span: Bin) -> Iterator[str]:
    """Where TCP wants all, it has half, whatever datagrams are offered."""
    for rule, change in enumerate(scenario.changes):
        here = [i for i, flow in enumerate(scenario.flows) if rule in flow.rules]
        greedy_here = [i for i in here if busy(scenario.flows[i], change.rate) and scenario.flows[i].tcp]
        if not greedy_here or used(scenario, span, rule) < 0.97:
            continue
        tcp = sum(span.flows[i] for i in here if scenario.flows[i].tcp) / (span.end - span.begin)
        if tcp < 0.45 * change.rate:
            yield f"TCP has {tcp / change.rate:.3f} of rule {rule}"
