# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs scenarios on every CPU, and names the command that repeats one."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from judge import allowed_excess, quantile
from simulator import Result, Scenario, build, simulate

Answer = TypeVar("Answer")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scenarios", type=float, default=1, help="times as many random scenarios as usual")
    parser.addoption("--seed", type=int, help="the only scenario of each test")


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("simulator"))


class Runner:
    """Simulates; what holds for whatever happens is asserted for every run."""

    def __init__(self, library: ctypes.CDLL, test: str, times: float, seed: int | None) -> None:
        self._library, self._test, self._times, self._seed = library, test, times, seed

    def run(self, scenario: Scenario) -> Result:
        result = simulate(self._library, scenario)
        for rule, excess in enumerate(result.worst_excess):
            assert excess <= allowed_excess(scenario), (
                f"{excess} bytes above rate * time + bucket of rule {rule}, {self.again(scenario.seed)}"
            )
        return result

    def each(self, count: int, examine: Callable[[int], Answer]) -> list[Answer]:
        """What `examine` finds for each seed."""
        seeds: Sequence[int] = range(round(count * self._times)) if self._seed is None else [self._seed]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(examine, seeds))

    def within(self, name: str, values: list[float], least: float, most: float = math.inf) -> None:
        """Asserts bounds for every run's value, and shows (pytest -s) how they are spread."""
        first = 0 if self._seed is None else self._seed
        spread = sorted((value, seed) for seed, value in enumerate(values, first))
        low, high = spread[0], spread[-1]
        print(
            f"\n{name}: least {low[0]:.3f} (seed {low[1]}), 10 % {quantile(values, 0.1):.3f}, "
            f"median {quantile(values, 0.5):.3f}, 90 % {quantile(values, 0.9):.3f}, most {high[0]:.3f} (seed {high[1]})"
        )
        assert low[0] >= least, f"{name}: {low[0]:.3f}, {self.again(low[1])}"
        assert high[0] <= most, f"{name}: {high[0]:.3f}, {self.again(high[1])}"

    @property
    def sampled(self) -> bool:
        """Enough runs that statements about most of them mean something."""
        return self._seed is None

    def again(self, seed: int) -> str:
        return f"seed {seed}; again: python -m pytest -s '{self._test}' --seed={seed}"


@pytest.fixture
def runner(request: pytest.FixtureRequest, simulator: ctypes.CDLL) -> Runner:
    config = request.config
    return Runner(simulator, request.node.nodeid, config.getoption("--scenarios"), config.getoption("--seed"))
