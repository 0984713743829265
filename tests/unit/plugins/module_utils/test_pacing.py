# SPDX-License-Identifier: GPL-3.0-or-later
"""core/pacing.py: what a user reads about how a rule limits, and why so."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import FairShare
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.pacing import (
    Ability,
    about,
    of_rule,
    why_not,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit

SECOND = 1_000_000_000
NOW = 1000 * SECOND
LIMIT = Limit(rate=12_500_000, bucket=12_500_000)
ON = Ability("on", None, adopts=True)
BUSY = FairShare(
    share=2_500_000,
    epoch_start_ns=NOW - 5_000_000,
    period_ns=10_000_000,
    lag_ns=850_999,
    active=1,
    active_before=5,
    unpaced=1,
    unpaced_before=0,
    holders=1,
    holders_before=4,
)
IDLE = {
    "active_connections": 0,
    "unpaced_connections": 0,
    "waiting_connections": 0,
    "fair_share": None,
    "longest_round_trip_us": None,
}


def test_a_rule_that_is_paced_shows_its_last_whole_epoch() -> None:
    assert of_rule(ON, LIMIT, BUSY, NOW) == {
        "mode": "paced",
        "reason": None,
        "active_connections": 5,
        "unpaced_connections": 0,
        "waiting_connections": 4,
        "fair_share": 2_500_000,
        "longest_round_trip_us": 850,
    }


def test_an_epoch_in_which_more_have_sent_already_counts_at_once() -> None:
    seen = of_rule(ON, LIMIT, BUSY._replace(active=7, unpaced=0, holders=6), NOW)
    assert (seen["active_connections"], seen["waiting_connections"]) == (7, 6)


def test_newcomers_that_have_not_sent_yet_do_not_make_more_that_wait_than_are_active() -> None:
    assert of_rule(ON, LIMIT, BUSY._replace(holders_before=9), NOW)["waiting_connections"] == 5


@pytest.mark.parametrize(
    ("age", "idle"), [(SECOND, False), (SECOND + 40_000_000, False), (SECOND + 40_000_001, True), (100 * SECOND, True)]
)
def test_figures_that_are_four_epochs_and_a_second_old_are_of_the_past(age: int, idle: bool) -> None:
    seen = of_rule(ON, LIMIT, BUSY._replace(epoch_start_ns=NOW - age), NOW)
    assert (seen == {"mode": "paced", "reason": None, **IDLE}) is idle


def test_a_rule_that_nothing_was_sent_under_is_paced_and_idle() -> None:
    assert of_rule(ON, LIMIT, FairShare(), NOW) == {"mode": "paced", "reason": None, **IDLE}


@pytest.mark.parametrize(
    ("ability", "mode", "words"),
    [
        (Ability("off", None, True), "token_bucket", "pacing=true"),
        (Ability("refused", "the BPF program x is alone", True), "token_bucket", "the BPF program x is alone"),
        (Ability("refused", None, True), "token_bucket", "the warning of speed_limit_program with state=reloaded"),
        (Ability(None, None, True), "none", "no program is loaded"),
    ],
)
def test_where_nothing_is_paced_a_rule_says_why_and_shows_no_figures_of_before(
    ability: Ability, mode: str, words: str
) -> None:
    seen = of_rule(ability, LIMIT, BUSY, NOW)
    assert words in seen["reason"]
    assert seen == {"mode": mode, "reason": why_not(ability), **IDLE}


def test_a_rule_that_was_never_finished_limits_nothing() -> None:
    seen = of_rule(ON, None, FairShare(), NOW)
    assert (seen["mode"], seen["reason"]) == ("none", "the rule is unfinished: run its task again")


@pytest.mark.parametrize(
    ("rate", "share", "mode"),
    [
        (2**32 - 2, 0, "paced"),
        (2**32 - 1, 0, "token_bucket"),
        (2**33, 2**32 - 1, "token_bucket"),
        (2**33, 2**31, "paced"),
    ],
)
def test_a_connection_that_may_send_more_than_a_socket_can_be_told_is_not_paced(
    rate: int, share: int, mode: str
) -> None:
    seen = of_rule(ON, Limit(rate, rate), BUSY._replace(share=share), NOW)
    assert seen["mode"] == mode
    assert (seen["reason"] is None) is (mode == "paced")


@pytest.mark.parametrize(
    ("ability", "words"),
    [
        (ON, "another program"),
        (ON._replace(adopts=False), "only Linux 6.12 and newer"),
        (ON._replace(adopts=False, settles=False, refuses_settling=True), "the kernel refuses settle_sockets"),
    ],
)
def test_some_connections_that_do_not_pace_themselves_are_a_reason(ability: Ability, words: str) -> None:
    seen = of_rule(ability, LIMIT, BUSY._replace(unpaced_before=2), NOW)
    assert (seen["mode"], seen["unpaced_connections"]) == ("paced", 2)
    assert seen["reason"].startswith("some connections are not paced: ")
    assert words in seen["reason"]
    more = of_rule(ability, LIMIT, BUSY._replace(unpaced_before=3, active_before=17), NOW)
    assert (more["unpaced_connections"], more["reason"]) == (3, seen["reason"])


@pytest.mark.parametrize(
    ("ability", "words"),
    [
        (ON, None),
        (ON._replace(adopts=False), "not paced: only Linux 6.12"),
        (ON._replace(adopts=False, settles=False), "only Linux 6.1 "),
        (ON._replace(adopts=False, settles=False, refuses_settling=True), "refuses settle_sockets"),
        (ON._replace(state="off", adopts=False, settles=False), None),
    ],
)
def test_what_open_connections_do_not_follow_is_told(ability: Ability, words: str | None) -> None:
    reason = about(ability)["open_connections_reason"]
    assert reason is None if words is None else words in reason
