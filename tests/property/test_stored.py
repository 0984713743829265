# SPDX-License-Identifier: GPL-3.0-or-later
"""What is stored of a rule: it comes back as it was, and whatever else lies there is refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import rates, stored
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import (
    File,
    Refused,
    Rule,
    StoredPlace,
    StoredRule,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import InPlace, Limit
from hypothesis import given
from hypothesis import strategies as st

LETTERS = st.characters(blacklist_characters="/*\0\n", blacklist_categories=["Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))
STARRED = st.builds("{}*{}".format, st.text("ab.-", max_size=9), st.text("ab.-", max_size=9))
PATHS = st.lists(st.one_of(NAMES, STARRED), max_size=5).map(lambda names: "/" + "/".join(names))
PLACES = st.one_of(
    PATHS.map(StoredPlace),
    st.tuples(PATHS, st.sampled_from(["unit", "container"]), NAMES).map(lambda drawn: StoredPlace(*drawn)),
    st.tuples(PATHS, st.just("user"), NAMES, st.integers(0, 1 << 32)).map(lambda drawn: StoredPlace(*drawn)),
)
LIMITS = st.builds(
    Limit, rate=st.integers(rates.MIN_RATE, rates.MAX_RATE), bucket=st.integers(rates.MIN_BUCKET, rates.MAX_BUCKET)
)
RULES = st.builds(
    lambda limit, places, each: StoredRule(
        limit, tuple(sorted({one.path: one for one in places}.values())), InPlace(each=each and bool(places))
    ),
    LIMITS,
    st.lists(PLACES, max_size=5),
    st.booleans(),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
)


def understood(value: Any) -> File:
    """As it is read from a file."""
    return stored.from_json(json.loads(json.dumps(value)))


@given(RULES)
def test_a_rule_comes_back_as_it_was_stored(rule: StoredRule) -> None:
    assert understood(stored.to_json(rule)) == rule


@given(RULES)
def test_a_rule_that_did_not_change_is_stored_as_it_was(rule: StoredRule) -> None:
    loaded = Rule("web", 7, rule.limit, tuple(place.path for place in rule.places), (), rule.in_place)
    assert stored.form(loaded, rule) == rule


@given(ANYTHING)
def test_anything_is_a_rule_or_is_refused(value: Any) -> None:
    file = understood(value)
    assert isinstance(file, StoredRule) or (file.why and "\n" not in file.why)


@given(RULES, st.data())
def test_a_rule_of_which_one_part_is_something_else_is_understood_or_refused(
    rule: StoredRule, data: st.DataObject
) -> None:
    value = stored.to_json(rule)
    key = data.draw(st.sampled_from(sorted(value)))
    value[key] = data.draw(ANYTHING)
    file = understood(value)
    assert isinstance(file, StoredRule) or (file.why and len(file.why) < 400)


@given(RULES, st.text(min_size=1).filter(lambda key: key != "each"))
def test_what_an_older_version_does_not_know_is_refused_and_not_left_out(rule: StoredRule, key: str) -> None:
    value = stored.to_json(rule)
    if key not in value:
        file = understood({**value, key: 1})
        assert isinstance(file, Refused) and "does not know its field" in file.why
    for place in value["places"]:
        place["until"] = 5
        file = understood(value)
        assert isinstance(file, Refused) and "does not know its field 'until'" in file.why
        break


@given(RULES, st.integers(stored.SCHEMA + 1))
def test_a_newer_schema_is_told_as_one(rule: StoredRule, schema: int) -> None:
    file = understood({**stored.to_json(rule), "schema": schema, "what": "ever"})
    assert isinstance(file, Refused) and file.newer and "its schema is" in file.why
