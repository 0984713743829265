# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is stored for the next boot follows what a plan changes."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import actions as do
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import stored
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import (
    File,
    HostState,
    Memory,
    Process,
    Program,
    Refused,
    Rule,
    Store,
    StoredPlace,
    StoredRule,
    Target,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.plan import Plan, plan, plan_removal
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import InPlace, Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_request

LIMIT = Limit(1_000_000, 1_000_000)
EACH = InPlace(each=True)
WEB = Rule("web", 7, LIMIT, ("/a",), ())
FILE = stored.form(WEB)
LINE = "web: 1000000 B/s (8 Mbit/s), bucket 1000000 B, 0 processes, limits /a"
OTHER = StoredRule(LIMIT._replace(rate=8000), (StoredPlace("/b"),))
BROKEN = Refused("it is no JSON: Expecting value")


def host(*rules: Rule, sealed: str | None = None, **files: File) -> HostState:
    memory = Memory(origins={}, automatic={}, homes={}, last=None)
    program = Program("source:0", "/", 1, 1)
    return HostState({rule.name: rule for rule in rules}, memory, program, {}, store=Store(files, sealed=sealed))


def target(name: str | None = "web", *places: str, pid: int = 0, **options: Any) -> Target:
    processes = (Process(pid, 50, "/x"),) if pid else ()
    request = parse_request({"name": name, **({"pids": [pid]} if pid else {}), **options})
    return Target(request, name, False, places, processes, (pid,) if pid else (), (), ())


def kinds(made: Plan) -> list[str]:
    return [type(action).__name__ for action in made.actions]


def written(made: Plan) -> dict[str, StoredRule | None]:
    """The files that the plan writes; they are the first step."""
    for index, action in enumerate(made.actions):
        if isinstance(action, do.StoreRules):
            assert index == 0
            return dict(action.files)
    return {}


def test_a_rule_is_stored_with_its_limit_and_its_places() -> None:
    made = plan(host(), [target("web", "/a", rate="1000000", persistent=True)])
    assert kinds(made) == ["StoreRules", "MakeRule", "SetPlaces"]
    assert written(made) == {"web": FILE} and made.files == {"web": FILE}
    assert (made.before, made.after) == ("web: absent\n", f"{LINE}, persistent\n")


def test_where_only_the_file_differs_only_the_file_is_written() -> None:
    made = plan(host(WEB), [target(persistent=True)])
    assert made.actions == (do.StoreRules({"web": FILE}),) and made.changed == ("web",)
    assert (made.before, made.after) == (f"{LINE}\n", f"{LINE}, persistent\n")


def test_what_is_stored_already_changes_nothing() -> None:
    given: list[dict[str, Any]] = [{"persistent": True}, {}]
    for options in given:
        made = plan(host(WEB, web=FILE), [target(**options)])
        assert made.actions == () and made.before == made.after == ""


def test_without_a_word_about_it_a_rule_stays_as_persistent_as_it_is() -> None:
    more = LIMIT._replace(rate=2_000_000, bucket=2_000_000)
    assert written(plan(host(WEB), [target(rate="2000000")])) == {}
    assert written(plan(host(WEB, web=FILE), [target(rate="2000000")])) == {"web": FILE._replace(limit=more)}
    less = plan(host(WEB, web=FILE), [target("web", "/a", state="absent", cgroup_paths=["/a"])])
    assert written(less) == {"web": FILE._replace(places=())}


def test_a_file_that_differs_from_its_rule_is_shown_and_brought_in_line() -> None:
    """Left by a task that was killed between the two, or edited."""
    made = plan(host(WEB, web=OTHER), [target()])
    assert written(made) == {"web": FILE}
    assert made.before == f"{LINE}, stored as 8000 B/s (64 kbit/s), bucket 1000000 B, limits /b\n"
    assert made.after == f"{LINE}, persistent\n"


def test_what_the_operator_named_a_place_by_stays() -> None:
    named = FILE._replace(places=(StoredPlace("/a", "unit", "a.service"),))
    made = plan(host(WEB, web=named), [target("web", "/b")])
    assert written(made) == {"web": FILE._replace(places=(StoredPlace("/a", "unit", "a.service"), StoredPlace("/b")))}


def test_it_is_stored_by_what_name_a_place_was_given() -> None:
    user = StoredPlace("/user.slice/user-1000.slice", "user", "joe", 1000)
    wanted = target("web", user.path, rate="1000000", persistent=True)._replace(named=(user,))
    file = written(plan(host(), [wanted]))["web"]
    assert file is not None and file.places == (user,)
    assert stored.to_json(file)["places"] == [{"path": user.path, "user": "joe", "uid": 1000}]
    loaded = host(WEB._replace(places=(user.path,)), web=file)
    again = wanted._replace(named=(user._replace(name="1000"),))
    assert plan(loaded, [again]).actions == ()


def test_persistent_false_removes_the_file_and_nothing_else() -> None:
    made = plan(host(WEB, web=FILE), [target(persistent=False)])
    assert made.actions == (do.StoreRules({"web": None}),)
    assert (made.before, made.after) == (f"{LINE}, persistent\n", f"{LINE}\n")


def test_a_rule_that_goes_takes_its_file_along() -> None:
    for made in (
        plan(host(WEB, web=FILE), [target(state="absent")]),
        plan(host(WEB, web=FILE), [], purge=True),
        plan_removal(host(WEB, web=FILE), ["web"]),
    ):
        assert kinds(made) == ["StoreRules", "SetPlaces", "RemoveRule"] and written(made) == {"web": None}
        assert (made.before, made.after) == (f"{LINE}, persistent\n", "web: absent\n")


@pytest.mark.parametrize("file", [FILE, BROKEN, Refused("its schema is 2", newer=True)])
def test_the_file_of_a_rule_that_is_not_loaded_goes_too(file: File) -> None:
    for made in (
        plan(host(web=file), [target(state="absent")]),
        plan(host(web=file), [], purge=True),
        plan_removal(host(web=file), ["web"]),
    ):
        assert made.actions == (do.StoreRules({"web": None}),) and made.changed == ("web",)
        assert made.before == f"web: absent, {stored.show(file)}\n" and made.after == "web: absent\n"


def test_a_file_that_is_refused_is_left_with_a_warning_or_replaced() -> None:
    kept = plan(host(WEB, web=BROKEN), [target()])
    assert kept.actions == ()
    assert kept.warnings == (
        "what is stored of the rule 'web' stays as it is, and is not applied at boot: it is no JSON: Expecting value. "
        "persistent=true stores it anew, persistent=false removes it",
    )
    assert written(plan(host(WEB, web=BROKEN), [target(persistent=True)])) == {"web": FILE}
    assert written(plan(host(WEB, web=BROKEN), [target(persistent=False)])) == {"web": None}


def test_what_a_newer_version_stored_is_not_overwritten() -> None:
    with pytest.raises(LimiterError, match="Run that version") as error:
        plan(host(WEB, web=Refused("its schema is 2", newer=True)), [target(persistent=True)])
    assert error.value.kind == "not_stored"


def test_what_cannot_be_stored_fails_before_anything_is_touched() -> None:
    why = "/etc/speed_limiter cannot be written: EROFS (Read-only file system)"
    with pytest.raises(LimiterError, match="EROFS") as error:
        plan(host(WEB, sealed=why), [target(persistent=True)])
    assert error.value.kind == "not_stored"
    assert plan(host(WEB, sealed=why, web=FILE), [target(persistent=True)]).actions == ()


def test_a_rule_goes_even_where_its_file_cannot_and_that_is_told() -> None:
    made = plan(host(WEB, sealed="/etc is read-only", web=FILE), [target(state="absent")])
    assert kinds(made) == ["SetPlaces", "RemoveRule"]
    assert made.warnings == (
        "what is stored of the rule 'web' stays, and is applied at the next boot: /etc is read-only",
    )
    assert plan(host(sealed="/etc is read-only", web=FILE), [target(state="absent")]).actions == ()


def test_processes_are_not_stored() -> None:
    for options in ({"pids": [5]}, {"processes": {"name": "x"}}):
        with pytest.raises(LimiterError, match="a process does not survive a reboot") as error:
            parse_request({"name": "web", "persistent": True, **options})
        assert error.value.kind == "bad_options"
    assert parse_request({"name": "web", "state": "absent", "pids": [5], "persistent": True}).given == {}
    automatic = Rule("pid-5", 7, LIMIT, (), (5,))
    with pytest.raises(LimiterError, match="the rule of one process"):
        plan(host(automatic), [target("pid-5", persistent=True)])


def test_a_rule_of_which_processes_are_a_part_is_stored_without_them() -> None:
    made = plan(host(WEB, web=FILE), [target(pid=5)])
    assert written(made) == {} and "persistent" in made.after


def test_a_place_can_be_taken_out_of_what_is_stored_of_a_rule_that_is_not_loaded() -> None:
    made = plan(host(web=FILE), [target("web", "/a", state="absent", cgroup_paths=["/a"])])
    assert written(made) == {"web": FILE._replace(places=())}
    assert plan(host(web=FILE), [target("web", "/b", state="absent", cgroup_paths=["/b"])]).actions == ()
    sealed = plan(host(web=FILE, sealed="read-only"), [target("web", "/a", state="absent", cgroup_paths=["/a"])])
    assert sealed.actions == () and "stays" in sealed.warnings[0]


def test_each_of_nothing_is_neither_stored_nor_read() -> None:
    """An earlier version stored it, and what is stored must not be refused at boot."""
    last = target("web", "/a", state="absent", cgroup_paths=["/a"])
    left = {"web": FILE._replace(places=())}
    assert written(plan(host(WEB._replace(in_place=EACH), web=FILE._replace(in_place=EACH)), [last])) == left
    assert written(plan(host(web=FILE._replace(in_place=EACH)), [last])) == left
    assert stored.from_json({**stored.to_json(left["web"]), "each": True}) == left["web"]


def test_each_is_stored() -> None:
    made = plan(host(WEB._replace(in_place=EACH)), [target(persistent=True)])
    assert written(made) == {"web": FILE._replace(in_place=EACH)}
    assert "limits each of /a, persistent" in made.after
