# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph finds what a look at every pattern finds."""

from __future__ import annotations

import random

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import patterns
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.patterns import Node, Pattern

CASES = 100_000


def names_of(path: str) -> list[str]:
    return path.strip("/").split("/") if path.strip("/") else []


def walk(graph: list[Node], path: str) -> list[str]:
    """As the program does it: the rules on the way down."""
    here, found = graph[0], [graph[0].rule]
    for name in names_of(path):
        shapes = (
            number
            for (before, behind), number in here.shapes
            if len(name) >= len(before) + len(behind) and name.startswith(before) and name.endswith(behind)
        )
        number = here.names[name] if name in here.names else next(shapes, None)
        if number is None:
            break
        here = graph[number]
        found.append(here.rule)
    return [rule for rule in found if rule is not None]


def fits(part: str, name: str) -> bool:
    before, star, behind = part.partition("*")
    if not star:
        return part == name
    return len(name) >= len(before) + len(behind) and name.startswith(before) and name.endswith(behind)


def rank(pattern: str) -> list[tuple[bool, int]]:
    return [("*" not in part, len(part.replace("*", ""))) for part in names_of(pattern)]


def naive(rules: dict[str, str], path: str) -> list[str]:
    names, found = names_of(path), []
    for depth in range(len(names) + 1):
        fit = [
            pattern for pattern in rules if len(names_of(pattern)) == depth and all(map(fits, names_of(pattern), names))
        ]
        if fit:
            found.append(rules[max(fit, key=rank)])
    return found


def drawn(lot: random.Random, letters: str, most: int, star: bool) -> str:
    word = "".join(lot.choice(letters) for _time in range(lot.randint(0, most)))
    return word + ("*" + "".join(lot.choice(letters) for _time in range(lot.randint(0, most))) if star else "")


def compiled(rules: dict[str, str]) -> list[Node]:
    return patterns.compile_graph({patterns.parse("cgroup_path", pattern): rule for pattern, rule in rules.items()})


def test_the_graph_finds_what_a_naive_matcher_finds() -> None:
    lot, tried, refused = random.Random(1), 0, 0
    while tried < CASES:
        rules: dict[str, str] = {}
        for number in range(lot.randint(1, 5)):
            parts = [drawn(lot, "ab", 3, lot.random() < 0.5) or "a" for _time in range(lot.randint(0, 3))]
            rules["/" + "/".join(parts)] = f"rule {number}"
        try:
            graph = compiled(rules)
        except LimiterError as error:
            assert error.kind in ("ambiguous_patterns", "too_many_patterns")
            refused += 1
            continue
        for _time in range(20):
            path = "/" + "/".join(drawn(lot, "ab", 5, False) or "b" for _time in range(lot.randint(0, 4)))
            assert walk(graph, path) == naive(rules, path), (rules, path)
            tried += 1
    assert refused < tried / 20  # of these, most tables are compiled


def test_two_of_equal_rank_are_named_only_where_they_meet() -> None:
    with pytest.raises(LimiterError, match=r"/\*b and /a\* match the same") as caught:
        compiled({"/a*": "one", "/*b": "two"})
    assert caught.value.kind == "ambiguous_patterns"
    assert walk(compiled({"/a*": "one", "/*b": "one"}), "/ab") == ["one"]
    assert walk(compiled({"/a*": "one", "/b*": "two"}), "/ba") == ["two"]
    assert walk(compiled({"/a*": "one", "/*b": "two", "/a*b": "three"}), "/a b") == ["three"]


def test_a_fifth_rule_on_one_way_is_refused_whatever_leads_there() -> None:
    rules = {"/": "one", "/a": "two", "/*/b": "three", "/a/*/c": "four"}
    assert walk(compiled(rules), "/a/b/c") == ["one", "two", "three", "four"]
    assert walk(compiled({**rules, "/a/b/c/d": "four"}), "/a/b/c/d") == ["one", "two", "three", "four", "four"]
    with pytest.raises(LimiterError, match="five, four, one, three, two") as caught:
        compiled({**rules, "/a/b/*/d": "five"})
    assert caught.value.kind == "too_many_rules"


def test_more_stars_at_one_level_than_the_program_looks_through_are_refused() -> None:
    rules = {f"/{letter}*": letter for letter in "abcde"}
    with pytest.raises(LimiterError, match=r"a\*, b\*, c\*, d\*, e\*") as caught:
        compiled(rules)
    assert caught.value.kind == "too_many_patterns"
    del rules["/e*"]
    assert walk(compiled(rules), "/dx/y") == ["d"]


def test_a_graph_of_which_two_have_no_room_is_refused() -> None:
    """While one takes the place of the other, both are in the map."""
    names = {f"/web-{number}": "one" for number in range(400)}
    below = {f"/*/{number}": "two" for number in range(400)}
    with pytest.raises(LimiterError, match="lead to more than 131072 names") as caught:
        compiled({**names, **below})
    assert caught.value.kind == "too_many_patterns"
    assert compiled({**dict(list(names.items())[:300]), **below})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/b", "slash"),
        ("/a//b", "no name"),
        ("/a/../b", "no name"),
        ("/a*b*c", "more than one star. Each name of a path may have one star; give several paths"),
        ("/" + "n" * 128 + "*", "one side of the star. .* or a shorter text before the star"),
        ("/" + "n" * 256, "255 bytes"),
        ("/" + "ö" * 128, "255 bytes"),
        ("/a" * 16, "15 levels"),
        (("/" + "n" * 251) * 4 + "n", "1008 bytes"),
    ],
)
def test_what_no_cgroup_can_be_named_is_refused(text: str, words: str) -> None:
    with pytest.raises(LimiterError, match=words) as caught:
        patterns.parse("cgroup_path", text)
    assert caught.value.kind == "bad_cgroup_path"


def test_a_pattern_reads_as_it_was_written() -> None:
    for text in ("/", "/a", "/user.slice/user-*.slice/*", "/a/" + "n" * 255):
        assert str(patterns.parse("cgroup_path", text)) == text
    assert patterns.parse("cgroup_path", "/a/") == Pattern(("a",))


def test_ten_thousand_patterns_need_about_as_many_nodes() -> None:
    rules = {f"/system.slice/s{number}.service": f"rule {number}" for number in range(10_000)}
    rules["/user.slice/user-*.slice"] = "each user"
    graph = compiled(rules)
    assert len(graph) == 10_004  # with the root, two slices and all users
    assert walk(graph, "/system.slice/s77.service/x") == ["rule 77"]
