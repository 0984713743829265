# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is measured by."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scenarios import active, cap, max_min, packet
from simulator import Bin, Result, Scenario

# Any packet may leave so much behind, and paced TCP half of one more; and the headers of a packet's segments.
PACKETS_OF_DEBT = 65536 * 3 // 2 + 2 * 45 * 72
QUEUED = 0.19  # seconds of the rate that may wait in fq
# TCP reaches a window of so many bytes in the time that the tests leave it, whatever made it smaller before.
SMALL_WINDOW = 30_000


@dataclass(frozen=True)
class Judgement:
    """Of the last span of a run, that of a steady state."""

    seed: int
    total: float  # what passed, as a part of the limit
    saturated: bool  # connections want more than the limit, and nothing but pacing keeps them from it
    worst_share: float  # the least that such a connection got, as a part of its max-min fair share
    jain: float  # of them
    disturbed: int  # packets dropped or passed with a notice
    packets: float  # that a connection can send in 100 ms, each as large as TCP makes them

    @property
    def error(self) -> float:
        return abs(self.total - 1)

    @property
    def fine(self) -> bool:
        """Two packets in 100 ms, or more."""
        return self.packets >= 2

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.total:.2%} of the limit, least share {self.worst_share:.2f}, "
            f"Jain {self.jain:.3f}, {self.disturbed} packets disturbed, {self.packets:.2g} packets in 100 ms"
        )


def jain(values: Sequence[float]) -> float:
    return sum(values) ** 2 / len(values) / max(1, sum(value * value for value in values))


def allowed_excess(scenario: Scenario) -> float:
    """Bytes above rate * time + bucket: what packets may leave behind, and what clocks that differ may hide."""
    most = max(change.rate for change in scenario.changes)
    lowered = [was.rate for was, now in zip(scenario.changes, scenario.changes[1:]) if now.rate < was.rate]
    # What waits in fq already leaves as fast as it could before.
    queued = QUEUED * max(lowered) if lowered and any(flow.waits for flow in scenario.flows) else 0
    return PACKETS_OF_DEBT + most * scenario.clock_skew + queued + 1


def judge(scenario: Scenario, result: Result) -> Judgement:
    span, rate = result.bins[-1], scenario.changes[-1].rate
    seconds = span.end - span.begin
    here = [i for i, flow in enumerate(scenario.flows) if flow.tcp and active(flow, span.begin)]
    level = max_min(rate, [cap(scenario.flows[i]) for i in here])
    held = [i for i in here if is_held(scenario, span, i, level)]
    shares = [span.flows[i] / seconds / level for i in held]
    sizes = [packet(scenario.flows[i], level, scenario.large_bursts) for i in held]
    return Judgement(
        scenario.seed,
        span.bytes / seconds / rate,
        bool(held),
        min(shares, default=1),
        jain(shares) if held else 1,
        span.drops + span.notices,
        level / 10 / max(sizes) if held else 0,
    )


def is_held(scenario: Scenario, span: Bin, i: int, level: float) -> bool:
    """Whether its share alone keeps a connection from sending more."""
    flow = scenario.flows[i]
    able = span.held[i] > 0.8 or level * flow.round_trip < SMALL_WINDOW
    return not flow.rate and cap(flow) > 1.5 * level and able


def spans_from(result: Result, first: int) -> Bin:
    """All spans from the `first` on as one."""
    spans = result.bins[first:]

    def added(values: Iterable[Sequence[int]]) -> list[int]:
        return [sum(column) for column in zip(*values)]

    return Bin(
        spans[0].begin,
        spans[-1].end,
        sum(span.bytes for span in spans),
        sum(span.drops for span in spans),
        sum(span.notices for span in spans),
        added(span.flows for span in spans),
        spans[-1].held,
        added(span.packets for span in spans),
        added(span.dropped for span in spans),
        [max(column) for column in zip(*(span.silence for span in spans))],
        added(span.rules for span in spans),
        added(span.lost for span in spans),
        [max(column) for column in zip(*(span.wait for span in spans))],
    )


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def summary(name: str, judgements: Sequence[Judgement]) -> str:
    """A line for people: pytest -s shows it."""
    if not judgements:
        return f"{name}: none"
    errors, shares = [one.error for one in judgements], [one.worst_share for one in judgements]
    return (
        f"{name}: {len(judgements)} runs, error median {statistics.median(errors):.3%}, "
        f"90 % {quantile(errors, 0.9):.2%}, 99 % {quantile(errors, 0.99):.2%}, worst {max(errors):.2%}; "
        f"least share {min(shares):.2f}, 1 % {quantile(shares, 0.01):.2f}, 10 % {quantile(shares, 0.1):.2f}; "
        f"least Jain {min(one.jain for one in judgements):.3f}; "
        f"disturbed {sum(one.disturbed > 0 for one in judgements)}"
    )
