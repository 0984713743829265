# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules' documentation says of each other's names and forms, and that their examples are accepted."""

from __future__ import annotations

import importlib
import typing as t

import pytest
import yaml
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import departure, pacing, use
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Program

COLLECTION = "ansible_collections.speed_limiter.ebpf.plugins.modules."
MODULES = (
    "speed_limit_rule",
    "speed_limit_rules",
    "speed_limit_program",
    "speed_limit_purge",
    "speed_limit_info",
    "speed_limit_trace",
    "speed_limit_command",
    "speed_limit_report",
)


def documented(module: str, part: str) -> t.Any:
    return yaml.safe_load(getattr(importlib.import_module(f"{COLLECTION}{module}"), part))


def known(options: dict[str, t.Any]) -> set[str]:
    return {name for option, about in options.items() for name in (option, *about.get("aliases", ()))}


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_options_that_there_are(module: str) -> None:
    options = documented(module, "DOCUMENTATION")["options"]
    tasks = [task for task in documented(module, "EXAMPLES") if f"speed_limiter.ebpf.{module}" in task]
    assert len(tasks) >= 2
    for task in tasks:
        given = task[f"speed_limiter.ebpf.{module}"] or {}
        assert given.keys() <= known(options), task["name"]
        rules = given.get("rules", ())
        for rule in rules if isinstance(rules, list) else ():
            assert rule.keys() <= known(options["rules"]["suboptions"]), task["name"]


def test_what_has_one_name_has_one_form() -> None:
    returned = {module: documented(module, "RETURN") for module in MODULES}
    program, info = (returned[f"speed_limit_{module}"]["program"] for module in ("program", "info"))
    assert program["type"] == info["type"] == "dict"
    assert program["contains"].keys() <= info["contains"].keys()
    assert program["contains"]["pacing"]["contains"] == info["contains"]["pacing"]["contains"]
    lists = [returned[f"speed_limit_{module}"]["rules"] for module in ("rules", "info")]
    lists += [returned["speed_limit_rules"]["previous"], returned["speed_limit_purge"]["removed"]["contains"]["rules"]]
    assert {(entry["type"], entry["elements"]) for entry in lists} == {("list", "dict")}
    rule = returned["speed_limit_rule"]["rule"]["contains"]
    for entry in (*lists, returned["speed_limit_rule"]["previous"]):
        assert "form" in str(entry["description"])
        for name, about in entry.get("contains", {}).items():
            assert name not in rule or shape(about) == shape(rule[name]), name
        for one in entry.get("sample", ()):
            assert one.keys() <= rule.keys() | entry.get("contains", {}).keys()
            assert one.keys() <= rule.keys() and one["counters"].keys() <= rule["counters"]["sample"].keys()


def shape(about: dict[str, t.Any]) -> tuple[t.Any, ...]:
    inner = {name: shape(part) for name, part in about.get("contains", {}).items()}
    return about["type"], about.get("elements"), inner


def samples(part: t.Any) -> t.Iterator[tuple[str, str]]:
    """Samples of results that are sentences, by the names of these."""
    for name, about in part.items():
        if name.endswith("reason") and isinstance(about.get("sample"), str):
            yield name, about["sample"]
        yield from samples(about.get("contains", {}))


@pytest.mark.parametrize("module", MODULES)
def test_sentences_in_samples_are_those_that_modules_say(module: str) -> None:
    off = pacing.Ability("off", None, adopts=False, settles=False)
    refusing = pacing.Ability("on", None, adopts=False, settles=False, refuses_settling=True)
    said = {pacing.about(off)["reason"], pacing.about(refusing)["open_connections_reason"], use.ANOTHER_RULE}
    said.add(departure.about(Program("", "/", 0, 0, departure="off"))["reason"])
    said.add("this task or an ancestor of it")
    for _name, sample in samples(documented(module, "RETURN") or {}):
        assert sample in said
