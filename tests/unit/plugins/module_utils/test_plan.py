# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: what changes, what the diff says, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import actions as do
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.leaves import NoLeaf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import (
    HostState,
    Memory,
    Process,
    Program,
    Rule,
    Target,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.places import Place, Places
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.plan import Plan, plan
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import InPlace, Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_request

LOADED = Program("source:0", "/", 1, 1)
MEGABYTE = Limit(1_000_000, 1_000_000)


def host(
    *rules: Rule,
    automatic: Mapping[str, int] | None = None,
    lost_limits: Mapping[str, tuple[str, ...]] | None = None,
    program: Program | None = LOADED,
    refused: Mapping[str, NoLeaf] | None = None,
) -> HostState:
    memory = Memory(origins={}, automatic=automatic or {}, homes={}, last=None)
    leaves = {leaf: rule.name for rule in rules for leaf in rule.leaves}
    found = {rule.name: rule for rule in rules}
    return HostState(found, memory, program, lost_limits or {}, leaves=leaves, refused=refused or {})


def rule(
    name: str,
    limit: Limit | None = MEGABYTE,
    places: Sequence[str] = (),
    pids: Sequence[int] = (),
    leaves: Mapping[str, tuple[int, ...]] | None = None,
) -> Rule:
    inside = [pid for leaf in (leaves or {}).values() for pid in leaf]
    return Rule(name, 7, limit, tuple(places), (*pids, *inside), leaves=leaves or {})


def target(
    name: str | None = None,
    processes: Sequence[tuple[int, int, str]] = (),
    dead: Sequence[int] = (),
    places: Sequence[str] = (),
    automatic: bool = False,
    **options: Any,
) -> Target:
    """A target as observation would make it; processes are (pid, start time, cgroup)."""
    found = tuple(Process(*process) for process in processes)
    if name and not automatic:
        options["name"] = name
    if (found or dead) and "processes" not in options:
        options["pids"] = [process.pid for process in found] + list(dead)
    request = parse_request(options)
    return Target(
        request, name, automatic, tuple(places), found, tuple(process.pid for process in found), tuple(dead), ()
    )


def placed(made: Plan) -> Places:
    (action,) = (action for action in made.actions if isinstance(action, do.SetPlaces))
    return action.places


def kinds(made: Plan) -> list[str]:
    return [type(action).__name__ for action in made.actions]


def test_a_new_rule_is_made_with_the_rate_as_its_bucket() -> None:
    made = plan(host(), [target("web", rate="1m")])
    assert made.actions == (do.MakeRule("web", Limit(1048576, 1048576), None),)
    assert (made.before, made.after) == (
        "web: absent\n",
        "web: 1048576 B/s (8.39 Mbit/s), bucket 1048576 B, 0 processes\n",
    )


def test_a_rule_that_is_as_wanted_changes_nothing() -> None:
    made = plan(host(rule("web")), [target("web", rate="1000000")])
    assert made.actions == () and made.changed == () and made.before == made.after == ""


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"rate": "2000000"}, Limit(2_000_000, 2_000_000)),
        ({"rate": "2000000", "bucket": "4k"}, Limit(2_000_000, 4096)),
        ({"bucket": "4k"}, Limit(1_000_000, 4096)),
    ],
)
def test_what_is_given_changes_and_nothing_else(options: dict[str, Any], limit: Limit) -> None:
    assert plan(host(rule("web")), [target("web", **options)]).actions == (do.SetLimit("web", limit),)


def test_neither_rate_nor_bucket_is_needed_to_add_a_process() -> None:
    made = plan(host(rule("web")), [target("web", [(5, 50, "/a")])])
    assert kinds(made) == ["Take"] and made.rules["web"].limit == MEGABYTE


def test_a_name_like_pid_9_makes_no_rule_but_that_of_process_9() -> None:
    for wanted in (target("pid-9", rate="1m"), target("pid-9", [(5, 50, "/a")], rate="1m")):
        with pytest.raises(LimiterError, match="there is no rule 'pid-9'") as error:
            plan(host(), [wanted])
        assert error.value.kind == "no_rule"
    assert kinds(plan(host(), [target("pid-9", [(9, 50, "/a")], rate="1m")])) == ["MakeRule", "Take"]
    assert kinds(plan(host(rule("pid-9", pids=[9])), [target("pid-9", rate="2m")])) == ["SetLimit"]


def test_a_new_rule_needs_a_rate_even_with_a_bucket() -> None:
    with pytest.raises(LimiterError, match="rate is needed") as error:
        plan(host(), [target("web", bucket="4k")])
    assert error.value.kind == "rate_needed"


def test_a_half_made_rule_is_completed() -> None:
    made = plan(host(rule("web", limit=None)), [target("web", rate="1000000")])
    assert kinds(made) == ["MakeRule"] and made.before == "web: unfinished\n"


def test_the_program_is_loaded_only_where_there_is_none_and_only_for_a_rule() -> None:
    assert kinds(plan(host(program=None), [target("web", rate="1m")])) == ["LoadProgram", "MakeRule"]
    assert plan(host(program=None), [target("web", state="absent")]).actions == ()


def test_a_dead_process_fails_and_names_it() -> None:
    with pytest.raises(LimiterError, match="process 9 does not exist") as error:
        plan(host(), [target("web", dead=[9], rate="1m")])
    assert error.value.kind == "dead_process"


def test_a_rule_named_after_a_process_remembers_which() -> None:
    made = plan(host(), [target("pid-5", [(5, 50, "/a")], automatic=True, rate="1m")])
    assert made.actions[0] == do.MakeRule("pid-5", Limit(1048576, 1048576), 50)


def test_another_process_with_that_number_gets_a_new_rule() -> None:
    state = host(rule("pid-5"), automatic={"pid-5": 40})
    made = plan(state, [target("pid-5", [(5, 50, "/a")], automatic=True, rate="1m")])
    assert kinds(made) == ["RemoveRule", "MakeRule", "Take"] and made.changed == ("pid-5",)


def test_but_not_while_descendants_of_the_first_run_in_it() -> None:
    state = host(rule("pid-5", pids=[6]), automatic={"pid-5": 40})
    with pytest.raises(LimiterError, match="Give the new rule a name") as error:
        plan(state, [target("pid-5", [(5, 50, "/a")], automatic=True, rate="1m")])
    assert error.value.kind == "stale_rule"


def test_a_process_moved_to_another_rule_takes_its_own_rule_with_it() -> None:
    state = host(rule("web"), rule("pid-5", pids=[5]), automatic={"pid-5": 50})
    made = plan(state, [target("web", [(5, 50, "/speed_limiter/pid-5")])])
    assert kinds(made) == ["Take", "RemoveRule"] and set(made.rules) == {"web"}


def test_absent_by_process_releases_it_wherever_it_is() -> None:
    state = host(rule("web", pids=[5, 6]))
    made = plan(state, [target(None, [(5, 50, "/speed_limiter/web")], state="absent")])
    assert made.actions == (do.Release("web", (5,)),) and made.rules["web"].pids == (6,)


def test_absent_by_process_removes_its_own_rule_when_it_is_empty() -> None:
    state = host(rule("pid-5", pids=[5]), automatic={"pid-5": 50})
    made = plan(state, [target(None, [(5, 50, "/speed_limiter/pid-5")], state="absent")])
    assert kinds(made) == ["Release", "RemoveRule"] and made.after == "pid-5: absent\n"


def test_absent_by_a_dead_process_removes_the_stale_rule_or_nothing() -> None:
    assert kinds(plan(host(rule("pid-9")), [target(None, dead=[9], state="absent")])) == ["RemoveRule"]
    assert plan(host(rule("web")), [target(None, dead=[9], state="absent")]).actions == ()


def test_absent_by_name_ignores_rate_and_bucket_even_if_they_are_nonsense() -> None:
    made = plan(host(rule("web", pids=[5])), [target("web", state="absent", rate="5mb", bucket="x")])
    assert made.actions == (do.RemoveRule("web"),)


def test_absent_with_a_process_keeps_the_rule() -> None:
    state = host(rule("web", pids=[5]))
    made = plan(state, [target("web", [(5, 50, "/speed_limiter/web")], state="absent")])
    assert kinds(made) == ["Release"] and "web" in made.rules


def test_a_cgroup_is_limited_in_place_once() -> None:
    made = plan(host(rule("web")), [target("web", places=["/a"], cgroup_paths=["/a"])])
    assert placed(made) == {"/a": Place("web", False)} and made.after.endswith("0 processes, limits /a\n")
    assert plan(host(rule("web", places=["/a"])), [target("web", places=["/a"], cgroup_paths=["/a"])]).actions == ()


def test_a_cgroup_belongs_to_one_rule() -> None:
    with pytest.raises(LimiterError, match="by the rule 'db': it is already limited by 'web'") as error:
        plan(host(rule("web", places=["/a"]), rule("db")), [target("db", places=["/a"], cgroup_paths=["/a"])])
    assert error.value.kind == "member_taken"


def test_absent_with_a_member_takes_only_that_out() -> None:
    state = host(rule("web", places=["/a", "/b"]))
    made = plan(state, [target("web", places=["/a"], cgroup_paths=["/a"], state="absent")])
    assert placed(made) == {"/b": Place("web", False)} and made.rules["web"].places == ("/b",)


def test_in_a_list_a_rule_has_the_places_that_are_named_and_no_others() -> None:
    state = host(rule("web", places=["/a", "/b"]), rule("db", places=["/c"]))
    made = plan(state, [target("web", places=["/b", "/c"], cgroup_paths=["/b", "/c"]), target("db")], whole=True)
    assert placed(made) == {"/b": Place("web", False), "/c": Place("web", False)}
    assert made.before == "db: 1000000 B/s (8 Mbit/s), bucket 1000000 B, 0 processes, limits /c\n" + (
        "web: 1000000 B/s (8 Mbit/s), bucket 1000000 B, 0 processes, limits /a, limits /b\n"
    )
    assert "limits /b, limits /c\n" in made.after and "limits /a" not in made.after


def test_an_empty_list_of_places_is_no_place_not_the_whole_rule() -> None:
    state = host(rule("web", places=["/a"]))
    assert plan(state, [target("web", cgroup_paths=[], state="absent")]).actions == ()
    assert kinds(plan(state, [target("web", cgroup_paths=["/speed_limiter/web"], state="absent")])) == [
        "SetPlaces",
        "RemoveRule",
    ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("processes", [[], [(5, 50, "/a")]])
def test_each_is_refused_where_nothing_is_limited_in_place(whole: bool, processes: list[tuple[int, int, str]]) -> None:
    with pytest.raises(LimiterError) as error:
        plan(host(rule("web")), [target("web", processes, each=True)], whole=whole)
    assert error.value.kind == "bad_options" and str(error.value) == (
        "each is for cgroups that are limited in place, and the rule 'web' has none: processes share one budget. Add "
        "units, users, containers or cgroup_paths, or leave each out."
    )
    with pytest.raises(LimiterError, match="the rule 'web' has none"):
        plan(host(), [target("web", processes, each=True, rate="1m")], whole=whole)


def test_each_is_of_what_is_limited_in_place_already() -> None:
    made = plan(host(rule("web", places=["/a"])), [target("web", [(5, 50, "/b")], each=True)])
    assert made.rules["web"].in_place.each and placed(made) == {"/a": Place("web", True)}


def test_each_ends_with_the_last_place() -> None:
    state = host(rule("web", places=["/a", "/b"])._replace(in_place=InPlace(each=True)))
    made = plan(state, [target("web", places=["/a"], cgroup_paths=["/a"], state="absent")])
    assert made.rules["web"].in_place.each
    made = plan(host(*made.rules.values()), [target("web", places=["/b"], cgroup_paths=["/b"], state="absent")])
    assert not made.rules["web"].in_place.each and made.rules["web"].places == ()


def test_each_is_kept_and_changed_only_by_who_says_so() -> None:
    state = host(rule("web", places=["/a-*"])._replace(in_place=InPlace(each=True)))
    assert plan(state, [target("web", rate="1000000")]).actions == ()
    made = plan(state, [target("web", each=False)])
    assert placed(made) == {"/a-*": Place("web", False)}
    assert made.before.endswith("limits each of /a-*\n") and made.after.endswith("limits /a-*\n")


@pytest.mark.parametrize("whole", [False, True])
def test_two_patterns_of_equal_rank_are_refused_by_name(whole: bool) -> None:
    with pytest.raises(LimiterError, match=r"/\*a/b and /a\*/b match the same") as error:
        plan(
            host(rule("web", places=["/a*/b"]), rule("db")),
            [
                target("web", places=["/a*/b"], cgroup_paths=["/a*/b"]),
                target("db", places=["/*a/b"], cgroup_paths=["/*a/b"]),
            ],
            whole=whole,
        )
    assert error.value.kind == "ambiguous_patterns"


def test_four_rules_nest_and_five_do_not() -> None:
    nested = [rule("root", places=["/"]), rule("a", places=["/a"]), rule("b", places=["/a/b"]), rule("c"), rule("d")]
    fourth = target("c", places=["/a/b/c"], cgroup_paths=["/a/b/c"])
    assert kinds(plan(host(*nested), [fourth])) == ["SetPlaces"]
    with pytest.raises(LimiterError, match="a, b, c, d, root") as error:
        plan(host(*nested), [fourth, target("d", places=["/a/b/c/d"], cgroup_paths=["/a/b/c/d"])])
    assert error.value.kind == "too_many_rules"


def test_with_each_every_level_counts() -> None:
    below = ["/s/*", "/s/*/*", "/s/*/*/*", "/s/*/*/*/*"]
    each = target("per", places=below, cgroup_paths=below, each=True)
    with pytest.raises(LimiterError, match="outer, per: .*every level has a budget of its own") as error:
        plan(host(rule("outer", places=["/s"]), rule("per")), [each])
    assert error.value.kind == "too_many_rules"
    assert kinds(plan(host(rule("outer", places=["/s"]), rule("per")), [each._replace(places=tuple(below[:3]))]))


def test_without_places_each_says_nothing() -> None:
    state = host(rule("web", places=["/a-*"])._replace(in_place=InPlace(each=True)))
    made = plan(state, [target("web", places=["/a-*"], cgroup_paths=["/a-*"], state="absent")])
    assert made.rules["web"].places == () and not made.rules["web"].in_place.each


def test_two_places_of_one_rule_count_once() -> None:
    rules = [rule("a", places=["/a", "/a/b", "/a/b/c", "/a/b/c/d"])]
    assert kinds(plan(host(*rules), [target("a", places=["/a/b/c/d/e"], cgroup_paths=["/a/b/c/d/e"])])) == ["SetPlaces"]


def test_no_match_is_a_warning() -> None:
    nobody = target("web")._replace(request=parse_request({"name": "web", "processes": {"name": "nobody"}}))
    assert plan(host(rule("web")), [nobody]).warnings == (
        "no process matches; the rule 'web' takes none now, and none that is started later",
    )


def test_purge_removes_what_is_not_listed_and_spares_rules_of_processes() -> None:
    state = host(rule("web"), rule("old"), rule("pid-5", pids=[5]))
    made = plan(state, [target("web", rate="1000000")], purge=True)
    assert made.actions == (do.RemoveRule("old"),) and made.kept == ("pid-5",)


def test_two_targets_that_are_one_rule_are_refused() -> None:
    with pytest.raises(LimiterError, match="given twice"):
        plan(host(rule("web")), [target("web"), target("web")])


def test_an_empty_list_of_processes_is_no_process_not_the_whole_rule() -> None:
    state = host(rule("web", pids=[5]))
    nobody = target("web")._replace(request=parse_request({"name": "web", "pids": [], "state": "absent"}))
    assert plan(state, [nobody]).actions == ()


def test_a_rule_that_is_not_there_by_its_id_takes_nothing_from_others() -> None:
    state = host(rule("web", pids=[5]))
    unknown = target(None, [(5, 50, "/speed_limiter/web")], state="absent", cgroup_id=999)
    assert plan(state, [unknown]).actions == ()


def test_absent_with_a_process_and_a_cgroup_takes_both_out() -> None:
    state = host(rule("web", places=["/a"], pids=[5, 6]))
    both = target("web", [(5, 50, "/speed_limiter/web")], places=["/a"], cgroup_paths=["/a"], state="absent")
    assert sorted(kinds(plan(state, [both]))) == ["Release", "SetPlaces"]


def test_absent_by_process_leaves_its_children_in_rules_that_they_were_put_in_by_name() -> None:
    state = host(rule("web", pids=[5]), rule("backup", pids=[6]))
    parent = target(None, [(5, 50, "/speed_limiter/web"), (6, 60, "/speed_limiter/backup")], state="absent")
    made = plan(state, [parent._replace(matched=(5,), request=parent.request._replace(pids=(5,)))])
    assert made.actions == (do.Release("web", (5,)),)


def test_a_process_that_two_rules_match_stays_with_the_first_on_every_run() -> None:
    def matching(name: str, cgroup: str) -> Target:
        found = target(name, [(5, 50, cgroup)], rate="1000000")
        return found._replace(request=parse_request({"name": name, "rate": "1000000", "processes": {"name": "x"}}))

    made = plan(host(), [matching("one", "/a"), matching("two", "/a")])
    assert made.rules["one"].pids == (5,) and made.rules["two"].pids == ()
    assert "'two' also matches processes of 'one'" in made.warnings[0]
    inside = "/speed_limiter/one"
    assert plan(host(*made.rules.values()), [matching("one", inside), matching("two", inside)]).actions == ()


def test_a_process_that_is_named_for_two_rules_is_an_error() -> None:
    with pytest.raises(LimiterError, match="process 5 is given to 'two'") as error:
        plan(host(), [target("one", [(5, 50, "/a")], rate="1m"), target("two", [(5, 50, "/a")], rate="1m")])
    assert error.value.kind == "bad_options"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_rule_is_renamed_in_one_task_whatever_the_order(order: tuple[int, int]) -> None:
    targets = [target("old", state="absent"), target("new", places=["/a"], cgroup_paths=["/a"], rate="1000000")]
    made = plan(host(rule("old", places=["/a"])), [targets[index] for index in order])
    assert kinds(made) == ["MakeRule", "SetPlaces", "RemoveRule"]


def test_a_purge_hands_the_cgroup_over_too() -> None:
    made = plan(
        host(rule("old", places=["/a"])),
        [target("new", places=["/a"], cgroup_paths=["/a"], rate="1000000")],
        purge=True,
    )
    assert kinds(made) == ["MakeRule", "SetPlaces", "RemoveRule"]


def test_what_goes_goes_last() -> None:
    state = host(rule("old", pids=[5]))
    made = plan(state, [target("old", state="absent"), target("new", rate="1m")])
    assert kinds(made) == ["MakeRule", "RemoveRule"]


def test_a_rule_of_a_process_that_the_task_itself_removes_is_not_kept() -> None:
    state = host(rule("web"), rule("pid-5", pids=[5]), automatic={"pid-5": 50})
    made = plan(state, [target("web", [(5, 50, "/speed_limiter/pid-5")])], purge=True)
    assert made.kept == ()
