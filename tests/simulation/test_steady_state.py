# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections settle at their max-min fair share, and all together at the limit."""

from __future__ import annotations

import statistics

from conftest import Runner
from judge import Judgement, judge, quantile, summary
from scenarios import greedy_scenario, random_scenario
from simulator import Scenario


def judged(runner: Runner, scenario: Scenario) -> Judgement:
    return judge(scenario, runner.run(scenario))


def test_greedy_connections_share_the_limit_exactly(runner: Runner) -> None:
    runs = [run for run in runner.each(600, lambda seed: judged(runner, greedy_scenario(seed))) if run.saturated]
    fine, coarse = [run for run in runs if run.fine], [run for run in runs if not run.fine]
    print("", summary("fine", fine), summary("coarse", coarse), sep="\n")
    for run in fine:
        assert run.error <= 0.02 and not run.disturbed, f"{run}; {runner.again(run.seed)}"
    for run in coarse:
        assert run.error <= 0.04, f"{run}; {runner.again(run.seed)}"
    for run in runs:
        assert run.worst_share >= 0.7 and run.jain >= 0.97, f"{run}; {runner.again(run.seed)}"
    if runner.sampled:
        assert statistics.median(run.error for run in runs) <= 0.001
        assert quantile([run.error for run in runs], 0.95) <= 0.005


def test_connections_that_come_and_go_want_little_or_are_far_away(runner: Runner) -> None:
    runs = [run for run in runner.each(400, lambda seed: judged(runner, random_scenario(seed))) if run.saturated]
    fine, coarse = [run for run in runs if run.fine], [run for run in runs if not run.fine]
    print("", summary("fine", fine), summary("coarse", coarse), sep="\n")
    for run in runs:
        # Some are far more difficult than what is promised: buckets of 10 ms, applications that write in large bursts.
        assert -0.2 <= run.total - 1 <= 0.05 and run.worst_share >= 0.3, f"{run}; {runner.again(run.seed)}"
    if runner.sampled:
        errors, shares = [run.error for run in runs], [run.worst_share for run in runs]
        assert statistics.median(errors) <= 0.002
        assert quantile(errors, 0.9) <= 0.01
        assert quantile(errors, 0.98) <= 0.05
        assert quantile(shares, 0.02) >= 0.7
        assert sum(run.disturbed > 0 for run in fine) <= 0.05 * len(fine)
