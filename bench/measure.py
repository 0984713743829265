# SPDX-License-Identifier: GPL-3.0-or-later
"""One TCP measurement: what arrived in a window of fixed length, and what the sender's TCP says about it."""

from __future__ import annotations

import bisect
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import traffic
from .shapers import NONE, shaped

SECOND = 1_000_000_000
BIN = 100_000_000  # nanoseconds
HEADERS = 52  # of a segment: IPv4, and TCP with time stamps


@dataclass(frozen=True)
class Cell:
    """One measurement of the grid. `rate` in bits per second; times in seconds."""

    shaper: str
    rate: int
    connections: int
    congestion: str
    seconds: float
    warm_up: float
    path: str = "1500"  # or "9000", "offloads", "loopback": see `links`

    @property
    def place(self) -> str:
        """Rate and connections, by which reasons are kept."""
        return f"{megabits(self.rate)}x{self.connections}"

    @property
    def expected(self) -> float:
        """Seconds that it takes."""
        return self.warm_up + self.seconds + 0.6


@dataclass(frozen=True)
class Figures:
    """What a measurement showed. Rates in bits per second of IP, times in milliseconds."""

    rate: float
    first_second: float
    variation: float  # coefficient of variation of the 100 ms bins
    jain: float
    segments: int
    retransmits: int
    timeouts: int
    broken: int  # connections that the kernel gave up
    rtt: float  # median over connections and time, each by what was sent then
    bins: tuple[float, ...]  # from the first connection on

    def stored(self) -> dict[str, Any]:
        return asdict(self)


def megabits(rate: int) -> str:
    return f"{rate / 1e6:g}"


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def percentile(values: Iterable[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


class Curve:
    """What had arrived by when; between two counts, which are 10 ms apart, it is taken to be a straight line."""

    def __init__(self, counts: Sequence[traffic.Count]) -> None:
        self.times, self.bytes = [count.at for count in counts], [count.bytes for count in counts]

    def at(self, time_ns: int) -> float:
        after = min(max(bisect.bisect_left(self.times, time_ns), 1), len(self.times) - 1)
        begin, end = self.times[after - 1], self.times[after]
        share = (time_ns - begin) / (end - begin)
        return self.bytes[after - 1] + share * (self.bytes[after] - self.bytes[after - 1])

    def rate(self, begin: int, end: int) -> float:
        """Bits per second."""
        return 8 * (self.at(end) - self.at(begin)) * SECOND / (end - begin)

    def bins(self, begin: int, end: int) -> list[float]:
        return [self.rate(start, start + BIN) for start in range(begin, end - BIN + 1, BIN)]


def excess(counts: Sequence[traffic.Count], begin: int, rate: int) -> float:
    """Bytes by which more arrived in any stretch of time than `rate` bits per second; a full bucket is among them."""
    most, least = 0.0, float("inf")
    for count in counts if rate else ():
        if count.at >= begin:
            ahead = count.bytes - rate * (count.at - begin) / 8 / SECOND
            least = min(least, ahead)
            most = max(most, ahead - least)
    return most


def busy() -> float:
    """Seconds that all CPUs together have worked, so far."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _waiting, irq, softirq, *_others = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def per_connection(
    samples: Sequence[traffic.Sample], begin: int, end: int
) -> list[tuple[traffic.Sample, traffic.Sample]]:
    """For each connection the last sample before the window and the last one in it."""
    first: dict[int, traffic.Sample] = {}
    last: dict[int, traffic.Sample] = {}
    for sample in samples:
        if sample.at <= begin or sample.connection not in first:
            first[sample.connection] = sample
        if sample.at <= end or sample.connection not in last:
            last[sample.connection] = sample
    return [(first[connection], last[connection]) for connection in sorted(first)]


def median_rtt(samples: Sequence[traffic.Sample], begin: int, end: int) -> float:
    """Milliseconds. A sample counts by what was acknowledged since the one before: starved connections saw nothing."""
    before: dict[int, int] = {}
    weighted = []
    for sample in samples:
        if begin <= sample.at <= end:
            weighted.append((sample.rtt_us, sample.acked - before.get(sample.connection, 0)))
        before[sample.connection] = sample.acked
    left = sum(weight for _rtt, weight in weighted) / 2
    for rtt, weight in sorted(weighted):
        left -= weight
        if left <= 0:
            return rtt / 1000
    return float("nan")


def acknowledged(pair: tuple[traffic.Sample, traffic.Sample]) -> float:
    """Bits per second of IP of one connection, by what its peer acknowledged."""
    first, last = pair
    scale = (last.segment_bytes + HEADERS) / last.segment_bytes if last.segment_bytes else 1
    return 8 * (last.acked - first.acked) * scale * SECOND / max(1, last.at - first.at)


def tcp(link: traffic.Link, cell: Cell, cgroup: Path, cpus: tuple[int, int] | None = None) -> Figures:
    """Sends for the cell's time from a cgroup; the receiver and the shaper are there already."""
    counter = link.count()
    sender = link.tcp(cell.connections, cell.congestion, cgroup=cgroup, cpu=cpus[0] if cpus else None)
    time.sleep(max(0.0, sender.began / SECOND + cell.warm_up - time.monotonic()))
    begin, timeouts = time.monotonic_ns(), traffic.timeouts(sender)
    time.sleep(cell.seconds)
    end, timeouts = time.monotonic_ns(), traffic.timeouts(sender) - timeouts
    samples, counts = traffic.samples(sender), traffic.counts(counter, link.header)
    return figures(sender.began, begin, end, counts, samples, timeouts, counted=link.counted)


def figures(
    began: int,
    begin: int,
    end: int,
    counts: Sequence[traffic.Count],
    samples: Sequence[traffic.Sample],
    timeouts: int,
    counted: bool,
) -> Figures:
    """`counted`: whether the device counts whole packets of one direction; if not, what was acknowledged counts."""
    curve, pairs = Curve(counts), per_connection(samples, begin, end)
    bins = curve.bins(began, end)
    window = bins[(begin - began) // BIN :]
    mean = statistics.fmean(window) if window else 0.0
    rates = [acknowledged(pair) for pair in pairs]
    return Figures(
        rate=curve.rate(begin, end) if counted else sum(rates),
        first_second=curve.rate(began, began + SECOND),
        variation=statistics.pstdev(window) / mean if mean else 0.0,
        jain=jain(rates),
        segments=sum(last.segments - first.segments for first, last in pairs),
        retransmits=sum(last.retransmits - first.retransmits for first, last in pairs),
        timeouts=timeouts,
        broken=max(sample.broken for sample in samples),
        rtt=median_rtt(samples, begin, end),
        bins=tuple(round(rate) for rate in bins),
    )


def measure(link: traffic.Link, cell: Cell) -> Figures:
    """The whole of a cell, with its shaper and its receiver."""
    with shaped(cell.shaper, link.pair, cell.rate) as cgroup, link.receiver():
        return tcp(link, cell, cgroup)


def line(cell: Cell, figures: Figures) -> str:
    """For who watches."""
    much = f"{figures.rate / 1e6:.2f} Mbit/s"
    if cell.shaper != NONE:
        much = f"{100 * figures.rate / cell.rate:6.2f} %"
    if figures.broken:
        much += f", {figures.broken} CONNECTIONS GIVEN UP"
    return (
        f"{much}, {figures.retransmits} retransmits, {figures.timeouts} timeouts, Jain {figures.jain:.3f}, "
        f"RTT {figures.rtt:.2f} ms, variation {100 * figures.variation:.1f} %"
    )
