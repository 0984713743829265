# SPDX-License-Identifier: GPL-3.0-or-later
"""Rounds: several cells at the same time, each on a way, under a rule or behind a qdisc, of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.speed_limiter.ebpf.bench import measure, shapers, traffic
from ansible_collections.speed_limiter.ebpf.bench.measure import SECOND

from ...support import dataplane, limiter
from ...support.children import until
from . import path
from .aims import STEADY
from .cells import AFTER_CHANGE, CHANGED, WARM_UP, Cell

COUNT_PAUSE = 50  # milliseconds between two counts of what arrived
WITHIN = 0.1  # of the rate: what counts as steady
STEADY_WINDOW, CHANGE_WINDOW = SECOND, SECOND // 2  # nanoseconds in which it must be so
Stored = dict[str, Any]


class Lane(NamedTuple):
    name: str
    path: path.Path
    link: traffic.Link


@contextmanager
def opened(count: int, programs: Path) -> Iterator[list[Lane]]:
    """Lanes, and at the end nothing of them; they are used again by every round."""
    with ExitStack() as stack:
        made = [stack.enter_context(path.Path()) for _lane in range(count)]
        yield [Lane(f"lane{number}", one, traffic.Link(one, programs)) for number, one in enumerate(made)]


@contextmanager
def _limited(lanes: list[Lane], cells: list[Cell]) -> Iterator[list[Path]]:
    """The cgroup in which each lane's sender is limited."""
    with ExitStack() as stack:
        rules = [
            {"name": lane.name, "rate": str(cell.rate // 8)}
            for lane, cell in zip(lanes, cells)
            if cell.shaper == shapers.OURS
        ]
        if rules:
            stack.callback(limiter.purge)
            stack.callback(lambda: until(lambda: not any(map(_occupied, rules))))
            limiter.rules(*rules)
        cgroups = []
        for lane, cell in zip(lanes, cells):
            if cell.shaper == shapers.OURS:
                cgroups.append(_cgroup(lane.name))
                continue
            cgroups.append(stack.enter_context(shapers.home(lane.name)))
            if cell.rate:
                stack.enter_context(shapers.qdisc(cell.shaper, lane.path, cell.rate))
        yield cgroups


def _cgroup(rule: str) -> Path:
    return dataplane.cgroup2() / "speed_limiter" / rule


def _occupied(rule: dict[str, str]) -> bool:
    return bool((_cgroup(rule["name"]) / "cgroup.procs").read_text(encoding="ascii"))


class Sending(NamedTuple):
    cell: Cell
    counter: traffic.Program
    sender: traffic.Program


class Change(NamedTuple):
    """A rate, in bits per second, that was given by a task between two moments, and held until a third."""

    rate: int
    asked: int
    given: int
    until: int


def measure_round(lanes: Sequence[Lane], cells: list[Cell]) -> list[Stored]:
    """Measures all of the cells at once."""
    used = list(lanes[: len(cells)])
    for lane, cell in zip(used, cells):
        lane.path.delay(cell.rtt, cell.loss)
    with _limited(used, cells) as cgroups, ExitStack() as stack:
        for lane in used:
            stack.enter_context(lane.link.receiver(echo=False))
        sending = [
            Sending(
                cell,
                lane.link.count(COUNT_PAUSE),
                lane.link.tcp(cell.connections, cell.congestion, cgroup=cgroup),
            )
            for lane, cell, cgroup in zip(used, cells, cgroups)
        ]
        last = max(one.sender.began for one in sending)
        time.sleep(max(0.0, last / SECOND + WARM_UP - time.monotonic()))
        busy, begin = measure.busy(), time.monotonic_ns()
        before = [traffic.timeouts(one.sender) for one in sending]
        changes: list[Change] = []
        if cells[0].changes:
            changes = [_change(lane, cell, rate) for rate in CHANGED[1:] for lane, cell in zip(used, cells)]
        else:
            time.sleep(cells[0].window)
        end = time.monotonic_ns()
        timeouts = [traffic.timeouts(one.sender) - count for one, count in zip(sending, before)]
        busy = measure.busy() - busy
        share = busy / ((end - begin) / SECOND)
        return [
            {**_figures(one, begin, end, waited, changes), "busy": round(share, 2), "lanes": len(cells)}
            for one, waited in zip(sending, timeouts)
        ]


def _change(lane: Lane, cell: Cell, rate: int) -> Change:
    asked = time.monotonic_ns()
    if cell.shaper == shapers.OURS:
        limiter.rule(name=lane.name, rate=str(rate // 8))
    else:
        shapers.change(cell.shaper, lane.path, rate)
    given = time.monotonic_ns()
    time.sleep(AFTER_CHANGE)
    return Change(rate, asked, given, time.monotonic_ns())


def _figures(one: Sending, begin: int, end: int, timeouts: int, changes: list[Change]) -> Stored:
    samples, counts = traffic.samples(one.sender), traffic.counts(one.counter)
    began, cell = one.sender.began, one.cell
    end = min(end, counts[-1].at)
    found = measure.figures(began, begin, end, counts, samples, timeouts, counted=True).stored()
    # A cell's own rtt is that of its way; the bins are for plots, which nobody makes of this.
    found["round_trip"] = found.pop("rtt")
    del found["bins"]
    assert not found.keys() & cell.stored().keys()
    curve = measure.Curve(counts)
    pairs = measure.per_connection(samples, begin, end)
    shares = [measure.acknowledged(pair) for pair in pairs]
    steady = settled(curve, began, end, cell.rate, STEADY_WINDOW) if cell.rate and not changes else None
    return {
        **cell.stored(),
        **found,
        "retransmits_in_all": sum(pair[1].retransmits for pair in pairs),
        "least": min(shares) / (sum(shares) / len(shares)) if any(shares) else 0.0,
        "steady": steady,
        "worst": worst(curve, began + int(STEADY * SECOND), end, cell.rate) if cell.rate and not changes else None,
        "excess": measure.excess(counts, began, max([cell.rate, *(change.rate for change in changes)])),
        "changes": [_followed(curve, change, end) for change in changes],
    }


def _followed(curve: measure.Curve, change: Change, end: int) -> dict[str, float | None]:
    """How a change was followed; all but the rate in seconds."""
    end = min(change.until, end)
    return {
        "rate": change.rate,
        "took": (change.given - change.asked) / SECOND,
        "reached": reached(curve, change.given, end, change.rate, CHANGE_WINDOW),
        "settled": settled(curve, change.given, end, change.rate, CHANGE_WINDOW),
    }


def _near(curve: measure.Curve, start: int, window: int, rate: int) -> bool:
    return abs(curve.rate(start, start + window) / rate - 1) <= WITHIN


def reached(curve: measure.Curve, begin: int, end: int, rate: int, window: int) -> float | None:
    """Seconds from `begin` to the first window that is near `rate`; None if there is none."""
    starts = _starts(begin, end, window)
    return next(((start - begin) / SECOND for start in starts if _near(curve, start, window, rate)), None)


def settled(curve: measure.Curve, begin: int, end: int, rate: int, window: int) -> float | None:
    """Seconds after `begin` from which on every window is near `rate`, to the end; None if the last one is not."""
    last = None
    for start in reversed(_starts(begin, end, window)):
        if not _near(curve, start, window, rate):
            break
        last = (start - begin) / SECOND
    return last


def worst(curve: measure.Curve, begin: int, end: int, rate: int) -> float:
    """The deviation of the second that deviates most, as a part of the rate: -0.2 with a fifth less."""
    deviations = [curve.rate(start, start + SECOND) / rate - 1 for start in _starts(begin, end, SECOND)]
    return max(deviations, key=abs, default=0.0)


def _starts(begin: int, end: int, window: int) -> range:
    """When windows begin that end in time."""
    return range(begin, end - window + 1, measure.BIN // 2)
