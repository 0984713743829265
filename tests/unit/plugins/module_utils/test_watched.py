# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""core/watched.py: what rules did between two looks at all states."""

from __future__ import annotations

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import STATE, STATE_FIELDS
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.pacing import Ability
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.watched import RuleSeen, States

SECOND = 1_000_000_000
ON = Ability("on", None, adopts=True)
WEB, USERS = 7, 8
NAMES = {WEB: "web", USERS: "users"}
LIMITS = {WEB: Limit(rate=1000, bucket=1000), USERS: Limit(rate=1000, bucket=1000)}


class Host:
    def __init__(self) -> None:
        self.states = States()
        self.now = 1000 * SECOND
        self.unpacked = 0

    def _unpack(self, raw: bytes) -> layout.State:
        self.unpacked += 1
        return layout.unpack_state(raw)

    def look(self, entries: dict[int, dict[str, int]], seconds: float = 1.0) -> dict[str, RuleSeen]:
        self.now += int(seconds * SECOND)
        packed = [
            (layout.ID.pack(key), STATE.pack(*({"tokens": 1000, **fields}.get(name, 0) for name in STATE_FIELDS)))
            for key, fields in entries.items()
        ]
        found = self.states.advance(packed, self.now, LIMITS, NAMES, ON, self._unpack)
        return {rule.name: rule for rule in found}


def test_rates_are_what_was_counted_between_two_looks() -> None:
    host = Host()
    first = host.look({WEB: {"bytes": 10**9, "drops[1]": 50}})
    assert (first["web"].rate, first["web"].drops) == (0, 0) and first["users"].limit == 1000
    then = host.look({WEB: {"bytes": 10**9 + 500, "drops[1]": 53, "drops[3]": 1}}, 0.5)["web"]
    assert (then.rate, then.utilization, then.drops, then.binds) == (1000, 1.0, 8.0, True)
    still = host.look({WEB: {"bytes": 10**9 + 500, "drops[1]": 53, "drops[3]": 1}})["web"]
    assert (still.rate, still.drops, still.binds) == (0, 0, False)


def test_what_passed_two_rules_is_told_of_the_inner_one() -> None:
    host = Host()
    assert {rule.once for rule in host.look({WEB: {}, USERS: {"once_bytes": 5}}).values()} == {None}
    seen = host.look({WEB: {"bytes": 700, "once_bytes": 700}, USERS: {"bytes": 900, "once_bytes": 205}})
    assert (seen["web"].once, seen["users"].once, seen["users"].rate) == (700, 200, 900)
    budgets = {100: {"limit": USERS, "bytes": 50, "once_bytes": 40}}
    seen = host.look({WEB: {}, USERS: {"bytes": 900, "once_bytes": 205}, **budgets})
    assert (seen["web"].once, seen["users"].once) == (0, 40)
    seen = host.look({USERS: {"bytes": 955, "once_bytes": 250}})
    assert seen["users"].once == 5


def test_what_an_earlier_version_counts_is_not_told_once() -> None:
    states = States()

    def look(passed: int, at_ns: int) -> RuleSeen:
        entries = [(layout.ID.pack(WEB), layout.INDEX.pack(passed))]
        return states.advance(entries, at_ns, LIMITS, {WEB: "web"}, ON, unpack)[0]

    def unpack(raw: bytes) -> layout.State:
        return layout.State(counters=Counters(bytes=layout.INDEX.unpack(raw)[0]), once_bytes=None)

    look(1, SECOND)
    assert (look(51, 2 * SECOND).rate, look(51, 3 * SECOND).once) == (50, None)


def test_what_did_not_change_is_not_worked_out_anew() -> None:
    host = Host()
    for _look in range(5):
        host.look({number: {"bytes": 1} for number in range(100)})
    assert host.unpacked == 100


def test_budgets_count_for_their_rule_and_the_fullest_one_is_told() -> None:
    host = Host()
    host.look({USERS: {}, 100: {"limit": USERS, "bytes": 100}})
    users = host.look({USERS: {}, 100: {"limit": USERS, "bytes": 1000}, 101: {"limit": USERS, "bytes": 300}})["users"]
    assert (users.rate, users.utilization) == (1200, 0.9)


def test_a_budget_that_is_removed_is_not_counted_twice() -> None:
    """What it had counted is added to its rule's own state."""
    host = Host()
    host.look({USERS: {"bytes": 5}, 100: {"limit": USERS, "bytes": 10**6, "drops[1]": 10}})
    users = host.look({USERS: {"bytes": 10**6 + 25, "drops[1]": 11}})["users"]
    assert (users.rate, users.drops) == (20, 1)


def test_rules_come_and_go_and_states_of_no_rule_are_left_out() -> None:
    host = Host()
    host.look({WEB: {"bytes": 10**6}, 55: {"bytes": 9}, 56: {"limit": layout.NO_RULE}})
    assert host.look({})["web"].rate == 0
    made_anew = host.look({WEB: {"bytes": 30}})["web"]
    assert made_anew.rate == 30


def test_a_clock_of_another_namespace_and_refunds_give_no_negative_rate() -> None:
    host = Host()
    host.look({WEB: {"bytes": 1000, "use_start_ns": 1 << 62, "last_update_ns": 1 << 62}})
    assert host.look({WEB: {"bytes": 900, "use_start_ns": 1 << 62, "last_update_ns": 1 << 62}})["web"].rate == 0
