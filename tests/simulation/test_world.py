# SPDX-License-Identifier: GPL-3.0-or-later
"""Random mixes: what holds for any of them, in every second."""

from __future__ import annotations

from collections import Counter

from conftest import Runner
from world import Complaint, complaints, world


def examined(runner: Runner, seed: int) -> list[Complaint]:
    scenario = world(seed)
    return list(complaints(scenario, runner.run(scenario)))


def test_every_second_of_any_mix_keeps_what_is_promised(runner: Runner) -> None:
    found = dict(enumerate(runner.each(3000, lambda seed: examined(runner, seed))))
    seeds = [seed for seed, one in found.items() if one]
    print("", Counter(kind for one in found.values() for kind in {each.kind for each in one}), seeds, sep="\n")
    if not runner.sampled:
        print(*(each.text for one in found.values() for each in one), sep="\n")
    assert not seeds, f"{len(seeds)} mixes; {found[seeds[0]][0].text}; {runner.again(seeds[0])}"
