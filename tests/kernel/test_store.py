# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that are stored: what tasks write, what they find there, and what they refuse to read or to write."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Refused
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import store
from ansible_collections.speed_limiter.ebpf.tests.support import limiter, stored
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, purge, rule, rules
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import steps

SERVICE = {"name": "web", "rate": "1m", "bucket": "1m"}
FIELDS = {"schema": 1, "rate": 1048576, "bucket": 1048576}


@pytest.fixture(scope="module", autouse=True)
def a_program() -> Iterator[None]:
    """One that is loaded soon; the rules are what matters here."""
    with limiter.stand_in(), limiter.clean_host():
        limiter.program()
        yield


@pytest.fixture(autouse=True)
def no_rules(cgroups: Callable[[str], str]) -> Iterator[None]:
    cgroups("/service")
    yield
    purge()
    for entry in stored.DIRECTORY.glob("*"):
        entry.unlink()


@pytest.fixture
def read_only() -> Iterator[None]:
    """What is in /etc/speed_limiter, as on an image-based host."""
    stored.DIRECTORY.mkdir(parents=True, exist_ok=True)
    place = str(stored.DIRECTORY.parent)
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    yield
    subprocess.run(["umount", place], check=True)


def test_a_rule_is_stored_and_its_file_follows_it() -> None:
    made = rule(**SERVICE, cgroup_paths="/service", persistent=True)
    assert made["changed"] and made["rule"]["persistent"]
    assert stored.content("web") == {**FIELDS, "places": [{"path": "/service"}]}
    assert not rule(**SERVICE, cgroup_paths="/service", persistent=True)["changed"]
    assert not rule(**SERVICE)["changed"]
    assert rule(name="web", rate="2m")["rule"]["persistent"]
    assert stored.content("web")["rate"] == stored.content("web")["bucket"] == 2 << 20
    assert info(gather=["rules"])["rules"][0]["persistent"]
    ended = rule(name="web", persistent=False)
    assert ended["changed"] and not ended["rule"]["persistent"] and not stored.file("web").exists()


def test_check_mode_says_what_is_stored_and_stores_nothing() -> None:
    foretold = rule(**SERVICE, persistent=True, check=True)
    assert not stored.file("web").exists()
    assert foretold["diff"] == rule(**SERVICE, persistent=True)["diff"]
    assert foretold["diff"]["after"].endswith(", persistent\n")
    assert rule(name="web", state="absent", check=True)["changed"] and stored.file("web").exists()


def test_who_unloads_the_program_is_told_that_the_next_boot_loads_it() -> None:
    rules({**SERVICE, "persistent": True}, {"name": "db", "rate": "1m"})
    (warning,) = limiter.program(state="absent", check=True)["warnings"][:1]
    assert warning == "the next boot loads it again, for the rules that are stored: web"


def test_files_are_roots_and_everybody_may_read_them() -> None:
    old = os.umask(0o077)
    try:
        rule(**SERVICE, persistent=True)
    finally:
        os.umask(old)
    for path, mode in ((stored.file("web"), 0o644), (stored.DIRECTORY, 0o755), (stored.DIRECTORY.parent, 0o755)):
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) == (0, 0, mode)
    assert os.listdir(stored.DIRECTORY) == ["web.json"]


def test_what_is_removed_is_not_stored_any_more() -> None:
    rules({**SERVICE, "persistent": True}, {"name": "db", "rate": "1m", "persistent": True})
    assert rule(name="db", state="absent")["changed"] and not stored.file("db").exists()
    stored.put("lost", rate=8000)
    removed = rules({"name": "dns", "rate": "1m"}, purge=True)
    assert removed["summary"] == {"created": 1, "changed": 0, "removed": 2, "unchanged": 0}
    assert os.listdir(stored.DIRECTORY) == []


@pytest.mark.parametrize("scope", ["rules", "all"])
def test_a_purge_removes_files_too(scope: str) -> None:
    rule(**SERVICE, persistent=True)
    stored.put("lost", rate=8000)
    unfinished, foreign = stored.DIRECTORY / "web.json.new", stored.DIRECTORY / "README"
    unfinished.write_text("{")
    foreign.write_text("mine")
    files = [str(stored.file(name)) for name in ("lost", "web")]
    assert purge(scope, check=True)["removed"]["stored"] == files
    assert purge(scope)["removed"]["stored"] == files
    assert os.listdir(stored.DIRECTORY) == ["README"]
    assert not purge(scope)["changed"]
    foreign.unlink()
    if scope == "all":
        purge("all")
        assert not stored.DIRECTORY.parent.exists()
        limiter.program()


def test_a_purge_of_what_is_stale_leaves_what_is_stored() -> None:
    stored.put("lost", rate=8000)
    rule(**SERVICE, persistent=True)
    assert not purge("stale")["changed"]
    assert sorted(os.listdir(stored.DIRECTORY)) == ["lost.json", "web.json"]


def link(path: Path) -> None:
    path.rename(path.with_suffix(".kept"))
    path.symlink_to(path.with_suffix(".kept"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a symbolic link": (link, "it is a symbolic link"),
    "somebody else's": (lambda path: os.chown(path, 1000, 0), "its owner is uid 1000, not root"),
    "writable for a group": (lambda path: path.chmod(0o664), "others may write to it (mode 0664)"),
    "a pipe": (pipe, "it is no regular file"),
    "cut off": (lambda path: path.write_text('{"schema": 1, "ra'), "it is no JSON"),
    "empty": (lambda path: path.write_text(""), "it is no JSON"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe{"), "it is no JSON"),
    "a list": (lambda path: path.write_text("[]"), "it holds no JSON object"),
    "of no schema": (lambda path: path.write_text('{"rate": 8000}'), "its schema is None"),
    "newer": (lambda path: path.write_text('{"schema": 2}'), "its schema is 2"),
    "with a field of its own": (
        lambda path: path.write_text('{"schema": 1, "rate": 8000, "until": 5}'),
        "does not know its field 'until'",
    ),
    "without a rate": (lambda path: path.write_text('{"schema": 1}'), "rate is missing"),
    "with a rate that is none": (lambda path: path.write_text('{"schema": 1, "rate": "5mbps"}'), "rate: '5mbps'"),
    "with a path that is none": (
        lambda path: path.write_text('{"schema": 1, "rate": 8000, "places": [{"path": "a"}]}'),
        "it does not begin with a slash",
    ),
    "with a path twice": (
        lambda path: path.write_text('{"schema": 1, "rate": 8000, "places": [{"path": "/a"}, {"path": "/a/"}]}'),
        "the path /a is there twice",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_a_file_that_is_bad_is_refused_alone_and_can_be_removed(spoil: Callable[[Path], object], words: str) -> None:
    rule(**SERVICE, persistent=True)
    spoil(stored.put("bad", rate=8000))
    found = store.read()
    bad = found.files["bad"]
    assert isinstance(bad, Refused) and words in bad.why
    assert not isinstance(found.files["web"], Refused)
    assert rule(name="bad", state="absent")["changed"]
    assert not os.path.lexists(stored.file("bad"))


def test_a_bad_file_of_a_rule_is_told_left_and_replaced_on_request() -> None:
    rule(**SERVICE, persistent=True)
    stored.file("web").write_text("{")
    changed = rule(name="web", rate="2m")
    assert "is not applied at boot: it is no JSON" in changed["warnings"][0] and not changed["rule"]["persistent"]
    assert stored.file("web").read_text() == "{"
    assert rule(name="web", persistent=True)["rule"]["persistent"] and stored.content("web")["rate"] == 2 << 20


def test_names_that_no_rule_has_are_told_and_left() -> None:
    for name in ("a b", "memory.max", "pid-1", ""):
        stored.put(name, rate=8000)
    (stored.DIRECTORY / "notes.txt").touch()
    found = store.read()
    assert found.files == {} and sorted(found.strange) == [".json", "a b.json", "memory.max.json", "pid-1.json"]
    purge()
    assert len(os.listdir(stored.DIRECTORY)) == 5


@pytest.mark.parametrize("place", [stored.DIRECTORY, stored.DIRECTORY.parent], ids=["rules.d", "speed_limiter"])
def test_a_directory_that_others_can_write_to_is_refused(place: Path) -> None:
    rule(**SERVICE, persistent=True)
    place.chmod(0o777)
    try:
        assert store.read().unsafe == f"{place} is refused: others may write to it (mode 0777)"
        with refused("not_stored", "others may write to it"):
            rule(name="web", rate="2m", persistent=True)
        assert info(gather=["rules"])["rules"][0]["rate"] == 1 << 20
        changed = rule(name="web", rate="2m")
        assert changed["changed"] and f"neither read nor changed: {place} is refused" in changed["warnings"][0]
    finally:
        place.chmod(0o755)


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    stored.DIRECTORY.mkdir(parents=True, exist_ok=True)
    stored.DIRECTORY.rmdir()
    stored.DIRECTORY.symlink_to(tmp_path)
    try:
        with refused("not_stored", "it is a symbolic link"):
            rule(**SERVICE, persistent=True)
        assert list(tmp_path.iterdir()) == [] and info(gather=["rules"])["rules"] == []
    finally:
        stored.DIRECTORY.unlink()


def test_where_etc_is_read_only_nothing_is_begun(read_only: None) -> None:
    with limiter.refused_unchanged("not_stored", "/etc/speed_limiter/rules.d", "EROFS", "persistent=false"):
        rule(**SERVICE, persistent=True)
    assert rule(**SERVICE, persistent=False)["changed"]


def test_where_etc_is_read_only_a_rule_of_the_image_can_go_until_the_next_boot() -> None:
    stored.put("web", rate=1 << 20)
    rule(**SERVICE)
    place = str(stored.DIRECTORY.parent)
    subprocess.run(["mount", "--bind", "-o", "ro", place, place], check=True)
    try:
        gone = rule(name="web", state="absent")
        assert gone["changed"] and "is applied at the next boot" in gone["warnings"][0]
        assert not rule(name="web", state="absent")["changed"]
        assert not purge()["changed"] and not purge()["removed"]["stored"]
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    stored.DIRECTORY.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=0755", "tmpfs", str(stored.DIRECTORY)], check=True)
    try:
        (stored.DIRECTORY / "full").write_bytes(bytes(4096))
        with limiter.refused_unchanged("not_stored", "web.json could not be written", "ENOSPC"):
            rule(**SERVICE, persistent=True)
        assert os.listdir(stored.DIRECTORY) == ["full"]
    finally:
        subprocess.run(["umount", str(stored.DIRECTORY)], check=True)


def many(rate: str) -> list[dict[str, object]]:
    return [{"name": f"many-{number:02}", "rate": rate, "persistent": True} for number in range(20)]


def test_many_are_stored_or_none_of_them_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rules(*many("1m"))
    before = {path.name: path.read_bytes() for path in stored.DIRECTORY.iterdir()}
    assert len(before) == 20
    inside: list[set[str]] = []

    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(stored.DIRECTORY)):
            return sync(descriptor)
        inside.append(set(os.listdir(stored.DIRECTORY)))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with limiter.refused_unchanged("not_stored", "many-00.json could not be written", "EIO"):
        rules(*many("2m"))
    assert inside == [{*before, *(f"{name}.new" for name in before)}]  # all are written, and none is in its place
    assert {path.name: path.read_bytes() for path in stored.DIRECTORY.iterdir()} == before


def test_who_is_killed_while_many_are_stored_leaves_whole_files_and_the_next_task_no_others() -> None:
    def rates() -> set[int]:
        """Raises ValueError for half a file."""
        found = [json.loads(path.read_text())["rate"] for path in stored.DIRECTORY.glob("many-*.json")]
        assert len(found) == 20
        return set(found)

    for step in steps(100, 7):
        rules(*many("1m"))
        end, text = run_with(Fault.KILLED, step, lambda: rules(*many("2m")))
        assert rates() <= {1 << 20, 2 << 20}
        rule(name="other", rate=f"{step + 1}m", persistent=True)
        assert not list(stored.DIRECTORY.glob("*.new"))
        rules(*many("2m"))
        assert rates() == {2 << 20}
        if (end, text) == (End.DONE, UNTOUCHED):
            return
    assert step > 40
