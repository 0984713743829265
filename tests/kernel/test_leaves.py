# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that is limited by a rule stays in its service: in a leaf, a cgroup below its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import MAX_DEPTH
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import FAMILY, child, refused, until
from ansible_collections.speed_limiter.ebpf.tests.support.homes import (
    HOME,
    LEAF,
    Make,
    Service,
    place,
)
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import Sender, info, purge, rule, rules, snapshot


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        limiter.program()
        yield found


def lost(done: dict[str, Any]) -> list[str]:
    """The warnings that somebody loses something."""
    return [warning for warning in done["warnings"] if "no longer hold" in warning]


def everything(sender: Sender, new: str) -> dict[str, set[str]]:
    return {through: sender.charged(through) for through in ("udp", "tcp", new)}


# ---- what holds


@pytest.mark.every_kernel
def test_a_tighter_rule_above_keeps_holding(service: Service) -> None:
    """For connections that were open, for those that the process opens in the rule, and after it has left it again."""
    parent = service.parent
    done = rule(name="web", pid=parent.pid, children=False, rate="80mbit")
    assert not lost(done)
    assert everything(parent, "in it") == dict.fromkeys(("udp", "tcp", "in it"), {"tight", "web"})
    rule(pid=parent.pid, state="absent")
    assert {**everything(parent, "after it"), "in it": parent.charged("in it")} == dict.fromkeys(
        ("udp", "tcp", "in it", "after it"), {"tight"}
    )


def test_nothing_of_the_way_up_is_lost_for_an_open_connection(service: Service, made: Make) -> None:
    rule(name="service", cgroup_path=HOME, rate="1m")
    rule(name="host", cgroup_path="/", everything=True, rate="1g")
    rule(name="web", pid=service.parent.pid, rate="80mbit")
    four = {"tight", "web", "service", "host"}
    assert everything(service.parent, "new") == dict.fromkeys(("udp", "tcp", "new"), four)


def test_the_service_is_ended_with_all_that_is_in_rules(service: Service, cgroups: Cgroups) -> None:
    parent = service.parent
    rule(name="web", pid=parent.pid, rate="1m")
    assert place(parent.pid) == LEAF
    kill = Path(cgroups.absolute(HOME), "cgroup.kill")
    if not kill.exists():
        pytest.skip("cgroup.kill is new in Linux 5.14")
    kill.write_text("1")
    until(lambda: not cgroups.pids(HOME))


def test_the_memory_of_a_service_stays_limited(made: Make, cgroups: Cgroups) -> None:
    root = Path(cgroups.mount)
    if "memory" not in (root / "cgroup.controllers").read_text().split():
        pytest.skip("cgroup2 has no memory controller on this host")
    (root / "cgroup.subtree_control").write_text("+memory")
    home = made("/a.service")
    (home / "memory.max").write_text("1000000000")
    with child() as one:
        cgroups.move(one.pid, "/a.service")
        assert not lost(rule(name="web", pid=one.pid, rate="1m"))
        assert place(one.pid) == "/a.service/speed_limiter.web"
        assert cgroups.limits("/a.service/speed_limiter.web") == ["memory.max"]


# ---- in and out


def test_a_process_goes_into_a_leaf_and_back(service: Service) -> None:
    parent, child_of_it = service
    before = snapshot(parent.pid, child_of_it.pid)
    predicted = rule(name="web", pid=parent.pid, rate="1m", check=True)
    assert snapshot(parent.pid, child_of_it.pid) == before
    done = rule(name="web", pid=parent.pid, rate="1m")
    assert done["diff"] == predicted["diff"] and done["rule"]["members"] == predicted["rule"]["members"]
    found = snapshot(parent.pid, child_of_it.pid)
    assert found.places == {parent.pid: LEAF, child_of_it.pid: LEAF}
    assert found.members[LEAF] == "/speed_limiter/web"
    assert not found.remembered.origins and not found.remembered.homes  # home is the cgroup above
    assert not rule(name="web", pid=parent.pid, rate="1m")["changed"]
    rule(name="web", state="absent")
    after = snapshot(parent.pid, child_of_it.pid)
    assert after.places == {parent.pid: HOME, child_of_it.pid: HOME}
    assert after._replace(remembered=before.remembered) == before


def test_of_two_in_one_leaf_one_goes(service: Service) -> None:
    """What it opened in the leaf is free, though the leaf still limits the other."""
    parent, child_of_it = service
    rule(name="web", pid=parent.pid, rate="1m")
    assert parent.charged("new") == child_of_it.charged("new") == {"tight", "web"}
    rule(pid=child_of_it.pid, state="absent")
    assert child_of_it.charged("new") == {"tight"} and place(child_of_it.pid) == HOME
    assert parent.charged("new") == {"tight", "web"} and place(parent.pid) == LEAF


def test_from_rule_to_rule_it_stays_in_its_service(service: Service) -> None:
    parent = service.parent
    rule(name="db", pid=parent.pid, rate="1m")
    parent.charged("in db")
    rule(name="web", pid=parent.pid, rate="1m")
    assert {**everything(parent, "in web"), "in db": parent.charged("in db")} == dict.fromkeys(
        ("udp", "tcp", "in web", "in db"), {"tight", "web"}
    )
    assert [path for path in snapshot().cgroups if path.startswith(HOME)] == [LEAF]


def test_a_process_with_children_in_several_cgroups_gets_several_leaves(made: Make, cgroups: Cgroups) -> None:
    made("/a"), made("/b")
    with child(FAMILY) as family:
        pids = [family.pid, *(int(word) for word in family.words)]
        for pid, home in zip(pids, ("/a", "/b", "/a")):
            cgroups.move(pid, home)
        done = rule(name="web", pid=family.pid, rate="1m")
        assert done["rule"]["pids"] == sorted(pids)
        places = {place(pid) for pid in pids}
        assert places == {"/a/speed_limiter.web", "/b/speed_limiter.web"}
        assert {cgroups.absolute(leaf) for leaf in places if leaf} < set(done["rule"]["members"])
        rule(name="web", state="absent")
        assert [place(pid) for pid in pids] == ["/a", "/b", "/a"]


@pytest.mark.parametrize("scope", ["rules", "all"])
def test_a_purge_puts_all_back(service: Service, scope: str) -> None:
    parent, child_of_it = service
    rule(name="web", pid=parent.pid, children=False, rate="1m")
    rule(pid=child_of_it.pid, rate="1m")
    done = purge(scope)
    assert done["removed"]["pids"] == service.pids
    found = snapshot(parent.pid, child_of_it.pid)
    assert set(found.places.values()) == {HOME} and not found.members
    assert not [path for path in found.cgroups if path.startswith(HOME)]
    assert parent.charged() == child_of_it.charged() == set()


def test_who_is_in_a_rules_own_cgroup_since_an_earlier_version_stays_there(service: Service, cgroups: Cgroups) -> None:
    parent, child_of_it = service
    rule(name="web", rate="1m")
    for sender in service:
        cgroups.move(sender.pid, "/speed_limiter/web")
    assert not rule(name="web", pid=parent.pid)["changed"]
    assert place(parent.pid) == place(child_of_it.pid) == "/speed_limiter/web"
    assert info(name="web", gather=["rules"])["rules"][0]["pids"] == service.pids


# ---- what the others see


def test_info_sees_who_is_in_leaves(service: Service, cgroups: Cgroups) -> None:
    parent, child_of_it = service
    rule(name="web", pid=parent.pid, rate="1m")
    found = info(gather=["rules", "processes"])
    web = next(one for one in found["rules"] if one["name"] == "web")
    assert web["pids"] == service.pids
    assert web["members"] == [cgroups.absolute("/speed_limiter/web"), cgroups.absolute(LEAF)]
    assert {(one["pid"], one["cgroup"], one["rule"]) for one in found["processes"]} == {
        (sender.pid, LEAF, "web") for sender in service
    }
    for question in ({"pid": parent.pid}, {"cgroup_path": LEAF}):
        assert [one["name"] for one in info(gather=["rules"], **question)["rules"]] == ["tight", "web"]
    assert len(info(gather=["processes"], name="web")["processes"]) == 2


def test_a_service_is_shown_with_the_rules_that_took_its_processes(service: Service, made: Make) -> None:
    made("/other.slice")
    parent, child_of_it = service
    rule(name="web", pid=parent.pid, children=False, rate="1m")

    def shown(**question: Any) -> list[str]:
        return [one["name"] for one in info(gather=["rules"], **question)["rules"]]

    for above in (HOME, "/tight.slice"):
        assert shown(cgroup_path=above) == ["tight", "web"]
    assert shown(pid=child_of_it.pid) == ["tight"]
    assert not shown(cgroup_path="/other.slice")
    rule(pid=parent.pid, state="absent")
    assert shown(cgroup_path=HOME) == ["tight"]


def test_who_selects_by_name_sees_the_units(service: Service) -> None:
    port = Path(f"/proc/{service.parent.pid}/cmdline").read_text().split("\0")[3]
    selector = {"cmdline": f" {port} "}
    done = rule(name="web", processes=selector, rate="1m", check=True)
    assert done["matched_units"] == [{"unit": "a.service", "cgroup": HOME, "pids": service.pids}]
    assert f"web: takes 2 processes of {HOME}\n" in done["diff"]["after"]
    wanted = {"name": "web", "processes": selector, "rate": "1m"}
    # On a busy machine not all command lines are read in time, which is told.
    until(lambda: rules(wanted, check=True)["matched_units"] == {"web": done["matched_units"]})


# ---- where no leaf is possible


def threaded(home: Path) -> None:
    (home / "below").mkdir()
    (home / "below" / "cgroup.type").write_text("threaded")


def no_descendants(home: Path) -> None:
    (home / "cgroup.max.descendants").write_text("0")


def no_depth(home: Path) -> None:
    (home.parent / "cgroup.max.depth").write_text("1")


def attached_elsewhere(home: Path) -> None:
    limiter.program(cgroup_path="/speed_limiter")


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        (threaded, "threaded (cgroup.type)"),
        (no_descendants, "cgroup.max.descendants of /tight.slice/a.service allows no more"),
        (no_depth, "cgroup.max.depth of /tight.slice allows no more"),
        (attached_elsewhere, "the program is attached to /speed_limiter"),
    ],
)
def test_where_no_leaf_is_possible_it_is_told_what_is_lost(
    service: Service, cgroups: Cgroups, obstacle: Callable[[Path], None], words: str
) -> None:
    parent, child_of_it = service
    obstacle(Path(cgroups.absolute(HOME)))
    predicted = rule(name="web", pid=parent.pid, rate="80mbit", check=True)
    done = rule(name="web", pid=parent.pid, rate="80mbit")
    lost = "the rule 'tight' (1250000 B/s (10 Mbit/s)), what stops or filters that cgroup"
    assert any(words in warning and lost in warning for warning in done["warnings"])
    assert f"web: takes processes out of {HOME}: {lost} no longer hold for them\n" in done["diff"]["after"]
    assert done["diff"] == predicted["diff"]
    assert place(parent.pid) == place(child_of_it.pid) == "/speed_limiter/web"
    assert not rule(name="web", pid=parent.pid, rate="80mbit")["changed"]
    rule(name="web", state="absent")
    assert place(parent.pid) == place(child_of_it.pid) == HOME
    cgroups.remove(f"{HOME}/below")


@pytest.mark.parametrize("levels", [MAX_DEPTH - 2, MAX_DEPTH - 1])
def test_a_leaf_is_not_made_deeper_than_the_program_looks(made: Make, cgroups: Cgroups, levels: int) -> None:
    path = ""
    for _level in range(levels):
        path += "/d"
        made(path)
    with child() as one:
        cgroups.move(one.pid, path)
        done = rule(name="web", pid=one.pid, rate="1m")
        deep = levels == MAX_DEPTH - 1
        assert place(one.pid) == ("/speed_limiter/web" if deep else f"{path}/speed_limiter.web")
        assert bool(lost(done)) == deep
        rule(name="web", state="absent")
        assert place(one.pid) == path


def test_a_leaf_is_not_limited_in_place(service: Service) -> None:
    rule(name="web", pid=service.parent.pid, rate="1m")
    with refused("bad_cgroup_path", "Limit the cgroup above it"):
        rule(name="db", cgroup_path=LEAF, rate="1m")


def test_who_has_a_budget_of_its_own_keeps_it_and_pays_nothing_twice(service: Service) -> None:
    rule(name="each", cgroup_paths=["/tight.slice/*"], each=True, rate="1m")
    rule(name="web", pid=service.parent.pid, rate="80mbit")
    service.parent.charged("new")
    rule(pid=service.parent.pid, state="absent")
    for through in ("udp", "new"):
        service.parent.charged(through)
    found = limiter.packets()  # with those of budgets
    assert found["each"] == found["tight"] == 3


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "own cgroup"])
def test_who_is_taken_by_the_rule_of_his_budget_pays_once(made: Make, leaf: bool) -> None:
    made("/some.slice")
    with limiter.senders("/some.slice/a.service") as (sender,):
        if not leaf:
            limiter.refuse_leaves("/some.slice/a.service")
        rule(name="each", cgroup_paths=["/some.slice/*"], each=True, rate="1m")

        def paid(through: str) -> int:
            before = limiter.packets()["each"]  # with those of budgets
            assert sender.charged(through) == {"each"}
            return limiter.packets()["each"] - before

        rule(name="each", pid=sender.pid)
        assert [paid(through) for through in ("udp", "made in the rule")] == [1, 1]
        rule(name="each", pid=sender.pid, state="absent")
        assert [paid(through) for through in ("udp", "made in the rule", "late")] == [1, 1, 1]
        limiter.purge()
