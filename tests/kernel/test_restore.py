# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that has lost all that was in its kernel gets its rules back from what is stored."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build, libbpf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import host
from ansible_collections.speed_limiter.ebpf.tests.support import stored
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, program, rule, rules, snapshot
from ansible_collections.speed_limiter.ebpf.tests.support.stored import WANTED, loaded, restore

pytestmark = pytest.mark.usefixtures("built_host")


def test_rules_come_back_as_they_were_and_stay_so() -> None:
    rules(*WANTED)
    before, was_loaded, files = loaded(), info(gather=["program"])["program"]["identity"], snapshot().stored
    stored.power_off()
    assert info(gather=["rules", "boot"])["boot"]["problems"] == [
        f"/etc/speed_limiter/rules.d/{name}.json: it is not applied: no such rule is loaded"
        for name in ("bare", "users", "web")
    ]
    done = restore()
    assert (done["applied"], done["changed_rules"], done["problems"]) == (3, 3, [])
    assert loaded() == before and snapshot().stored == files
    assert info(gather=["program"])["program"]["identity"] == was_loaded
    assert not restore()["changed"]
    assert not rules(*WANTED, purge=True)["changed"]
    assert not program()["changed"]
    assert info(gather=["boot"])["boot"]["problems"] == []


def test_check_mode_says_what_it_would_do_and_does_nothing() -> None:
    rules(*WANTED)
    stored.power_off()
    before = snapshot()
    foretold = restore(check=True)
    assert foretold["changed"] and foretold["applied"] == 3 and snapshot() == before
    assert foretold["diff"]["before"].splitlines()[1:] == [
        f"{name}: absent, stored as {limit}{places}"
        for name, limit, places in (
            ("bare", "2097152 B/s (16.8 Mbit/s), bucket 2097152 B", ""),
            ("users", "6250000 B/s (50 Mbit/s), bucket 1048576 B", ", limits each of /users/user-*.slice"),
            (
                "web",
                "1048576 B/s (8.39 Mbit/s), bucket 1048576 B",
                ", limits /service, limits /system.slice/web@*.service",
            ),
        )
    ]


def test_what_is_stored_is_the_whole_truth_of_its_rule() -> None:
    rule(**WANTED[0])
    rule(name="web", rate="2m", cgroup_paths="/other", each=True, persistent=True)
    stored.put("web", rate=1 << 20, places=[{"path": "/service", "unit": "service"}])
    assert restore()["diff"]["after"].endswith("limits /service, persistent\n")
    assert stored.content("web")["places"] == [{"path": "/service", "unit": "service"}]


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, Callable[[Path], object]] = {
    "broken": lambda path: path.write_text('{"schema": 1, "ra'),
    "somebody else's": lambda path: os.chown(path, 1000, 0),
    "newer": lambda path: path.write_text('{"schema": 2}'),
    "a directory": into_directory,
    "of a path that is too deep": lambda path: path.write_text(
        json.dumps({"schema": 1, "rate": 8000, "places": [{"path": "/x" * 16}]})
    ),
    "of another rule's path": lambda path: path.write_text(
        json.dumps({"schema": 1, "rate": 8000, "places": [{"path": "/service"}]})
    ),
    "of a pattern as specific as another rule's": lambda path: path.write_text(
        json.dumps({"schema": 1, "rate": 8000, "places": [{"path": "/system.slice/we*1x.service"}]})
    ),
    "for cgroups that users make": lambda path: path.write_text(
        json.dumps({"schema": 1, "rate": 8000, "each": True, "places": [{"path": "/user-1.slice/user@1.service/*"}]})
    ),
    "of no rule": lambda path: path.rename(path.with_name("pid-1.json")),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_one_bad_file_is_named_and_stops_no_other(spoil: Callable[[Path], object]) -> None:
    rules(*WANTED)
    stored.power_off()
    spoil(stored.put("zoo", rate=8000))
    done = restore()
    (problem,) = done["problems"]
    assert problem.startswith("/etc/speed_limiter/rules.d/") and "\n" not in problem, problem
    assert re.search(r"\. \(\w+\)$", problem), problem
    assert [entry["name"] for entry in loaded()] == ["bare", "users", "web"] and done["applied"] == 3
    told = info(gather=["boot"])["boot"]["problems"]
    assert len(told) == 1 and told[0].startswith(problem.partition(": ")[0])
    for entry in stored.DIRECTORY.iterdir():
        if entry.is_dir():
            entry.rmdir()


def test_what_is_wrong_with_a_file_is_told_as_everywhere() -> None:
    stored.put("zoo", rate="160mb")
    with pytest.raises(LimiterError) as raised:
        rule(name="zoo", rate="160mb")
    assert raised.value.kind == "bad_rate" and raised.value.remedy
    assert restore()["problems"] == [f"/etc/speed_limiter/rules.d/zoo.json: {raised.value} (bad_rate)"]


def into_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "bad_file": lambda path: path.write_text("{"),
    "unreadable_file": into_socket,
    "unsafe_rules_directory": lambda path: path.chmod(0o666),
    "bad_name": lambda path: path.rename(path.with_name("pid-1.json")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_refused_has_a_kind(kind: str) -> None:
    KINDS[kind](stored.put("zoo", rate=8000))
    (problem,) = restore()["problems"]
    assert problem.endswith(f". ({kind})")


def test_of_two_files_with_the_same_path_the_first_is_made_and_the_other_named() -> None:
    for name in ("a", "b", "c"):
        stored.put(name, rate=8000, places=[{"path": "/service"}])
    foretold = restore(check=True)
    done = restore()
    for key in ("applied", "changed_rules", "problems"):
        assert foretold[key] == done[key]
    assert foretold["diff"]["after"].endswith(done["diff"]["after"])
    assert len(foretold["diff"]["after"].splitlines()) == 1 + 1  # the program, too
    problems = done["problems"]
    assert [problem.partition(": ")[0][-6:] for problem in problems] == ["b.json", "c.json"]
    assert "already limited by 'a'" in problems[0]


EXCLUDING: dict[str, list[str]] = {
    "ambiguous_patterns": ["/sla*/x", "/*ice/x"],
    "too_many_rules": ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/b/c/d/e"],
    "member_taken": ["/service", "/x", "/service", "/y"],
}


@pytest.mark.parametrize("kind", EXCLUDING)
def test_check_mode_foretells_which_of_files_that_exclude_each_other_is_refused(kind: str) -> None:
    for number, path in enumerate(EXCLUDING[kind]):
        stored.put(f"rule{number}", rate=8000, places=[{"path": path}])
    foretold, done = restore(check=True), restore()
    (problem,) = done["problems"]
    assert problem.endswith(f"({kind})") and foretold["problems"] == [problem]
    assert foretold["program_actions"] and len(set(foretold["program_actions"])) == len(foretold["program_actions"])
    assert foretold["applied"] == done["applied"] == len(EXCLUDING[kind]) - 1
    assert restore(check=True)["problems"] == [problem] and not restore()["changed"]


def test_nothing_stored_needs_nothing() -> None:
    assert not restore()["changed"] and snapshot().program is None


def test_a_directory_that_others_can_write_to_is_no_reason_to_limit() -> None:
    rules(*WANTED)
    stored.power_off()
    stored.DIRECTORY.chmod(0o777)
    try:
        with refused("unsafe_rules_directory", "no stored rule is applied", "mode 0777"):
            restore()
        assert "others may write to it" in info(gather=["boot"])["boot"]["problems"][0]
    finally:
        stored.DIRECTORY.chmod(0o755)


@contextlib.contextmanager
def no_compiler() -> Iterator[None]:
    missing = LimiterError("no_compiler", "the BPF program cannot be compiled", "clang is not installed")
    with mock.patch.object(build, "find_compiler", side_effect=missing):
        yield


def test_the_object_that_lies_there_is_loaded_and_no_compiler_is_asked() -> None:
    rules(*WANTED)
    stored.power_off()
    with no_compiler():
        assert restore()["problems"] == []
    assert not program()["changed"]


def test_a_host_whose_etc_and_usr_are_read_only_boots_as_any() -> None:
    rules(*WANTED)
    wanted = loaded()
    stored.power_off()
    places = (str(stored.DIRECTORY), str(Path(build.OBJECT).parent))
    with contextlib.ExitStack() as stack, no_compiler():
        for place in places:
            subprocess.run(["mount", "--bind", place, place], check=True)
            stack.callback(subprocess.run, ["umount", place], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        done = restore()
        assert done["problems"] == [] and done["warnings"] == [] and loaded() == wanted
        assert not restore()["changed"]


def test_a_copied_object_is_loaded_as_the_role_loads_it() -> None:
    rules(*WANTED)
    Path(build.STAMP).unlink()
    stored.power_off()
    with no_compiler():
        restore()
    assert not program(object=build.OBJECT)["changed"]


def refused_by_this_kernel() -> None:
    """As by one that it was not made for: the first instruction of the program is one that no kernel has."""
    path = Path(build.OBJECT)
    data = bytearray(path.read_bytes())
    [table] = struct.unpack_from("=Q", data, 40)
    size, count, names = struct.unpack_from("=HHH", data, 58)
    sections = [struct.unpack_from("=IIQQQ", data, table + size * number) for number in range(count)]
    begins = {data[sections[names][4] + one[0] :].partition(b"\0")[0].decode(): one[4] for one in sections}
    data[begins["cgroup_skb/egress"]] = 0xFF
    path.write_bytes(data)


LOST: dict[str, tuple[Callable[[], object], str]] = {
    "gone": (lambda: os.unlink(build.OBJECT), "no_object"),
    "cut off": (lambda: os.truncate(build.OBJECT, 500), "bad_object"),
    "refused by this kernel": (refused_by_this_kernel, "load_failed"),
}


@pytest.mark.parametrize(("lose", "kind"), LOST.values(), ids=LOST)
def test_an_object_that_cannot_be_loaded_is_built_once_where_that_is_possible(
    lose: Callable[[], object], kind: str
) -> None:
    rules(*WANTED)
    stored.power_off()
    lose()
    with no_compiler(), refused(kind, "cannot be built here: ", "clang is not installed", "role setup"):
        restore()
    assert snapshot().program is None
    done = restore()
    assert done["program_actions"][-2] == f"built {build.OBJECT}" and done["problems"] == []
    stored.power_off()
    assert not any("built" in action for action in restore()["program_actions"])


def test_an_object_that_somebody_else_could_have_changed_is_refused() -> None:
    rules(*WANTED)
    stored.power_off()
    os.chown(build.OBJECT, 1000, 0)
    try:
        with refused("unsafe_object", "uid 1000"):
            restore()
    finally:
        os.chown(build.OBJECT, 0, 0)


def test_without_libbpf_it_says_so() -> None:
    rules(*WANTED)
    stored.power_off()
    gone = mock.patch.object(host, "load", lambda: libbpf.load("libbpf.so.none"))
    with gone, refused("missing_dependency", "libbpf.so.none"):
        restore()


def test_a_program_is_attached_where_the_role_wants_it() -> None:
    stored.put("web", rate=8000)
    with refused("no_cgroup", "/none"):
        restore(cgroup="/none")
    restore(cgroup="/service", paced=False)
    seen = info(gather=["program"])["program"]
    assert (seen["cgroup"], seen["pacing"]["state"]) == ("/service", "off")


def test_a_thousand_rules_come_back_soon() -> None:
    for number in range(1000):
        stored.put(f"rule{number}", rate=8000 + number, places=[{"path": f"/system.slice/unit{number}.service"}])
    program()
    begun = time.monotonic()
    done = restore()
    print(f"1,000 stored rules: {time.monotonic() - begun:.2f} s")
    assert done["applied"] == 1000 and done["problems"] == []
    assert not restore()["changed"]
