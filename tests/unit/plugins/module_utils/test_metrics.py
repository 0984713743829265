# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics, as the official client's parser reads them."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import metrics, pacing, policy, use
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import State
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import DROPS, NOTICES, Counters
from prometheus_client.parser import text_string_to_metric_families

LIMIT = policy.Limit(*(1_000_000 for _field in policy.LIMIT))
ABLE = pacing.Ability("on", None, adopts=True)
# A program's own figures, in which nothing has been sent yet.
QUIET = State()

DOCS = Path(__file__).parents[4] / "docs"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def rule(name: str = "backup", **changes: t.Any) -> dict[str, t.Any]:
    counters = Counters(
        packets=7, bytes=9000, dropped_bytes=3000, drops=(0, 2, 0, 0, 0, 0, 0, 0), notices=(0,) * 8, delayed_packets=5
    )
    return {
        "name": name,
        **policy.facts(LIMIT, policy.InPlace(), False),
        "pids": [1, 2, 3],
        "counters": counters.about(),
        "pacing": pacing.of_rule(ABLE, LIMIT, QUIET.fair, 0),
        "use": use.of_rule(ABLE, LIMIT, QUIET, 0),
        **changes,
    }


def seen(*rules: dict[str, t.Any], **changes: t.Any) -> dict[str, t.Any]:
    return {"program": {"identity": "source:1"}, "rules": list(rules), "unseen": [], **changes}


def read(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_a_rule_is_measured() -> None:
    found = read(
        metrics.render(seen(rule(pacing={**rule()["pacing"], "longest_round_trip_us": 850, "fair_share": 250})))
    )
    backup = ("rule", "backup")
    assert found["speed_limiter_up", ()] == found["speed_limiter_program_loaded", ()] == 1
    assert found["speed_limiter_rules", ()] == 1
    for name, value in {
        "limit_bytes_per_second": 1_000_000,
        "bucket_bytes": 1_000_000,
        "processes": 3,
        "limited": 1,
        "paced": 1,
        "each": 0,
        "utilization_ratio": 0,
        "binds": 0,
        "packets_total": 7,
        "bytes_total": 9000,
        "dropped_bytes_total": 3000,
        "delayed_packets_total": 5,
        "fair_share_bytes_per_second": 250,
        "longest_round_trip_seconds": 0.00085,
    }.items():
        assert found[f"speed_limiter_rule_{name}", (backup,)] == value, name
    drops = {
        reason: found["speed_limiter_rule_dropped_packets_total", (("reason", reason), backup)] for reason in DROPS
    }
    assert drops.pop("empty") == 2 and set(drops.values()) == {0}
    assert all(("speed_limiter_rule_congestion_notices_total", (("reason", one), backup)) in found for one in NOTICES)
    states = {labels[1][1] for name, labels in found if name == "speed_limiter_rule_connections"}
    assert states == {"active", "unpaced", "waiting", "waiting_elsewhere"}


def test_where_each_cgroup_has_the_rate_for_itself_the_fullest_is_told() -> None:
    """Ten cgroups at half of their limit send five times the limit of one."""
    used = {**rule()["use"], "rate": 5_000_000, "utilization": 0.5}
    found = read(metrics.render(seen(rule("users", each=True, use=used), rule("idle", use=None))))
    assert found["speed_limiter_rule_each", (("rule", "users"),)] == 1
    assert found["speed_limiter_rule_utilization_ratio", (("rule", "users"),)] == 0.5
    assert ("speed_limiter_rule_utilization_ratio", (("rule", "idle"),)) not in found


def test_no_query_compares_what_all_cgroups_send_with_the_limit_of_one() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    dashboard = json.loads((DOCS / "metrics" / "dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [line for block in re.findall("```text\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    limits = [expression for expression in asked if "rule_limit_bytes_per_second" in expression]
    assert len(limits) == 3
    assert all("unless speed_limiter_rule_each == 1" in expression for expression in limits)


def test_names_and_units_are_as_the_conventions_have_them() -> None:
    for family in text_string_to_metric_families(metrics.render(seen(rule()))):
        assert re.fullmatch("speed_limiter_[a-z_]+", family.name) and family.documentation.endswith(".")
        assert family.type in ("counter", "gauge")
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)
        # Base units, in full.
        assert not re.search("(_bits|_ms|_us|_kib|bps)", family.name)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", 'a\\"', "a}b 1", "# HELP x", "ä→"])
def test_labels_are_escaped(name: str) -> None:
    found = read(metrics.render(seen(rule(name), rule("other"))))
    assert found["speed_limiter_rule_bytes_total", (("rule", name),)] == 9000


def test_what_is_not_known_is_not_there() -> None:
    unknown = {**rule(), **policy.facts(None, None, None), "counters": None, "pacing": None, "use": None}
    found = read(metrics.render(seen(unknown, program=None, unseen=["libbpf was not found"])))
    assert found == {
        ("speed_limiter_up", ()): 0,
        ("speed_limiter_rules", ()): 1,
        ("speed_limiter_rule_processes", (("rule", "backup"),)): 3,
    }
    assert read(metrics.render(seen(rules=None, program=None, unseen=["why"]))) == {("speed_limiter_up", ()): 0}


def test_nothing_is_loaded() -> None:
    found = read(metrics.render(seen(program=None)))
    assert found == {
        ("speed_limiter_up", ()): 1,
        ("speed_limiter_program_loaded", ()): 0,
        ("speed_limiter_rules", ()): 0,
    }


def test_large_counters_keep_every_digit() -> None:
    counters = Counters(packets=1, bytes=2**63 + 1).about()
    assert f'speed_limiter_rule_bytes_total{{rule="backup"}} {2**63 + 1}\n' in metrics.render(
        seen(rule(counters=counters))
    )


def test_each_metric_is_told_once_before_its_samples() -> None:
    text = metrics.render(seen(rule("a"), rule("b")))
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            current = line.split()[2]
        elif not line.startswith("#"):
            assert re.match(r"[a-z_]+", line)[0] == current  # type: ignore[index]


def test_every_metric_is_documented() -> None:
    told = set(re.findall(r"`(speed_limiter_[a-z_]+)`", (DOCS / "metrics.md").read_text(encoding="utf-8")))
    assert told == {f"{metrics.PREFIX}_{metric.name}" for metric in (*metrics.HOST, *metrics.RULE)}


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((DOCS / "metrics" / "dashboard.json").read_text(encoding="utf-8"))
    known = {f"{metrics.PREFIX}_{metric.name}": metric for metric in (*metrics.HOST, *metrics.RULE)}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    for expression in asked:
        for name in re.findall("speed_limiter_[a-z_]+", expression):
            assert name in known, expression
            # A counter is never shown as it is.
            assert (known[name].kind == "counter") == (f"rate({name}" in expression), expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
