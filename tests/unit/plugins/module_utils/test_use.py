# SPDX-License-Identifier: GPL-3.0-or-later
"""core/use.py: what a user reads about how much of a limit is used, which rule binds, and why not all is used."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import use
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import FairShare, State, Use
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.pacing import Ability
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters

SECOND = 1_000_000_000
NOW = 1000 * SECOND
RATE = 2_500_000
LIMIT = Limit(rate=RATE, bucket=RATE)
ON = Ability("on", None, adopts=True)
OFF = Ability("off", None, adopts=False)
IDLE = FairShare()
PASSED = 10**12  # bytes, before the span that is looked at

WAITING = FairShare(
    share=RATE,
    paced_rate=RATE,
    clock_ns=NOW,
    epoch_start_ns=NOW - 5_000_000,
    period_ns=10_000_000,
    lag_ns=850_000,
    active=1,
    active_before=1,
    holders=1,
    holders_before=1,
    burst=3000,
)
ELSEWHERE = WAITING._replace(holders=0, holders_before=0, elsewhere=1, elsewhere_before=1)
NOBODY = WAITING._replace(holders=0, holders_before=0)


def state(
    fair: FairShare = IDLE,
    before: float = 1.0,
    passed: float | None = None,
    elapsed: float = 0.4,
    tokens: float = 1.0,
    withheld: float | None = None,
) -> State:
    """``before``: what the span before had, ``passed``: this one, ``tokens``: the bucket; all as parts of a second at
    the rate, ``elapsed`` in seconds of this span. By default the two spans are alike. ``withheld``: how many seconds
    ago a packet was dropped or got a notice.
    """
    within = before * min(elapsed, 1.0) if passed is None else passed
    return State(
        tokens=int(tokens * RATE),
        refilled_ns=NOW,
        counters=Counters(bytes=PASSED + int(within * RATE)),
        use=Use(
            NOW - int(elapsed * SECOND),
            PASSED,
            int(before * RATE),
            0 if withheld is None else NOW - int(withheld * SECOND),
        ),
        fair=fair,
    )


def of(seen: State, ability: Ability = ON, limit: Limit | None = LIMIT) -> dict[str, Any]:
    return use.of_rule(ability, limit, seen, NOW)


# ---- the rate


@pytest.mark.parametrize(
    ("before", "passed", "elapsed", "expected"),
    [
        pytest.param(0.5, 0.0, 0.0, 0.5, id="a span that has just begun: the one before"),
        pytest.param(0.5, 0.05, 0.1, 0.5, id="both spans alike, early"),
        pytest.param(0.5, 0.45, 0.9, 0.5, id="both spans alike, late"),
        pytest.param(0.5, 0.5, 1.0, 0.5, id="a span that is over when the next packet comes"),
        pytest.param(0.0, 0.3, 0.3, 0.3, id="idle before: what passed since then"),
        pytest.param(0.001, 2.0, 0.1, 2.0009, id="the bucket at once after a pause of minutes"),
        pytest.param(1.0, 0.0, 0.5, 0.5, id="half a second without a packet"),
        pytest.param(1.0, 1.0, 1.5, 0.5, id="no packet came that would have ended the span"),
        pytest.param(1.0, 1.0, 1.999, 0.001, id="almost two seconds"),
        pytest.param(1.0, 1.0, 2.0, 0.0, id="nothing for a second at least"),
        pytest.param(1.0, 1.0, 86_400.0, 0.0, id="nothing for a day"),
    ],
)
def test_the_rate_is_what_passed_in_the_last_second(
    before: float, passed: float, elapsed: float, expected: float
) -> None:
    seen = of(state(before=before, passed=passed, elapsed=elapsed))
    assert seen["rate"] == pytest.approx(expected * RATE, abs=2)
    assert seen["utilization"] == round(expected, 3)


def test_a_rule_that_nothing_was_ever_sent_under_is_not_used() -> None:
    assert of(State(tokens=LIMIT.bucket)) == {
        "rate": 0,
        "utilization": 0.0,
        "binds": False,
        "binds_seconds": None,
        "waiting_elsewhere": 0,
        "reason": None,
    }


def test_the_first_packet_ever_begins_the_first_span() -> None:
    seen = State(counters=Counters(bytes=1500), use=Use(NOW - 1000, 0, 0))
    assert use.measured_rate(seen, NOW) == 1500


def test_a_packet_that_came_after_the_clock_was_read_is_no_negative_time() -> None:
    assert of(state(before=0.7, passed=0.0, elapsed=-0.001))["rate"] == int(0.7 * RATE)


def test_what_another_rule_took_back_after_the_span_had_begun_is_no_negative_rate() -> None:
    seen = state(before=0.0)._replace(counters=Counters(bytes=PASSED - 1500))
    assert of(seen)["rate"] == 0


def test_a_rule_that_was_never_finished_has_no_limit_that_could_be_used() -> None:
    seen = of(state(WAITING, before=0.5), limit=None)
    assert (seen["rate"], seen["utilization"], seen["binds"], seen["reason"]) == (RATE // 2, None, False, None)


# ---- which rule binds


@pytest.mark.parametrize(
    ("fair", "binds", "waiting_elsewhere"), [(WAITING, True, 0), (ELSEWHERE, False, 1), (NOBODY, False, 0)]
)
def test_the_rule_that_connections_wait_for_binds(fair: FairShare, binds: bool, waiting_elsewhere: int) -> None:
    seen = of(state(fair))
    assert (seen["binds"], seen["waiting_elsewhere"], seen["reason"]) == (binds, waiting_elsewhere, None)


def test_of_a_saturated_connection_under_two_rules_the_tighter_one_binds_and_the_other_says_so() -> None:
    inner, outer = of(state(ELSEWHERE, before=0.5)), of(state(WAITING))
    assert (inner["binds"], inner["waiting_elsewhere"], inner["reason"]) == (False, 1, use.ANOTHER_RULE)
    assert (outer["binds"], outer["waiting_elsewhere"], outer["reason"]) == (True, 0, None)


def test_some_may_wait_here_and_others_elsewhere() -> None:
    both = WAITING._replace(active=3, active_before=3, holders=1, elsewhere=2)
    seen = of(state(both))
    assert (seen["binds"], seen["waiting_elsewhere"]) == (True, 2)


def test_an_epoch_that_has_just_begun_does_not_hide_who_waits() -> None:
    begun = ELSEWHERE._replace(active=0, elsewhere=0)
    assert of(state(begun))["waiting_elsewhere"] == 1


def test_who_waited_long_ago_does_not_wait_any_more() -> None:
    old = {"epoch_start_ns": NOW - 5 * SECOND}
    assert not of(state(WAITING._replace(**old), elapsed=5.0))["binds"]
    assert of(state(ELSEWHERE._replace(**old), elapsed=5.0))["waiting_elsewhere"] == 0


@pytest.mark.parametrize("ability", [ON, OFF])
def test_what_waits_in_its_device_is_held_back_also_where_the_limit_is_not_used_up(ability: Ability) -> None:
    seen = state(before=0.5)
    told = of(seen._replace(use=seen.use._replace(delayed_ns=NOW - SECOND // 2)), ability)
    assert (told["binds"], told["reason"]) == (True, None)


@pytest.mark.parametrize("ability", [ON, OFF])
@pytest.mark.parametrize("tokens", [-0.01, 0.0, 1.0])
@pytest.mark.parametrize(
    ("withheld", "binds"), [(None, False), (0.0, True), (-0.001, True), (0.999, True), (1.0, False), (-1.0, False)]
)
def test_datagrams_do_not_wait_but_what_withheld_some_within_a_second_binds_them(
    ability: Ability, tokens: float, withheld: float | None, binds: bool
) -> None:
    """Whatever the bucket holds at the moment of the look: it fills up between two datagrams, or two hundred."""
    seen = of(state(before=1.0, tokens=tokens, withheld=withheld), ability)
    assert (seen["binds"], seen["reason"]) == (binds, None)


def test_a_busy_machine_that_sends_a_flood_late_does_not_hide_who_binds() -> None:
    assert of(state(before=0.8, withheld=0.1))["binds"]


def test_in_the_first_second_after_the_boot_nothing_was_withheld_before() -> None:
    assert not use.of_rule(ON, LIMIT, State(tokens=RATE), SECOND // 2)["binds"]


def test_a_lump_that_took_a_small_bucket_does_not_make_a_rule_bind() -> None:
    small = Limit(RATE, 4096)
    seen = state(before=1.0)._replace(tokens=100)
    assert not of(seen, limit=small)["binds"]


@pytest.mark.parametrize(
    ("seen", "seconds"),
    [
        (state(WAITING), None),  # counted by an earlier version
        (state(WAITING)._replace(use=Use(since_ns=NOW - 90 * SECOND)), 90.0),
        (state(WAITING)._replace(use=Use(since_ns=NOW + 5)), 0.0),  # another CPU was faster than our look
        (state(NOBODY)._replace(use=Use(since_ns=NOW - 90 * SECOND)), None),
    ],
)
def test_since_when_a_rule_binds_is_told_while_it_does(seen: State, seconds: float | None) -> None:
    assert of(seen)["binds_seconds"] == seconds


# ---- why not all of it is used


@pytest.mark.parametrize("before", [0.96, 1.0, 1.3])
def test_a_limit_that_is_used_needs_no_reason(before: float) -> None:
    assert of(state(WAITING, before=before))["reason"] is None


@pytest.mark.parametrize("before", [0.0, 0.3, 0.9])
def test_a_limit_that_nobody_waits_for_needs_none_either(before: float) -> None:
    assert of(state(NOBODY, before=before))["reason"] is None


def test_at_a_low_limit_the_packet_that_comes_next_may_be_a_good_part_of_a_second() -> None:
    slow = Limit(8_000, 8_000)
    fair = WAITING._replace(share=8_000, burst=6_000)
    seen = State(8_000, NOW, Counters(bytes=3_000), Use(NOW - SECOND, 0, 8_000), fair)
    assert use.of_rule(ON, slow, seen, NOW)["reason"] is None


REASONS = {
    "just begun": (state(WAITING, before=0.0, passed=0.4), use.BEGUN),
    "begun with the bucket": (state(WAITING, before=0.0, passed=0.5, elapsed=0.2), use.BEGUN),
    "begun, too short a while ago to tell": (state(WAITING, before=0.0, passed=0.01, elapsed=0.01), use.UNKNOWN),
    "ahead of the rate": (state(WAITING._replace(clock_ns=NOW + SECOND), before=0.5), use.REFUSED),
    "ahead, but far away": (
        state(WAITING._replace(clock_ns=NOW + 400_000_000, lag_ns=200_000_000), before=0.5),
        use.FAR,
    ),
    "the bucket in debt": (state(WAITING, before=0.5, tokens=-0.2), use.REFUSED),
    "datagrams": (state(WAITING._replace(foreign_rate=RATE // 2), before=0.5), use.FOREIGN),
    "next to no datagrams": (state(WAITING._replace(foreign_rate=RATE // 50), before=0.5), use.UNKNOWN),
    "one that is not paced": (
        state(WAITING._replace(active=2, active_before=2, unpaced=1, unpaced_before=1), before=0.5),
        use.SOME_NOT_PACED,
    ),
    "told too little": (state(WAITING._replace(share=RATE // 5), before=0.21), use.SHARE),
    "many are told too little": (
        state(WAITING._replace(active=40, active_before=40, holders=40, share=RATE // 100), before=0.41),
        use.SHARE,
    ),
    "far away": (state(WAITING._replace(lag_ns=100_000_000), before=0.5), use.FAR),
    "packets were refused": (
        state(WAITING, before=0.5)._replace(counters=Counters(100_000, PASSED + RATE // 5, drops=(0, 1_001))),
        use.DROPPED,
    ),
    "next to none were refused": (
        state(WAITING, before=0.5)._replace(counters=Counters(100_000, PASSED + RATE // 5, drops=(0, 1_000))),
        use.UNKNOWN,
    ),
    "told enough, and near": (state(WAITING, before=0.5), use.UNKNOWN),
    "not told anything yet": (state(WAITING._replace(share=0), before=0.5), use.UNKNOWN),
}


@pytest.mark.parametrize(("seen", "reason"), REASONS.values(), ids=list(REASONS))
def test_why_a_limit_is_not_used_although_connections_wait_for_it(seen: State, reason: str) -> None:
    assert of(seen)["binds"]
    assert of(seen)["reason"] == reason


def test_connections_that_are_not_paced_do_not_wait_but_lose_packets() -> None:
    unpaced = NOBODY._replace(unpaced=1, unpaced_before=1)
    seen = of(state(unpaced, before=0.5, withheld=0.01))
    assert (seen["binds"], seen["reason"]) == (True, use.SOME_NOT_PACED)
    seen = of(state(before=0.5, withheld=0.01), OFF)
    assert (seen["binds"], seen["reason"]) == (True, use.NOT_PACED)


def test_where_nothing_is_paced_what_the_controller_knew_before_says_nothing() -> None:
    for fair in (WAITING, ELSEWHERE):
        seen = of(state(fair, before=0.5), OFF)
        assert (seen["binds"], seen["waiting_elsewhere"], seen["reason"]) == (False, 0, None)
        assert seen["utilization"] == 0.5


@pytest.mark.parametrize("text", [value for name, value in vars(use).items() if name.isupper() and name[0] != "_"])
def test_no_reason_has_figures_or_ends_like_a_sentence(text: str) -> None:
    """A report tells hosts with the same reason together, and puts its own punctuation behind it."""
    assert not re.search(r"\d", text)
    assert not text.endswith(".")
