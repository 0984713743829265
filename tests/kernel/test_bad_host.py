# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts on which a task cannot succeed, or where others are in the way: what it says, and that nothing is half made."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import (
    nothing,
    program,
    purge,
    refused_unchanged,
    rule,
    rules,
    snapshot,
)

NEW: dict[str, Any] = {"name": "new", "rate": "1m"}


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    """A host without a program."""
    with limiter.clean_host() as found:
        yield found


@pytest.fixture
def web(cgroups: Cgroups) -> Cgroups:
    """A host with the program and a rule ``web``."""
    rule(name="web", rate="1m")
    return cgroups


# ---- what the kernel or the system lacks

IN_OWN_MOUNTS = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]


def lacking(what: str, mount: str) -> list[str]:
    command = {
        "cgroup2": f"umount -l {mount}",
        "BTF": "mount -t tmpfs tmpfs /sys/kernel/btf",
    }
    return [*IN_OWN_MOUNTS, f'{command[what]}; exec "$@"', "sh"]


LACKS = {
    "cgroup2": ("no_cgroup2", ["no cgroup2 file system is mounted", "Mount it", "systemd.unified_cgroup_hierarchy=1"]),
    "BTF": ("no_btf", ["/sys/kernel/btf/vmlinux", "ENOENT", "CONFIG_DEBUG_INFO_BTF"]),
}


@pytest.mark.parametrize(("what", "kind", "words"), [(what, *said) for what, said in LACKS.items()], ids=list(LACKS))
def test_what_the_host_lacks_is_said_and_information_is_still_given(
    cgroups: Cgroups, what: str, kind: str, words: list[str]
) -> None:
    empty = nothing()
    prefix = lacking(what, cgroups.mount)
    for check in ("True", "False"):
        code, text = elsewhere.run(prefix, f"rule(name='new', rate='1m', check={check})")
        assert code != 0
        assert text.startswith(f"{kind}: "), text
        for word in words:
            assert word in text
    assert snapshot()._replace(files=()) == empty
    code, text = elsewhere.run(prefix, "info()")
    assert code == 0, text


RESTRICTED = {
    "another user": (
        ["setpriv", "--reuid=65534", "--clear-groups"],
        "not_root",
        ["needs root", "another user", "become: true"],
    ),
    "root without capabilities": (
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
        "not_permitted",
        ["EPERM", "CAP_BPF", "become: true"],
    ),
}


@pytest.mark.parametrize("loaded", [False, True], ids=["on a fresh host", "beside a rule"])
@pytest.mark.parametrize(("prefix", "kind", "words"), RESTRICTED.values(), ids=list(RESTRICTED))
def test_who_may_not_is_told_what_is_needed(
    cgroups: Cgroups, prefix: list[str], kind: str, words: list[str], loaded: bool
) -> None:
    if loaded:
        rule(name="web", rate="1m")
    before = snapshot()
    for call in ("rule(name='new', rate='1m')", "rule(name='web', state='absent', rate='1m')", "purge('all')"):
        code, text = elsewhere.run(prefix, call)
        assert snapshot()._replace(files=(), pins=()) == before._replace(files=(), pins=())
        if code == 0:
            assert not loaded  # then there is nothing to purge that would need more
            continue
        assert text.startswith(f"{kind}: "), text
        for word in words:
            assert word in text


@pytest.mark.parametrize("loaded", [False, True], ids=["on a fresh host", "beside a rule"])
def test_who_may_not_use_bpf_is_told_what_could_not_be_seen_and_the_rest(cgroups: Cgroups, loaded: bool) -> None:
    if loaded:
        rule(name="web", rate="1m")
    prefix = RESTRICTED["root without capabilities"][0]
    seen = ast.literal_eval(elsewhere.said(prefix, "info()"))
    assert (seen["program"], seen["hook"], seen["processes"]) == (None, None, [])
    assert any("EPERM" in text and "CAP_BPF" in text for text in seen["unseen"])
    assert set(seen["unseen"]) <= {*seen["warnings"], *seen["host"]["missing"]}
    known = [(found["name"], found["cgroup_path"], found["pids"], found["rate"]) for found in seen["rules"]]
    assert known == ([("web", cgroups.absolute("/speed_limiter/web"), [], None)] if loaded else [])
    for part in ("program", "hook", *(["rules"] if loaded else [])):
        options = {"gather": [part], "cgroup_path": "/speed_limiter/web"} if loaded else {"gather": [part]}
        seen = ast.literal_eval(elsewhere.said(prefix, f"info(**{options})"))
        assert seen[part] is None
        assert seen["unseen"] == seen["warnings"]
        assert seen["unseen"]


# ---- limits of the program


@pytest.mark.parametrize("name", ["rate_limit_config_map", "rate_limit_state_map", "rate_limit_member_map"])
def test_a_full_map_stops_a_whole_list_and_a_purge_makes_room_again(web: Cgroups, name: str) -> None:
    with limiter.opened_maps() as opened:
        limit, bucket = Limit(10**6, 10**6), 10**6
        fill: dict[str, Callable[[int], object]] = {
            "rate_limit_config_map": lambda key: opened.set_limit(key, limit),
            "rate_limit_state_map": lambda key: opened.make_state(key, bucket),
            "rate_limit_member_map": lambda key: opened.add_member(key, key),
        }
        size = 65536 if name == "rate_limit_config_map" else 131072
        for key in range(2**40, 2**40 + size - 1):
            fill[name](key)
    with pytest.raises(LimiterError) as raised:
        rule(**NEW)
    assert raised.value.kind == "map_full"
    for words in (name, f"room for {size} entries", "E2BIG", "speed_limit_purge with scope stale"):
        assert words in str(raised.value)
    with pytest.raises(LimiterError, match="is full"):
        rules({"name": "web", "rate": "5m"}, {"name": "a", "rate": "1m"}, NEW)
    assert web.rule_names() == ["web"]
    with limiter.opened_maps() as opened:
        assert opened.limit(web_id(web)) == Limit(1024**2, 1024**2)
    purge("stale")
    assert snapshot().limits == {"/speed_limiter/web": Limit(1024**2, 1024**2)}
    assert rule(**NEW)["changed"]


def web_id(cgroups: Cgroups) -> int:
    found = cgroups.identifier("/speed_limiter/web")
    assert found is not None
    return found


@pytest.fixture
def nested(web: Cgroups) -> Iterator[list[str]]:
    """Cgroups, each below the one before."""
    paths = ["/" + "/".join(f"n{level}" for level in range(1, depth + 1)) for depth in range(1, 18)]
    for path in paths:
        Path(web.absolute(path)).mkdir()
    yield paths
    for path in reversed(paths):
        Path(web.absolute(path)).rmdir()


def test_a_fifth_rule_on_one_way_up_is_refused(web: Cgroups, nested: list[str]) -> None:
    for level, path in enumerate(nested[:4]):
        rule(name=f"level-{level}", cgroup_path=path, rate="1m")
    words = ["more than 4 rules", "level-0, level-1, level-2, level-3, new", "fewer levels"]
    with refused_unchanged("too_many_rules", *words):
        rule(**NEW, cgroup_path=nested[4])
    with refused_unchanged("too_many_rules", "more than 4"):
        rules({"name": "web", "rate": "2m"}, {**NEW, "cgroup_path": "/", "everything": True})
    rule(name="level-0", state="absent")
    assert rule(**NEW, cgroup_path=nested[4])["changed"]


def test_a_cgroup_deeper_than_the_program_looks_is_refused(web: Cgroups, nested: list[str]) -> None:
    with refused_unchanged("bad_cgroup_path", nested[15], "16 names", "15 levels"):
        rule(**NEW, cgroup_path=nested[15])
    assert rule(**NEW, cgroup_path=nested[14])["changed"]


DELEGATED = "/user.slice/user-1000.slice/user@1000.service/app.slice/*"


def test_no_user_gets_budgets_for_cgroups_that_he_can_make(web: Cgroups) -> None:
    with refused_unchanged("unsafe_each", "could make any number of cgroups", "leave each out"):
        rule(**NEW, cgroup_path=DELEGATED, each=True)
    rule(name="web", cgroup_path="/web-*", each=True)
    with refused_unchanged("unsafe_each", DELEGATED):  # the rule has each already
        rule(name="web", cgroup_path=DELEGATED)
    with refused_unchanged("unsafe_each", DELEGATED):
        rules({"name": "web", "cgroup_path": ["/web-*", DELEGATED], "each": True})
    rules({"name": "web", "cgroup_path": ["/web-*", DELEGATED]})
    with refused_unchanged("unsafe_each", DELEGATED):  # the rule has the path already
        rule(name="web", each=True)


def test_no_user_gets_budgets_below_a_cgroup_of_his(web: Cgroups, nested: list[str]) -> None:
    os.chown(web.absolute(nested[0]), 1000, 1000)
    try:
        for below in (f"{nested[0]}/*", f"{nested[0]}/there/is/nothing/*", f"{nested[1]}/*"):
            with refused_unchanged("unsafe_each", nested[0]):
                rule(**NEW, cgroup_path=below, each=True)
    finally:
        os.chown(web.absolute(nested[0]), 0, 0)


def test_a_cgroup_that_belongs_to_another_rule_is_not_taken_from_it(web: Cgroups, nested: list[str]) -> None:
    rule(name="web", cgroup_path="/n1")
    with refused_unchanged("member_taken", "/n1", "'web'", "state=absent"):
        rule(**NEW, cgroup_path="/n1")


# ---- other people's things


def test_what_others_pin_in_our_directory_stays_and_is_named(web: Cgroups) -> None:
    foreign = Path(pins.path("somebody_elses"))
    foreign.mkdir()
    try:
        assert rule(**NEW)["changed"]
        assert any("somebody_elses was not made by this collection" in warning for warning in purge("all")["warnings"])
        assert os.listdir(pins.PIN_DIR) == ["somebody_elses"]
    finally:
        foreign.rmdir()
        os.rmdir(pins.PIN_DIR)


def test_what_is_no_map_of_ours_but_has_its_name_is_refused(cgroups: Cgroups) -> None:
    os.mkdir(pins.PIN_DIR, 0o700)
    wrong = pins.path("rate_limit_config_map")
    command = f"bpftool map create {wrong} type array key 4 value 4 entries 1 name wrong"
    subprocess.run(command.split(), check=True)
    try:
        for check in (True, False):
            with refused("foreign_pin", wrong, "it is a map of type 2", "who put it there"):
                rule(**NEW, check=check)
        assert os.listdir(pins.PIN_DIR) == ["rate_limit_config_map"]
        assert cgroups.rule_names() == []
    finally:
        os.unlink(wrong)
        os.rmdir(pins.PIN_DIR)


def mode_0755() -> None:
    os.chmod(pins.PIN_DIR, 0o755)


def of_nobody() -> None:
    os.chown(pins.PIN_DIR, 65534, 65534)


def symlink_inside() -> None:
    os.rename(pins.path("rate_limit_config_map"), "/sys/fs/bpf/elsewhere")
    os.symlink("/sys/fs/bpf/elsewhere", pins.path("rate_limit_config_map"))


def symlink() -> None:
    os.rename(pins.PIN_DIR, "/sys/fs/bpf/elsewhere")
    os.symlink("/sys/fs/bpf/elsewhere", pins.PIN_DIR)


def restore() -> None:
    for path in (pins.PIN_DIR, pins.path("rate_limit_config_map")):
        if os.path.islink(path):
            os.unlink(path)
            os.rename("/sys/fs/bpf/elsewhere", path)
    os.chown(pins.PIN_DIR, 0, 0)
    os.chmod(pins.PIN_DIR, 0o700)


UNSAFE = [
    (mode_0755, "its mode is 0755"),
    (of_nobody, "its owner is uid 65534"),
    (symlink_inside, "it is a symbolic link"),
    (symlink, "it is a symbolic link"),
]


@pytest.mark.parametrize(("spoil", "why"), UNSAFE, ids=lambda value: getattr(value, "__name__", None))
def test_a_pin_directory_that_others_could_have_filled_is_refused(
    web: Cgroups, spoil: Callable[[], None], why: str
) -> None:
    tasks: tuple[Callable[[], object], ...] = (
        lambda: rule(**NEW),
        lambda: rule(name="web", state="absent"),
        lambda: purge("all"),
        program,
    )
    before = snapshot()
    spoil()
    try:
        for task in tasks:
            with refused("unsafe_pin_directory", pins.PIN_DIR, "cannot be trusted", why, "who put it there"):
                task()
        assert any(why in missing for missing in limiter.info()["host"]["missing"])
    finally:
        restore()
    assert snapshot() == before


@pytest.mark.parametrize("link", [False, True], ids=["writable for others", "symbolic link"])
def test_a_memory_that_others_could_have_written_is_refused(web: Cgroups, link: bool) -> None:
    before = snapshot()
    if link:
        os.rename(memory.DIRECTORY, "/run/elsewhere")
        os.symlink("/run/elsewhere", memory.DIRECTORY)
    else:
        os.chmod(memory.DIRECTORY, 0o777)
    try:
        for check in (True, False):
            with refused("unsafe_state_directory", memory.DIRECTORY, "is refused", "rm -r"):
                rule(**NEW, check=check)
    finally:
        if link:
            os.unlink(memory.DIRECTORY)
            os.rename("/run/elsewhere", memory.DIRECTORY)
        os.chmod(memory.DIRECTORY, 0o700)
    assert snapshot() == before


def on_root() -> list[tuple[int, bool]]:
    """Programs attached to the root of this sandbox, and whether they are ours; the machine may have others above."""
    return [(entry["id"], entry["ours"]) for entry in limiter.info()["hook"] if entry["cgroup"] == "/"]


def current_program() -> int:
    found: int = limiter.info()["program"]["program_id"]
    return found


def test_another_program_on_the_hook_is_reported_and_outlives_us(cgroups: Cgroups, attach: Callable[..., int]) -> None:
    foreign = attach("/", "multi")
    rule(**NEW)
    assert sorted(on_root()) == sorted([(foreign, False), (current_program(), True)])
    purge("all")
    rule(**NEW)
    program(state="absent")
    assert on_root() == [(foreign, False)]


def test_a_program_that_shares_its_hook_with_none_is_named_with_the_ways_out(
    cgroups: Cgroups, attach: Callable[..., int]
) -> None:
    foreign = attach("/")
    with refused(
        "exclusive_program", f"id {foreign}", "for itself alone", "BPF_F_ALLOW_MULTI", "bpftool cgroup detach"
    ):
        rule(**NEW)
    found = snapshot()
    assert (found.cgroups, found.limits, found.program) == ((), {}, None)


def test_an_object_that_others_could_have_replaced_is_built_again(cgroups: Cgroups) -> None:
    rule(**NEW)
    purge("all")
    os.chmod(build.OBJECT, 0o666)
    assert any(action.startswith("built ") for action in rule(**NEW)["program_actions"])
    assert os.stat(build.OBJECT).st_mode & 0o777 == 0o644
