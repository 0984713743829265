# SPDX-License-Identifier: GPL-3.0-or-later
"""That what arrives was charged, and was no more than a limit allows, in whatever part of the time since it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from ansible_collections.speed_limiter.ebpf.tests.support.scene import GSO_PACKET

OVERDRAFT = 1.5 * GSO_PACKET  # what the limiter may pass beyond a bucket
PASSING = 2 * GSO_PACKET  # one packet on each of two processors is charged and has not arrived, or the reverse
CLOCKS = 1.005

Meter = TypeVar("Meter", "Bound", "Charged")


class Reading(NamedTuple):
    """Bytes that have arrived on each link at some moment between two of the monotonic clock, in seconds."""

    before: float
    after: float
    bytes: Mapping[int, int]


class Budget(NamedTuple):
    """What pays for some links and nothing else. While it is the same, it is measured without a break."""

    name: str
    identity: tuple[object, ...]
    rate: int
    bucket: int
    links: frozenset[int]


class Bound:
    """What passed beyond the rate, in the worst of all spans of time that end now."""

    def __init__(self, budget: Budget, reading: Reading) -> None:
        self.budget, self._last, self._beyond = budget, reading, 0.0
        self.bytes = 0

    def check(self, reading: Reading) -> None:
        arrived = sum(reading.bytes[link] - self._last.bytes[link] for link in self.budget.links)
        refilled = CLOCKS * self.budget.rate * (reading.after - self._last.before)
        self._beyond = max(0.0, self._beyond) + arrived - refilled
        self._last = reading
        self.bytes += arrived
        most = self.budget.bucket + OVERDRAFT
        assert self._beyond <= most, (
            f"{self.budget} has passed {self._beyond:.0f} bytes beyond its rate, not {most:.0f}"
        )


class Charged:
    """A rule's own count of what it has passed is at least what has arrived."""

    def __init__(self, budget: Budget, counted: int, reading: Reading) -> None:
        self.budget, self._counted, self._reading = budget, counted, reading

    def check(self, reading: Reading, counted: int) -> None:
        arrived = sum(reading.bytes[link] - self._reading.bytes[link] for link in self.budget.links)
        charged = counted - self._counted
        assert arrived <= charged * 1.01 + PASSING, f"{self.budget}: {arrived} bytes arrived, {charged} were charged"


class Meters:
    """Those of all budgets, the same over steps that change nothing of them."""

    def __init__(self) -> None:
        self._bounds: dict[str, Bound] = {}
        self._charged: dict[str, Charged] = {}
        self.checks = self.bytes = 0

    def check(self, reading: Reading, counted: Mapping[str, int]) -> None:
        """``counted`` after ``reading``: bytes that each rule has passed, by its name."""
        for bound in self._bounds.values():
            before = bound.bytes
            bound.check(reading)
            self.checks, self.bytes = self.checks + 1, self.bytes + bound.bytes - before
        for charged in self._charged.values():
            if charged.budget.name in counted:
                charged.check(reading, counted[charged.budget.name])

    def keep(self, budgets: Iterable[Budget], rules: Iterable[Budget]) -> None:
        """Only those that are in force before and after a step are measured across it."""
        self._bounds = _kept(self._bounds, budgets)
        self._charged = _kept(self._charged, rules)

    def begin(
        self, budgets: Iterable[Budget], rules: Iterable[Budget], counted: Mapping[str, int], reading: Reading
    ) -> None:
        """``counted`` before ``reading``. Those that are measured already go on."""
        for budget in budgets:
            self._bounds.setdefault(_key(budget), Bound(budget, reading))
        for rule in rules:
            self._charged.setdefault(_key(rule), Charged(rule, counted[rule.name], reading))


def _key(budget: Budget) -> str:
    return repr(budget)


def _kept(meters: dict[str, Meter], budgets: Iterable[Budget]) -> dict[str, Meter]:
    keys = {_key(budget) for budget in budgets}
    return {key: meter for key, meter in meters.items() if key in keys}
