# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cells there are, and which of them are measured at the same time.

Each cell is measured under this collection, htb, tbf and without a limit, on a way of its own. A guest without
hardware virtualisation passes only some thousands of packets per second, so cells share a round only while their rates
together stay below what does not disturb them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.speed_limiter.ebpf.bench.measure import megabits
from ansible_collections.speed_limiter.ebpf.bench.shapers import HTB, NONE, OURS, TBF

MBIT = 1_000_000
RATES = (MBIT, 10 * MBIT, 50 * MBIT)
CONNECTIONS = (1, 8)
RTTS = (5, 20, 100, 200)  # milliseconds
NEAR_RTTS = RTTS[:2]  # where losses are compared with those without a limit
CONGESTION = ("cubic", "bbr")
LOSS, LOSS_RTT = 0.5, 20  # per cent, milliseconds
CHANGE_RTT, CHANGED = 50, (50 * MBIT, 5 * MBIT, 50 * MBIT)
# Seconds: before and in what is measured; after a change of the rate; without a limit, where only losses are asked for.
WARM_UP, WINDOW, AFTER_CHANGE, UNLIMITED_WINDOW = 5.0, 15.0, 8.0, 3.0
# With one connection of cubic the rate is what random losses make of it, and 15 s have no more than 50 of them.
CHANCE_WINDOW = 120.0
TOGETHER = 160 * MBIT  # bits per second of a round with more than one cell
LANES = 12


@dataclass(frozen=True)
class Cell:
    """One measurement. `rate` in bits per second, 0 without a limit; `rtt` in milliseconds, `loss` in per cent."""

    shaper: str
    rate: int
    connections: int
    congestion: str
    rtt: float
    loss: float = 0
    window: float = WINDOW
    changes: bool = False

    @property
    def place(self) -> str:
        """By which reasons are kept, and which --only searches: "10x8/100/cubic", with "/loss" or "/change" behind."""
        kind = "/loss" if self.loss else "/change" if self.changes else ""
        return f"{megabits(self.rate)}x{self.connections}/{self.rtt:g}/{self.congestion}{kind}"

    @property
    def name(self) -> str:
        return f"{self.place} {self.shaper}"

    @property
    def way(self) -> tuple[int, float, str, float]:
        """What it has in common with the same connections without a limit."""
        return self.connections, self.rtt, self.congestion, self.loss

    def stored(self) -> dict[str, Any]:
        fields = asdict(self)
        # What is measured has a rate of its own.
        limit = fields.pop("rate")
        return {**fields, "limit": limit, "place": self.place}


def full() -> Iterator[Cell]:
    for rate in RATES:
        for rtt in RTTS:
            yield from _shaped(rate, rtt)
        yield from _shaped(rate, LOSS_RTT, LOSS)
    for connections in CONNECTIONS:
        for congestion in CONGESTION:
            for rtt in NEAR_RTTS:
                yield Cell(NONE, 0, connections, congestion, rtt, window=UNLIMITED_WINDOW)
            yield Cell(NONE, 0, connections, congestion, LOSS_RTT, LOSS, _window(connections, congestion, LOSS))
            for shaper in (OURS, HTB, TBF):
                yield Cell(shaper, CHANGED[0], connections, congestion, CHANGE_RTT, changes=True)


def _shaped(rate: int, rtt: float, loss: float = 0) -> Iterator[Cell]:
    for connections in CONNECTIONS:
        for congestion in CONGESTION:
            for shaper in (OURS, HTB, TBF):
                yield Cell(shaper, rate, connections, congestion, rtt, loss, _window(connections, congestion, loss))


def _window(connections: int, congestion: str, loss: float) -> float:
    return CHANCE_WINDOW if loss and connections == 1 and congestion == "cubic" else WINDOW


def quick() -> Iterator[Cell]:
    """The telling ones, in one round and one alone."""
    for congestion in CONGESTION:
        yield Cell(OURS, 10 * MBIT, 8, congestion, 200, window=10)
        yield Cell(OURS, MBIT, 8, congestion, 100, window=10)
    yield Cell(OURS, 10 * MBIT, 8, "cubic", LOSS_RTT, LOSS, window=10)
    yield Cell(OURS, CHANGED[0], 1, "cubic", CHANGE_RTT, changes=True)


def chosen(cells: Iterator[Cell], only: str, congestion: tuple[str, ...]) -> list[Cell]:
    """Those whose names match, without the congestion controls that the kernel lacks."""
    return [cell for cell in cells if cell.congestion in congestion and re.search(only, cell.name)]


def rounds(cells: list[Cell], together: int = TOGETHER) -> list[list[Cell]]:
    """What is compared is side by side: cells keep their order, and shapers are innermost in it."""
    found: list[list[Cell]] = []
    open_rounds: dict[tuple[float, bool], list[Cell]] = {}
    for cell in cells:
        if not cell.rate or cell.changes or 2 * cell.rate > together:
            found.append([cell])
            continue
        like = (cell.window, cell.changes)
        current = open_rounds.get(like)
        if current is None or len(current) == LANES or sum(one.rate for one in current) + cell.rate > together:
            current = open_rounds[like] = []
            found.append(current)
        current.append(cell)
    return found


def seconds(round_of: list[Cell]) -> float:
    """What it takes, without the beginning and the end of processes."""
    first = round_of[0]
    return WARM_UP + (2 * AFTER_CHANGE if first.changes else first.window)
