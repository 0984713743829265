# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a plan keeps the processes that a rule takes: in leaves below their own cgroups, wherever that is possible."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import actions as do
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.leaves import NoLeaf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.plan import plan
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_request
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import shown
from ansible_collections.speed_limiter.ebpf.tests.unit.plugins.module_utils.test_plan import host, kinds, rule, target


def test_a_process_is_kept_in_a_leaf_below_its_own_cgroup() -> None:
    made = plan(host(rule("web"), lost_limits={"/a": ("memory.max",)}), [target("web", [(5, 50, "/a"), (6, 60, "/b")])])
    (take,) = made.actions
    assert isinstance(take, do.Take) and take.kept == {"/a": "/a/speed_limiter.web", "/b": "/b/speed_limiter.web"}
    assert made.rules["web"].leaves == {"/a/speed_limiter.web": (5,), "/b/speed_limiter.web": (6,)}
    assert made.rules["web"].pids == (5, 6) and not made.warnings
    assert plan(host(*made.rules.values()), [target("web", [(5, 50, "/a/speed_limiter.web")])]).actions == ()


@pytest.mark.parametrize("cgroup", ["/", "/speed_limiter/db", "/speed_limiter/db/below"])
def test_where_nothing_is_lost_the_rules_own_cgroup_is_as_good(cgroup: str) -> None:
    made = plan(host(rule("web"), rule("db", pids=[5])), [target("web", [(5, 50, cgroup)])])
    assert isinstance(made.actions[0], do.Take) and made.actions[0].kept == {cgroup: "/speed_limiter/web"}
    assert not made.warnings and made.rules["web"].leaves == {}


def test_from_leaf_to_leaf_the_home_stays() -> None:
    state = host(rule("web"), rule("db", leaves={"/a/speed_limiter.db": (5, 6)}))
    made = plan(state, [target("web", [(5, 50, "/a/speed_limiter.db/below")])])
    assert made.rules["web"].leaves == {"/a/speed_limiter.web": (5,)}
    assert made.rules["db"].leaves == {"/a/speed_limiter.db": (6,)}


def test_what_is_only_called_like_a_leaf_is_none() -> None:
    """Units have such names, and users make directories, too: who is in one is not in the rule, and at home there."""
    made = plan(host(rule("web")), [target("web", [(5, 50, "/a/speed_limiter.web")])])
    assert made.rules["web"].leaves == {"/a/speed_limiter.web/speed_limiter.web": (5,)} and kinds(made) == ["Take"]


def test_who_could_not_leave_a_leaf_that_limits_no_more_is_taken_to_the_one_beside_it() -> None:
    state = host(rule("web"))._replace(homes={"/a/speed_limiter.gone": "/a"})
    made = plan(state, [target("web", [(5, 50, "/a/speed_limiter.gone")])])
    assert made.rules["web"].leaves == {"/a/speed_limiter.web": (5,)} and kinds(made) == ["Take"]


def test_a_process_that_loses_its_home_loses_rules_and_limits_which_are_told_tightest_first() -> None:
    rules = [
        rule("web"),
        rule("loose", Limit(80_000, 1), ["/a.slice"]),
        rule("tight", Limit(10_000, 1), ["/a.slice/b"]),
    ]
    state = host(
        *[*rules, rule("all", places=["/"])],
        lost_limits={"/a.slice/b": ("memory.max",)},
        refused={"/a.slice/b/speed_limiter.web": NoLeaf("it is threaded (cgroup.type)")},
    )
    made = plan(state, [target("web", [(5, 50, "/a.slice/b")])])
    lost = "the rule 'tight' (10000 B/s (80 kbit/s)), the rule 'loose' (80000 B/s (640 kbit/s)), memory.max, "
    assert made.rules["web"].pids == (5,) and made.rules["web"].leaves == {}
    (warning,) = made.warnings
    assert lost in warning and "because it is threaded" in warning and warning.endswith("change the rate of 'tight'")
    assert (
        f"web: takes processes out of /a.slice/b: {lost}what stops or filters that cgroup no longer hold" in made.after
    )


@pytest.mark.parametrize(
    ("refused", "remedy"),
    [
        (NoLeaf("it is threaded"), "limit that cgroup in place: cgroup_paths=/a.slice/b"),
        (NoLeaf("no room", "raise x"), "raise x, or limit that cgroup in place: cgroup_paths=/a.slice/b"),
        (NoLeaf("it is attached elsewhere", "move it", in_place=False), "move it"),
    ],
)
@pytest.mark.parametrize("places", [["/a.slice"], ["/a.slice", "/a.slice/*"]])
def test_what_keeps_a_process_at_home_is_told_by_the_cause(refused: NoLeaf, remedy: str, places: list[str]) -> None:
    state = host(rule("web"), rule("svc", places=places), refused={"/a.slice/b/speed_limiter.web": refused})
    (warning,) = plan(state, [target("web", [(5, 50, "/a.slice/b")])]).warnings
    if len(places) == 2:
        remedy = ", or ".join([*([refused.mend] if refused.mend else []), "change the rate of 'svc'"])
    assert warning.endswith(f"because {refused.why}. To keep those, {remedy}")


def test_the_command_says_once_what_is_lost() -> None:
    state = host(rule("web"), refused={"/a/speed_limiter.web": NoLeaf("it is threaded")})
    made = plan(state, [target("web", [(5, 50, "/a")])])
    result = {"changed": True, "diff": {"before": made.before, "after": made.after}, "warnings": list(made.warnings)}
    (line,) = shown.change(result, check=False, diff=False)
    assert line.startswith("changed: web: 1000000 B/s") and "no longer hold" in made.warnings[0]
    assert any("no longer hold" in line for line in shown.change(result, check=False, diff=True))


def test_four_rules_hold_in_a_leaf_and_five_do_not() -> None:
    nested = [rule("root", places=["/"]), rule("a", places=["/a"]), rule("b", places=["/a/b"])]
    made = plan(host(*nested, rule("web")), [target("web", [(5, 50, "/a/b/c")])])
    assert made.rules["web"].leaves == {"/a/b/c/speed_limiter.web": (5,)}
    with pytest.raises(LimiterError, match="root, a, b, c, web") as error:
        plan(host(*made.rules.values(), rule("c")), [target("c", places=["/a/b/c"], cgroup_paths=["/a/b/c"])])
    assert error.value.kind == "too_many_rules"
    nested.append(rule("c", places=["/a/b/c"]))
    made = plan(host(*nested, rule("web")), [target("web", [(5, 50, "/a/b/c")])])
    assert made.rules["web"].leaves == {} and made.warnings[0].endswith(
        "4 rules hold there already. To keep those, take one of them out: root, a, b, c, or change the rate of 'c'"
    )


def test_release_and_removal_leave_no_leaf() -> None:
    state = host(rule("web", leaves={"/a/speed_limiter.web": (5,), "/b/speed_limiter.web": (6,)}))
    released = plan(state, [target("web", [(5, 50, "/a/speed_limiter.web")], state="absent")])
    assert released.actions == (do.Release("web", (5,)),)
    assert released.rules["web"].leaves == {"/b/speed_limiter.web": (6,)}
    assert plan(state, [target("web", state="absent")]).actions == (do.RemoveRule("web"),)


def test_who_selects_processes_sees_whose_they_are() -> None:
    found = target("web", [(5, 50, "/system.slice/a.service"), (6, 60, "/user.slice/b.scope")], rate="1m")
    found = found._replace(request=parse_request({"name": "web", "rate": "1m", "processes": {"name": "x"}}))
    after = plan(host(), [found]).after
    assert "web: takes 1 process of /system.slice/a.service\n" in after
    assert "web: takes 1 process of /user.slice/b.scope\n" in after
