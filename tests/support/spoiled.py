# SPDX-License-Identifier: GPL-3.0-or-later
"""States of a rule's controller that no program of ours would leave."""

from __future__ import annotations

import random
from collections.abc import Callable

from .scene import StateEntry, pause

HOURS = 36_000 * 10**9  # ten, in nanoseconds


def garbage(seed: int) -> Callable[[StateEntry], None]:
    dice = random.Random(seed)

    def spoil(entry: StateEntry) -> None:
        entry.write(**{field: dice.getrandbits(8 * size) for field, size in StateEntry.CONTROLLER.items()})

    return spoil


def all_are(value: int) -> Callable[[StateEntry], None]:
    return lambda entry: entry.write(
        **{field: value & (1 << 8 * size) - 1 for field, size in StateEntry.CONTROLLER.items()}
    )


def shifted(field: str, by: int) -> Callable[[StateEntry], None]:
    """As after the clock jumped: a virtual machine that was stopped, a process that was frozen with its container."""
    return lambda entry: entry.write(**{field: entry.read()[field] + by})


def set_to(field: str, value: int) -> Callable[[StateEntry], None]:
    return lambda entry: entry.write(**{field: value})


def made_again(entry: StateEntry) -> None:
    entry.delete()
    pause(0.05)
    entry.make()


SPOILED: dict[str, Callable[[StateEntry], None]] = {
    **{f"random-{seed}": garbage(seed) for seed in range(4)},
    "all-zero": all_are(0),
    "all-ones": all_are(-1),
    "clock-ahead": shifted("fair.clock_ns", HOURS),
    "clock-behind": shifted("fair.clock_ns", -HOURS // 10**4),
    "epoch-ahead": shifted("fair.epoch_start_ns", HOURS),
    "epoch-behind": shifted("fair.epoch_start_ns", -HOURS // 10**4),
    "refill-ahead": shifted("last_update_ns", HOURS),
    "no-share": set_to("fair.share", 1),
    "no-paced-rate": set_to("fair.paced_rate", 1),
    "many-holders": set_to("fair.holders_before", 1 << 31),
    "long-epoch": set_to("fair.period_ns", 4 * 10**9),
    "long-lag": set_to("fair.lag_ns", 10**9),
    "debt": set_to("tokens", -(1 << 40)),
    "riches": set_to("tokens", 1 << 60),
    "made-again": made_again,
}
