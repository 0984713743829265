# SPDX-License-Identifier: GPL-3.0-or-later
"""Which measurements there are, in which order, and how long each takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, NamedTuple

from . import cost, experiments, measure, plan_world, traffic, unruled
from .measure import Cell, megabits
from .shapers import DROP, HTB, NONE, OURS, PEERS, TBF

MBIT = 1_000_000
GBIT = 1000 * MBIT
CONGESTION = ("cubic", "bbr", "reno")
Links = dict[str, traffic.Link]
Stored = dict[str, Any]


class Step(NamedTuple):
    """One measurement: `store` names the list of results that it adds to; `line` is what who watches is told."""

    what: str
    seconds: float
    store: str
    run: Callable[[Links], Stored]
    line: Callable[[Stored], str]


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rates: tuple[int, ...] = (MBIT, 10 * MBIT, 100 * MBIT, GBIT)
    connections: tuple[int, ...] = (1, 4, 16, 64)
    peer_connections: tuple[int, ...] = (1, 4, 16, 64)
    congestion: tuple[str, ...] = CONGESTION
    seconds: float = 10.0
    slow_seconds: float = 30.0  # of 1 Mbit/s x 64
    warm_up: float = 2.0
    quick: bool = False


FULL = Extent()
QUICK = Extent(
    connections=(1, 16),
    peer_connections=(16,),
    congestion=("cubic",),
    seconds=2.0,
    slow_seconds=2.0,
    warm_up=1.0,
    quick=True,
)


def available(extent: Extent) -> Extent:
    """Without the congestion controls that this kernel lacks."""
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text(encoding="ascii").split()
    return replace(extent, congestion=tuple(name for name in extent.congestion if name in known))


def steps(extent: Extent) -> list[Step]:
    return [
        _base(extent),
        *(_cell_step(cell, "cells") for cell in grid(extent)),
        *_pings(extent),
        *_app_limited(extent),
        *_udp(extent),
        *(_cell_step(cell, "paths") for cell in _paths(extent)),
        *_cpu(extent),
        *_costs(extent),
        *_world(extent),
    ]


def grid(extent: Extent) -> Iterator[Cell]:
    """Shapers innermost, so that what is compared is measured within the same minute."""
    seconds, warm_up = extent.seconds, extent.warm_up
    for connections in extent.peer_connections:
        yield Cell(NONE, 0, connections, "cubic", seconds, warm_up)
    for rate in extent.rates:
        for connections in extent.connections:
            time = extent.slow_seconds if (rate, connections) == (MBIT, 64) else seconds
            if connections in extent.peer_connections:
                for peer in PEERS:
                    yield Cell(peer, rate, connections, "cubic", time, warm_up)
            for congestion in extent.congestion:
                yield Cell(OURS, rate, connections, congestion, time, warm_up)


def _paths(extent: Extent) -> Iterator[Cell]:
    """Other packets than of 1500 bytes, and more than a core can segment."""
    cells = [("9000", rate, connections) for rate in (100 * MBIT, GBIT) for connections in (1, 16)]
    cells += [("loopback", rate, connections) for _path, rate, connections in cells]
    cells += [("offloads", 20 * GBIT, 1)]
    for path, rate, connections in cells:
        if not extent.quick or (rate, connections) in ((100 * MBIT, 16), (20 * GBIT, 1)):
            yield Cell(OURS, rate, connections, "cubic", extent.seconds, extent.warm_up, path)


def _cell_step(cell: Cell, store: str) -> Step:
    def run(links: Links) -> Stored:
        return {**_identity(cell), **measure.measure(links[cell.path], cell).stored()}

    def line(stored: Stored) -> str:
        figures = {name: stored[name] for name in measure.Figures.__dataclass_fields__}
        return measure.line(cell, measure.Figures(**figures))

    what = f"{cell.shaper}, {cell.congestion}, x {cell.connections}"
    if cell.shaper != NONE:
        what = f"{cell.shaper}, {cell.congestion}, {megabits(cell.rate)} Mbit/s x {cell.connections}"
    if cell.path != "1500":
        what += f", {cell.path}"
    return Step(what, cell.expected, store, run, line)


def _identity(cell: Cell) -> Stored:
    return {
        "shaper": cell.shaper,
        "limit": cell.rate,
        "connections": cell.connections,
        "congestion": cell.congestion,
        "path": cell.path,
        "seconds": cell.seconds,
    }


def _extra(
    name: str, cell: Cell, store: str, work: Callable[[traffic.Link, Cell], Stored], line: Callable[[Stored], str]
) -> Step:
    def run(links: Links) -> Stored:
        return {**_identity(cell), **work(links[cell.path], cell)}

    what = f"{name}: {cell.shaper}, {cell.congestion}, {megabits(cell.rate)} Mbit/s"
    return Step(what, cell.expected, store, run, line)


def _latency_line(stored: Stored) -> str:
    return f"P50 {stored['p50']:.3f} ms, P99 {stored['p99']:.3f} ms of {stored['count']}"


def _base(extent: Extent) -> Step:
    seconds = 1.0 if extent.quick else 5.0
    return Step(
        "round trip of the idle pair",
        seconds + 0.2,
        "base",
        lambda links: experiments.base_rtt(links["1500"], seconds),
        _latency_line,
    )


def _versions(extent: Extent) -> list[tuple[str, str]]:
    """Peers with cubic, this collection with every congestion control."""
    return [(HTB, "cubic"), (TBF, "cubic"), (DROP, "cubic"), *((OURS, name) for name in extent.congestion)]


def _pings(extent: Extent) -> Iterator[Step]:
    for rate in (100 * MBIT,) if extent.quick else (100 * MBIT, GBIT):
        for shaper, congestion in _versions(extent):
            cell = Cell(shaper, rate, 4, congestion, extent.seconds, extent.warm_up)
            yield _extra("ping-pong beside 4", cell, "pings", experiments.ping_beside_bulk, _latency_line)


def _app_limited(extent: Extent) -> Iterator[Step]:
    for shaper, congestion in [(HTB, "cubic"), *((OURS, name) for name in extent.congestion)]:
        cell = Cell(shaper, 100 * MBIT, 2, congestion, extent.seconds, extent.warm_up)
        yield _extra(
            "10 modest and 2 greedy",
            cell,
            "app_limited",
            experiments.app_limited,
            lambda stored: f"{stored['rate'] / MBIT:.2f} Mbit/s in all, {stored['modest'] / MBIT:.3f} of the modest",
        )


def _udp(extent: Extent) -> Iterator[Step]:
    for factor in (0.5, 2.0, 10.0):
        for shaper in (OURS,) if extent.quick else (HTB, DROP, OURS):
            yield _beside_udp(extent, shaper, 100 * MBIT, 4, factor)
    if not extent.quick:
        for rate, factor in ((MBIT, 40.0), (10 * MBIT, 40.0), (100 * MBIT, 1.2), (100 * MBIT, 10.0)):
            yield _beside_udp(extent, OURS, rate, 0, factor)


def _beside_udp(extent: Extent, shaper: str, rate: int, connections: int, factor: float) -> Step:
    name = f"UDP at {factor:g}x beside TCP x {connections}" if connections else f"UDP at {factor:g}x alone"
    return _extra(
        name,
        Cell(shaper, rate, connections, "cubic", extent.seconds, extent.warm_up),
        "udp",
        lambda link, cell: experiments.beside_udp(link, cell, factor),
        lambda stored: (
            f"{stored['rate'] / MBIT:.2f} Mbit/s in all, TCP {stored['tcp'] / MBIT:.2f}, {stored['timeouts']} timeouts"
        ),
    )


def _cpu(extent: Extent) -> Iterator[Step]:
    for _round in range(1 if extent.quick else 5):
        for shaper in (HTB, OURS) if extent.quick else (HTB, TBF, OURS):
            cell = Cell(shaper, GBIT, 16, "cubic", extent.seconds / 2 + 0.5, extent.warm_up)
            yield _extra(
                "sender's CPU",
                cell,
                "cpu",
                experiments.sender_cpu,
                lambda stored: (
                    f"{100 * stored['sender']:.1f} % of a CPU, {100 * stored['machine']:.1f} % in all "
                    f"(idle: {100 * stored['others']:.1f} %)"
                ),
            )


def _costs(extent: Extent) -> Iterator[Step]:
    cell = Cell(OURS, GBIT, 16, "cubic", extent.seconds / 2, extent.warm_up)
    yield _extra(
        "the programs in a flow",
        cell,
        "programs",
        experiments.programs_in_flow,
        lambda stored: ", ".join(f"{name} {found['ns']:.0f} ns" for name, found in stored["found"].items()),
    )
    pairs, seconds = (6, 0.3) if extent.quick else (20, 1.0)
    yield Step(
        "requests of an unlimited cgroup",
        pairs * 2 * (seconds + 0.5),
        "requests",
        lambda links: experiments.requests(links["1500"], pairs, seconds),
        lambda stored: f"{stored['change']:+.2f} % ({stored['interval'][0]:+.2f} to {stored['interval'][1]:+.2f})",
    )
    yield Step(
        "cost of a packet",
        7.0 if extent.quick else 70.0,
        "packets",
        lambda links: cost.packets(extent.quick),
        lambda stored: ", ".join(
            f"{row['kind']} {'cold' if row['cold'] else 'hot'} {row['limited'] - row['least']:+.0f} ns"
            for row in stored["rows"]
        ),
    )
    yield Step(
        "packets without a rule",
        10.0 if extent.quick else 60.0,
        "unruled",
        lambda links: unruled.measure(extent.quick),
        lambda stored: ", ".join(f"{row['scene']} {row['hot']} ns, first {row['first']}" for row in stored["rows"]),
    )
    yield Step(
        "cost of new sockets",
        5.0 if extent.quick else 25.0,
        "sockets",
        lambda links: cost.sockets(extent.quick),
        lambda stored: ", ".join(
            f"{row['what']} {100 * (row['made'][2] / row['made'][0] - 1):+.1f} %" for row in stored["rows"]
        ),
    )


def _world(extent: Extent) -> Iterator[Step]:
    for measured in plan_world.measured(extent.quick):
        if getattr(measured.cell, "congestion", "cubic") in extent.congestion:
            yield _world_step(measured)


def _world_step(measured: plan_world.Measured) -> Step:
    def run(links: Links) -> Stored:
        return {**measured.run(links["1500"], measured.cell), "what": measured.cell.what}

    return Step(f"{measured.store}: {measured.cell.what}", measured.seconds, measured.store, run, measured.line)
