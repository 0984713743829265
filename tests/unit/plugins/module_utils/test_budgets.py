# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/budgets.py: what a rule and its budgets have counted, while the program removes some of them."""

from __future__ import annotations

import typing as t

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import budgets
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps

RULE = 7


class Kernel:
    """A rule with three budgets of 10 packets each. The program removes one after each of the first looks at them."""

    schema = layout.SCHEMA

    def __init__(self, removed: int) -> None:
        self.removed, self.looks, self.swept, self.there = removed, 0, 0, {1, 2, 3}

    def of(self, row: catalog.MapRow) -> Kernel:
        assert row is catalog.SLOT
        return self

    def lookup(self, key: bytes) -> bytes:
        assert key == layout.INDEX.pack(0)
        return layout.SLOT.pack(0, 0, 1)

    def entries(self, row: catalog.MapRow) -> t.Iterator[tuple[bytes, bytes]]:
        assert row is catalog.STATE
        fields = {"limit": RULE, "packets": 10, "drops[1]": 1}
        value = layout.STATE.pack(*(fields.get(field, 0) for field in layout.STATE_FIELDS))
        found = [(layout.ID.pack(cgroup), value) for cgroup in self.there]
        self.looks += 1
        if self.looks <= self.removed:
            self.there.pop()
            self.swept += 1
        return iter(found)

    def state(self, rule: int) -> layout.State:
        assert rule == RULE
        counted = Counters(packets=5 + 10 * self.swept, drops=(0, self.swept, *[0] * 6))
        return layout.State(counters=counted, swept=self.swept, shared_packets=4)


def test_a_rule_has_what_its_budgets_have_counted_whenever_one_goes() -> None:
    for removed in range(3):
        found = budgets.counted(t.cast(Maps, Kernel(removed)))[RULE]
        assert found.counters == Counters(packets=35, drops=(0, 3, *[0] * 6))
        assert found.about() == {"active": 3 - removed, "shared_packets": 4}


def test_looking_again_has_an_end() -> None:
    kernel = Kernel(99)
    kernel.there = set(range(100))
    assert RULE in budgets.counted(t.cast(Maps, kernel))
    assert kernel.looks < 10


def test_what_two_have_counted_is_added_by_reason() -> None:
    one = Counters(1, 2, 3, tuple(range(8)), tuple(range(8, 16)))
    assert one + one == Counters(2, 4, 6, tuple(range(0, 16, 2)), tuple(range(16, 32, 2)))
