# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a fleet: what is counted and told together, what a hostile host can do to it, and its three forms."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import typing as t
from pathlib import Path

import jsonschema
import pytest
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report import page, text
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.fleet import Fleet
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.hosts import STATES, Answers, Host, read
from ansible_collections.speed_limiter.ebpf.tests.support import fleet as synthetic
from ansible_collections.speed_limiter.ebpf.tests.support.pages import reported

CREATED = "2026-11-27T13:00:00Z"
SEEN: dict[str, t.Any] = {"rules": [], "host": {"kernel": "6.1.0", "missing": []}}
SAME: dict[str, t.Any] = {
    "failed": False,
    "rules": [],
    "previous": [],
    "program_actions": [],
    "unenforced": [],
    "diff": {"before": "", "after": ""},
}
SLOWER: dict[str, t.Any] = {
    **SAME,
    "rules": [{"name": "backup"}],
    "previous": [{"name": "backup"}],
    "diff": {"before": "backup: 2 B/s\n", "after": "backup: 1 B/s\n"},
}
MADE: dict[str, t.Any] = {
    **SAME,
    "rules": [{"name": "backup"}],
    "diff": {"before": "backup: absent\n", "after": "backup: 1 B/s\n"},
}
HOSTILE = ("<script>alert(1)</script>", "</script><!--", "\u2028\u2029", "\x1b[2J\u202e", "a\nb: 1 as wanted", "\udc80")


def host(name: str = "a", seen: object = ..., compared: object = ..., named: object = ("backup",)) -> Host:
    """As wanted, where nothing else is said."""
    seen, compared = (SEEN if seen is ... else seen), (SAME if compared is ... else compared)
    return read(name, Answers(seen, compared, named))


def fleet(*hosts: Host) -> Fleet:
    return Fleet(hosts, CREATED)


def data(rendered: str) -> t.Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', rendered, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("seen", "compared", "state", "exposed"),
    [
        (SEEN, SAME, "as_wanted", False),
        (SEEN, SLOWER, "differs", False),
        (SEEN, MADE, "differs", True),
        (
            SEEN,
            {
                **SAME,
                "program_actions": ["loaded"],
                "diff": {"before": "program: not loaded\n", "after": "program: loaded\n"},
            },
            "differs",
            True,
        ),
        (SEEN, {**SAME, "unenforced": ["the program does not run for /a"]}, "not_limited", True),
        (SEEN, {**SLOWER, "unenforced": ["the program does not run for /a"]}, "not_limited", True),
        (SEEN, {"failed": True, "msg": "too old", "kind": "kernel_too_old"}, "cannot", True),
        (SEEN, {"failed": True, "msg": "'5mb' is not a rate", "kind": "bad_rate"}, "failed", False),
        (SEEN, {"failed": True, "msg": "two limiters limit", "kind": "hidden_limiter"}, "failed", False),
        (SEEN, None, "failed", False),
        ({"unreachable": True, "msg": "no route to host"}, {"skipped": True}, "unreachable", False),
        (SEEN, {"unreachable": True, "msg": "no route to host"}, "unreachable", False),
        (None, None, "failed", False),
    ],
)
def test_a_host_has_one_state(seen: object, compared: object, state: str, exposed: bool) -> None:
    found = host(seen=seen, compared=compared)
    assert (found.state, found.exposed) == (state, exposed)
    assert fleet(found).counts == {**dict.fromkeys(STATES, 0), state: 1}


def test_hosts_that_differ_alike_are_told_together_the_most_frequent_first() -> None:
    hosts = [host(name, compared=SLOWER) for name in "abc"] + [host(name, compared=MADE) for name in "de"] + [host("f")]
    shown = text.render(fleet(*hosts))
    assert shown.splitlines() == [
        "6 hosts: 1 as wanted, 5 differ, 0 failed, 0 unreachable",
        "",
        "3 differ: a, b, c",
        "    - backup: 2 B/s",
        "    + backup: 1 B/s",
        "",
        "2 differ: d, e",
        "    - backup: absent",
        "    + backup: 1 B/s",
    ]


def test_hosts_that_cannot_be_reached_are_told_together_whatever_their_addresses() -> None:
    lost = [
        read(name, Answers({"unreachable": True, "msg": f"connect to {address} port 22: refused"}, None, None, address))
        for name, address in (("a", "192.0.2.1"), ("b", "192.0.2.11"))
    ]
    assert "2 unreachable: a, b\n    connect to HOST port 22: refused\n" in text.render(fleet(*lost))


def test_rules_that_no_variable_names_are_told_except_automatic_ones() -> None:
    seen = {**SEEN, "rules": [{"name": name} for name in ("backup", "old", "pid-17", "pid-x")]}
    assert host(seen=seen).extra == ("old", "pid-x")
    # Not known where a variable is wrong, which the comparison has told.
    assert host(seen=seen, named=None).extra == ()
    assert "1 for which no variable names a rule: a" in text.render(fleet(host(named=[])))


def test_what_a_reboot_ends_is_told() -> None:
    rules = [
        {"name": "a", "persistent": True},
        {"name": "b", "persistent": False},
        {"name": "pid-7", "persistent": False},
    ]
    problem = "/etc/speed_limiter/rules.d/c.json: it is no JSON"
    found = host(seen={**SEEN, "rules": rules, "boot": {"problems": [problem]}}, named=["a", "b"])
    assert found.forgotten == ("b",)
    shown = text.render(fleet(found, host("b"), host("old", seen={**SEEN, "rules": [{"name": "a"}]}, named=["a"])))
    assert "1 with rules that do not survive a reboot: a\n    b\n" in shown
    assert f"1 of which not all stored rules are applied, or will be: a\n    {problem}\n" in shown
    assert json.loads(page.as_json(fleet(found)))["hosts"][0]["boot_problems"] == [problem]
    assert data(page.render(fleet(found)))["hosts"][0][-3:-1] == [["b"], [problem]]


def test_a_rule_is_summed_up_over_the_fleet() -> None:
    def seen(rate: int | None, used: int | None, reason: str | None = None) -> dict[str, t.Any]:
        counters = {"packets": 10, "dropped_packets": 2, "dropped_bytes": 3000} if used is not None else None
        use = None if used is None else {"rate": used, "utilization": used / (rate or 1), "binds": used == rate}
        rule = {
            "name": "backup",
            "rate": rate,
            "counters": counters,
            "use": use,
            "pacing": {"mode": "paced", "reason": reason},
            "each": False,
        }
        return {**SEEN, "rules": [rule]}

    [rule] = fleet(host(seen=seen(100, 100)), host(seen=seen(300, 50, "off")), host(seen=seen(None, None))).rules()
    assert rule._asdict() == {
        "name": "backup",
        "hosts": 3,
        "slowest": 100,
        "fastest": 300,
        "limits": 400,
        "use": 150,
        "binds": 1,
        "packets": 20,
        "dropped_packets": 4,
        "dropped_bytes": 6000,
        "unpaced": 1,
        "utilization": 1.0,
        "each": 0,
    }


def test_of_each_the_fullest_cgroup_tells_how_near_the_limit_is() -> None:
    """Ten cgroups at half of their limit send five times the limit of one."""
    users = {"name": "users", "rate": 100, "each": True, "use": {"rate": 500, "utilization": 0.5, "binds": False}}
    found = fleet(host(seen={**SEEN, "rules": [users]}), host("b", {**SEEN, "rules": [{**users, "each": False}]}))
    assert [(rule.use, rule.utilization, rule.each) for [rule] in (one.rules for one in found.hosts)] == [
        (500, 0.5, True),
        (500, 0.5, False),
    ]
    [rule] = found.rules()
    assert (rule.utilization, rule.each) == (0.5, 1)
    shown = data(page.render(found))
    assert [kind[-1] for kind in shown["kinds"]] == [1, 0] and shown["hosts"][0][7][0][2:4] == [500, 0.5]


@pytest.mark.parametrize(
    ("asked", "hosts", "reason"),
    [
        ([], [SLOWER, None], None),
        (["any"], [SAME], None),
        (["any"], [SAME, None], "1 of 2 hosts are not known to be as wanted"),
        (["drift"], [SAME, None], "1 of 2 hosts failed, and are not known to be as wanted"),
        (["unlimited"], [SAME, None], "1 of 2 hosts failed, and are not known to be as wanted"),
        (["any", "drift"], [SAME, None], "1 of 2 hosts are not known to be as wanted"),
        (["drift"], [SLOWER, SAME], "1 of 2 hosts differ from what is wanted"),
        (["drift"], [{**SLOWER, "unenforced": ["why"]}], "1 of 1 hosts differ from what is wanted"),
        (["unlimited"], [SLOWER], None),
        (["unlimited"], [MADE], "on 1 of 1 hosts something that a rule is to limit is not limited"),
        (["drift", "unlimited"], [SLOWER], "1 of 1 hosts differ from what is wanted"),
    ],
)
def test_a_report_fails_for_what_was_asked(asked: list[str], hosts: list[t.Any], reason: str | None) -> None:
    assert (
        fleet(*(host(str(number), compared=answer) for number, answer in enumerate(hosts))).why_failed(asked) == reason
    )


@pytest.mark.parametrize(
    "odd", [7, True, "text", None, [1], {"a": 1}, float("nan"), float("inf"), 2**70, -1, ["\udc80"]]
)
def test_no_answer_keeps_other_hosts_out_of_the_report(odd: object) -> None:
    parts = ("name", "rate", "bucket", "each", "pids", "use", "pacing", "counters")
    figures = {
        "rate": odd,
        "packets": odd,
        "dropped_packets": odd,
        "binds": odd,
        "utilization": odd,
        "mode": odd,
        "reason": odd,
    }
    rules = [
        dict.fromkeys(parts, odd),
        {"name": "b", "rate": odd, "use": figures, "pacing": figures, "counters": figures},
    ]
    answers = [
        (odd, odd, odd),
        ({"rules": rules, "host": odd, "msg": odd}, {**dict.fromkeys(SAME, odd), "failed": False}, [odd]),
        (
            {"rules": [odd], "host": {"kernel": odd, "missing": odd}},
            {"failed": odd, "msg": odd, "kind": odd, "diff": odd},
            odd,
        ),
    ]
    found = fleet(*(read(f"odd{number}", Answers(*answer)) for number, answer in enumerate(answers)), host("good"))
    assert "good" in [name for name, *_rest in data(page.render(found))["hosts"]]
    assert json.loads(page.as_json(found))["summary"]["hosts"] == 4
    text.render(found).encode()


def test_a_number_that_no_float_holds_is_one() -> None:
    [seen] = host(seen={"rules": [{"name": "b", "rate": 10**400}]}).rules
    assert seen.rate == 2**64


def test_what_one_host_sends_is_bounded() -> None:
    found = host(seen=SEEN, compared={"failed": True, "msg": "x" * 100_000})
    assert len(text.render(fleet(found))) < 2000
    rules = [{"name": "x" * 1000}] * 70_000
    assert {len(rule.name) for rule in host(seen={"rules": rules}).rules} == {255}


def test_one_host_cannot_fill_the_page_of_all() -> None:
    texts = [f"{number} " + "\U0001f600" * 1000 for number in range(20_000)]
    rules = [
        {"name": f"{number} " + "\x07" * 250, "pacing": {"reason": words, "mode": words}}
        for number, words in enumerate(texts)
    ]
    seen = {"rules": rules, "host": {"missing": texts}, "boot": {"problems": texts}}
    compared = {**SLOWER, "unenforced": texts, "diff": {"before": "\n".join(texts), "after": "\n".join(texts)}}
    found = fleet(host(seen=seen, compared=compared), host("b"))
    [hostile, honest] = found.hosts
    assert len(hostile.reasons) == 101 and hostile.reasons[-1] == "and 19900 more"
    assert hostile.changes[-1] == ("and 19900 more",) * 2
    assert hostile.left_out + len(hostile.rules) == 20_000 and honest.left_out == 0
    assert {rule.mode for rule in hostile.rules} == {None}
    forms = [form(found) for form in (text.render, page.render, page.as_json)]
    assert [len(form) < 20_000_000 for form in forms] == [True] * 3, list(map(len, forms))
    assert f"1 with more rules than this report has room for: a\n    {hostile.left_out} rules" in forms[0]
    assert json.loads(forms[2])["hosts"][0]["rules_left_out"] == hostile.left_out


def test_an_honest_host_is_told_whole() -> None:
    rules = [
        {"name": f"customer-{number:05}.example", "pacing": {"mode": "token_bucket", "reason": synthetic.NOT_PACED}}
        for number in range(10_000)
    ]
    lines = "".join(
        f"customer-{number:05}.example: 20971520 B/s (168 Mbit/s), bucket 1048576 B\n" for number in range(10_000)
    )
    found = host(
        seen={"rules": rules}, compared={**SLOWER, "unenforced": ["x"] * 100, "diff": {"before": lines, "after": lines}}
    )
    assert (len(found.rules), found.left_out, len(found.changes), len(found.reasons)) == (10_000, 0, 10_000, 100)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_that_a_host_sends_is_obeyed(hostile: str) -> None:
    seen = {
        "rules": [{"name": hostile, "pacing": {"mode": hostile, "reason": hostile}}],
        "host": {"kernel": hostile, "missing": [hostile]},
    }
    differing = {**SLOWER, "unenforced": [hostile], "diff": {"before": hostile, "after": hostile}}
    hosts = [host(hostile, seen, differing), host("b", seen, {"failed": True, "msg": hostile})]
    found = fleet(*hosts)
    shown = text.render(found)
    assert all(character == "\n" or character.isprintable() for character in shown)
    assert not any(line.startswith("b:") for line in shown.splitlines())
    rendered = page.render(found)
    # Nothing of it is in the page but in the data, and in the data no character has a meaning in HTML.
    assert not set(rendered) & set("\u2028\u2029\u202e\x1b")
    assert rendered.count("<script") == 2
    raw = rendered.partition('id="data">')[2].partition("</script>")[0]
    assert not set(raw) & set("<>&") and raw.isascii()
    assert data(rendered)["hosts"][0][0] == text.line(hostile)
    assert json.loads(page.as_json(found))["hosts"][0]["name"] == hostile


def test_the_page_lets_only_its_own_script_and_style_run() -> None:
    rendered = page.render(fleet(host()))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', rendered)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        found = re.search(f"<{element}>(.*?)</{element}>", rendered, re.DOTALL)
        assert found
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    assert rules.pop("default-src") == "'none'"
    assert rules.keys() == {"base-uri", "form-action", "require-trusted-types-for"}
    # Attributes of styles and of events need another policy, and addresses lead elsewhere.
    assert not re.search(r"\s(style|on[a-z]+|src)=", rendered.partition("<style>")[0])


def test_the_script_makes_no_markup() -> None:
    script = (Path(page.__file__).parent / "page.js").read_text(encoding="utf-8")
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        ".href",
        ".src",
        "fetch(",
    ):
        assert way not in script


def test_no_text_of_a_host_is_taken_for_a_place_of_the_page() -> None:
    assert data(page.render(fleet(host("@script@"))))["hosts"][0][0] == "@script@"


def closed(schema: t.Any) -> t.Any:
    """With nothing allowed that the schema does not describe: what is written must be documented."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: closed(part) for key, part in schema.items()} | (
        {"additionalProperties": False} if "properties" in schema and "required" in schema else {}
    )


def test_the_json_document_is_as_its_schema_says() -> None:
    schema = json.loads((Path(__file__).parents[4] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    found = reported(synthetic.answers(400))
    assert all(found.counts.values())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(closed(schema)).validate(json.loads(page.as_json(found)))


def test_one_host_is_one() -> None:
    assert text.headline(fleet(host())).startswith("1 host: 1 as wanted")
