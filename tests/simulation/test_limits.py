# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that change by orders of magnitude under a running connection."""

from __future__ import annotations

import pytest
from conftest import Runner
from scenarios import MBIT
from simulator import BBR, CUBIC, Bin, Change, Flow, Scenario

LASTS = 6  # seconds, each limit
TENTHS = 10
AT_FIRST = 5  # tenths of a second in which windows and packets become smaller
TWO_PACKETS = 2 * 2 * 1500


def spans(runner: Runner, kind: int, round_trip: float, megabits: list[float]) -> list[list[Bin]]:
    """Tenths of a second, of each limit."""
    changes = [Change(i * LASTS, round(limit * MBIT), round(limit * MBIT)) for i, limit in enumerate(megabits)]
    end = LASTS * len(megabits)
    bins = [tenth / TENTHS for tenth in range(1, end * TENTHS + 1)]
    result = runner.run(Scenario(0, [Flow(kind, round_trip=round_trip)], changes, end, bins))
    each = LASTS * TENTHS
    return [result.bins[i * each : (i + 1) * each] for i in range(len(megabits))]


@pytest.mark.parametrize("kind", [CUBIC, BBR], ids=["cubic", "bbr"])
@pytest.mark.parametrize("round_trip", [0.0003, 0.02], ids=["near", "far"])
@pytest.mark.parametrize("low", [1, 0.5, 0.2])
@pytest.mark.parametrize("high", [10, 50, 150])
def test_a_connection_is_not_silent_after_its_limit_was_lowered(
    runner: Runner, high: float, low: float, round_trip: float, kind: int
) -> None:
    lowered = spans(runner, kind, round_trip, [high, low])[1]
    silence = max(span.silence[0] for span in lowered[AT_FIRST:])
    assert silence <= max(0.1, TWO_PACKETS / (low * MBIT)) + 0.005


# How soon bbr goes faster is its own affair: a quarter more in each eighth round trip.
@pytest.mark.parametrize(("round_trip", "kind"), [(0.0003, CUBIC), (0.0003, BBR), (0.02, CUBIC)])
@pytest.mark.parametrize("megabits", [[0.5, 40], [50, 0.2, 150], [1, 50], [10, 20]])
def test_a_raised_limit_is_used_within_300_ms(
    runner: Runner, megabits: list[float], round_trip: float, kind: int
) -> None:
    raised, rate = spans(runner, kind, round_trip, megabits)[-1], megabits[-1] * MBIT
    for begin in range(3, LASTS * TENTHS - 5, 5):
        half = sum(span.bytes for span in raised[begin : begin + 5]) / 0.5 / rate
        # What a window that has to grow left unused is made up for, out of the bucket.
        since = sum(span.bytes for span in raised[: begin + 5]) / (begin + 5) * TENTHS / rate
        assert half >= 0.9 and min(half, since) <= 1.1, f"{half:.2f} in the half second from {begin} tenths on"
