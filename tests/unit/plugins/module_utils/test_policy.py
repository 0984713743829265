# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of a rule's fields: what follows from it, and that the modules' documentation says the same."""

from __future__ import annotations

import importlib
import typing as t

import pytest
import yaml
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import policy
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import (
    FIELDS,
    IN_PLACE,
    LIMIT,
    InPlace,
    Limit,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.argspec import rule_spec

NAMES = [field.name for field in FIELDS]
# What a result has of a field, where the option takes text.
RETURNED = {"str": "int"}
MODULES = "ansible_collections.speed_limiter.ebpf.plugins.modules."


def documented(module: str, part: str) -> dict[str, t.Any]:
    text: str = getattr(importlib.import_module(f"{MODULES}{module}"), part)
    found: dict[str, t.Any] = yaml.safe_load(text)
    return found


def test_what_is_kept_has_the_fields_of_the_table_in_its_order() -> None:
    for kept, fields in ((Limit, LIMIT), (InPlace, IN_PLACE)):
        assert list(kept._fields) == [field.name for field in fields]
    assert all(field.config for field in LIMIT)
    assert set(InPlace._field_defaults) == set(InPlace._fields)


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_each_field_is_an_option_of_both_modules_with_the_type_of_the_table(field: policy.Field) -> None:
    one = documented("speed_limit_rule", "DOCUMENTATION")["options"]
    many = documented("speed_limit_rules", "DOCUMENTATION")["options"]["rules"]["suboptions"]
    for where in (one, many, rule_spec()):
        said = {key: value for key, value in where[field.name].items() if key != "description"}
        assert said == field.option


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_each_field_is_returned_with_its_type(field: policy.Field) -> None:
    said = documented("speed_limit_rule", "RETURN")["rule"]["contains"][field.name]
    assert said["type"] == RETURNED.get(field.option["type"], field.option["type"])


def test_facts_have_every_field_also_of_a_rule_that_could_not_be_read() -> None:
    assert policy.facts(Limit(rate=2, bucket=3), InPlace(each=True), False) == {
        "rate": 2,
        "bucket": 3,
        "each": True,
        "persistent": False,
    }
    assert policy.facts(None, None, None) == dict.fromkeys(NAMES)


def test_false_is_given_too() -> None:
    assert policy.parse("", {"each": False, "persistent": None}) == {"each": False}


@pytest.mark.parametrize("old", [False, True])
def test_without_a_word_about_it_what_holds_for_places_stays(old: bool) -> None:
    assert policy.wanted_in_place({"rate": 5}, InPlace(each=old)) == InPlace(each=old)
    assert policy.wanted_in_place({"each": not old}, InPlace(each=old)) == InPlace(each=not old)


def test_only_what_is_given_is_parsed_and_an_error_names_the_option() -> None:
    assert policy.parse("", {"name": "web", "rate": "1m", "bucket": None}) == {"rate": 1 << 20}
    with pytest.raises(LimiterError, match=r"^rules\[3\]: bucket: '1'"):
        policy.parse("rules[3]: ", {"bucket": "1"})


@pytest.mark.parametrize(
    ("given", "old", "wanted"),
    [
        ({"rate": 5}, None, {"rate": 5, "bucket": 5}),
        ({"rate": 5}, Limit(1, 2), {"rate": 5, "bucket": 5}),
        ({"bucket": 6}, Limit(1, 2), {"rate": 1, "bucket": 6}),
        ({}, Limit(1, 2), {"rate": 1, "bucket": 2}),
        ({"bucket": 6}, None, {"rate": None, "bucket": 6}),
    ],
)
def test_the_bucket_follows_a_rate_that_is_given_and_nothing_else_changes(
    given: dict[str, int], old: Limit | None, wanted: dict[str, int | None]
) -> None:
    assert policy.wanted(given, old) == wanted
