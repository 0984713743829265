# SPDX-License-Identifier: GPL-3.0-or-later
"""The cgroup port on the real cgroup2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.leaves import Leaves
from ansible_collections.speed_limiter.ebpf.tests.support.children import (
    HEADLESS,
    child,
    refused,
    sandbox_cgroups,
    until,
    zombie,
)

STRANGE = ["a b", "a@b", "10.0.0.1:80", "dev-disk-by\\x2duuid.swap", "\u00fcber", "a\tb", "x (deleted)", "a'\"$(b)"]


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with sandbox_cgroups() as found:
        yield found


def make(cgroups: Cgroups, cgroup: str) -> Path:
    directory = Path(cgroups.absolute(cgroup))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def own_cgroup(pid: int) -> str:
    process = processes.read(pid)
    assert process is not None
    return process.cgroup


# ---- the mount


def test_the_mount_that_is_found_is_cgroup2(cgroups: Cgroups) -> None:
    assert (Path(cgroups.mount) / "cgroup.procs").is_file()


@pytest.mark.parametrize("covered", ["the mount point", "the directory above"])
def test_a_mount_that_another_one_hides_is_not_used(cgroups: Cgroups, covered: str) -> None:
    """Another mount of cgroup2 at a strange place is found instead."""
    script = (
        'mount -t tmpfs tmpfs "$1"; mkdir -p "/run/other place"; mount -t cgroup2 cgroup2 "/run/other place"; '
        'exec "$2" -c "from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups '
        'import Cgroups; print(Cgroups.find().mount)"'
    )
    place = cgroups.mount if covered == "the mount point" else str(Path(cgroups.mount).parent)
    assert run_in_new_mounts(script, place).stdout == "/run/other place\n"


def test_without_cgroup2_the_error_says_what_to_do(cgroups: Cgroups) -> None:
    script = (
        'umount -l "$1"; '
        'exec "$2" -c "from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups '
        'import Cgroups; Cgroups.find()"'
    )
    answer = run_in_new_mounts(script, cgroups.mount)
    assert "no cgroup2 file system is mounted" in answer.stderr
    assert "mount -t cgroup2" in answer.stderr


def run_in_new_mounts(script: str, mount: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-eu", "-c", script, "sh", mount, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- names


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_go_through_the_kernel_and_back(cgroups: Cgroups, name: str) -> None:
    cgroup = f"/outer/{name}"
    directory = make(cgroups, cgroup)
    assert cgroups.relative("cgroup_path:", cgroup) == cgroup
    assert cgroups.relative("cgroup_path:", str(directory) + "/") == cgroup
    assert cgroups.identifier(cgroup) == directory.stat().st_ino
    with child() as process:
        cgroups.move(process.pid, cgroup)
        assert own_cgroup(process.pid) == cgroup
        assert cgroups.pids(cgroup) == [process.pid]


@pytest.mark.parametrize(
    ("path", "cgroup"),
    [("/", "/"), ("a", "/a"), ("//a//b/./c/", "/a/b/c"), ("/missing/b", "/missing/b"), ("/...", "/...")],
)
def test_paths_are_normalised_and_need_not_exist(cgroups: Cgroups, path: str, cgroup: str) -> None:
    assert cgroups.relative("cgroup_path:", path) == cgroup


def test_the_mount_point_itself_is_the_root(cgroups: Cgroups) -> None:
    assert cgroups.relative("cgroup_path:", cgroups.mount) == "/"
    assert cgroups.relative("cgroup_path:", cgroups.mount + "/") == "/"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "empty"),
        ("/a/../b", "'..'"),
        ("..", "'..'"),
        ("/a\0b", "NUL"),
        ("/a\nb", "line end"),
        ("/cgroup.procs", "a file"),
        ("/" + "x" * 5000, "ENAMETOOLONG"),
    ],
)
def test_bad_paths_are_refused(cgroups: Cgroups, path: str, words: str) -> None:
    with refused("bad_cgroup_path") as caught:
        cgroups.relative("cgroup_path:", path)
    assert words in str(caught[0]) and str(caught[0]).startswith("cgroup_path: '")


def test_a_path_in_cgroup_v1_is_refused(cgroups: Cgroups) -> None:
    if cgroups.mount == "/sys/fs/cgroup":
        pytest.skip("this host has no cgroup v1 beside cgroup2")
    with refused("bad_cgroup_path") as caught:
        cgroups.relative("cgroup_path:", "/sys/fs/cgroup/memory/a")
    assert cgroups.mount in str(caught[0])


def test_another_file_system_below_is_refused(cgroups: Cgroups) -> None:
    directory = make(cgroups, "/covered")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)
    try:
        with refused("bad_cgroup_path") as caught:
            cgroups.relative("cgroup_path:", "/covered")
        assert "another file system" in str(caught[0])
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    """The kernel makes none in cgroup2, so a directory plays the mount."""
    (tmp_path / "link").symlink_to("/")
    with refused("bad_cgroup_path") as caught:
        Cgroups(str(tmp_path)).relative("cgroup_path:", "/link")
    assert "symbolic link" in str(caught[0])


def test_depth_counts_from_the_root(cgroups: Cgroups) -> None:
    assert [cgroups.depth(cgroup) for cgroup in ("/", "/a", "/a/b/c")] == [0, 1, 3]


def test_what_lies_outside_of_the_namespace_has_no_identifier(cgroups: Cgroups) -> None:
    assert cgroups.identifier("/..") is None
    assert cgroups.identifier("/../other") is None
    assert not cgroups.exists("/cgroup.procs")
    assert cgroups.exists("/")


# ---- the rules' own


def test_a_rule_comes_and_goes(cgroups: Cgroups) -> None:
    assert cgroups.rule_names() == []
    made = cgroups.make_rule("backup")
    assert cgroups.make_rule("backup") == made == cgroups.identifier("/speed_limiter/backup")
    cgroups.make_rule("a@b:1")
    assert cgroups.rule_names() == ["a@b:1", "backup"]
    assert cgroups.rules_by_id() == {cgroups.identifier(f"/speed_limiter/{name}"): name for name in ("a@b:1", "backup")}
    assert not cgroups.remove_managed()
    for name in ("backup", "a@b:1", "never-was"):
        cgroups.remove(f"/speed_limiter/{name}")
    assert cgroups.rule_names() == []
    assert cgroups.remove_managed()
    assert not cgroups.exists(cgroups.managed)
    assert cgroups.remove_managed()


def test_a_rule_that_is_made_again_has_another_identifier(cgroups: Cgroups) -> None:
    first = cgroups.make_rule("again")
    cgroups.remove("/speed_limiter/again")
    assert cgroups.make_rule("again") != first


def test_empty_cgroups_below_a_rule_go_with_it(cgroups: Cgroups) -> None:
    cgroups.make_rule("deep")
    make(cgroups, "/speed_limiter/deep/a/b")
    make(cgroups, "/speed_limiter/deep/c")
    cgroups.remove("/speed_limiter/deep")
    assert not cgroups.exists("/speed_limiter/deep")


def test_a_rule_with_processes_stays_and_the_error_names_them(cgroups: Cgroups) -> None:
    cgroups.make_rule("busy")
    make(cgroups, "/speed_limiter/busy/below")
    with child() as process:
        cgroups.move(process.pid, "/speed_limiter/busy/below")
        with refused("busy_cgroup") as caught:
            cgroups.remove("/speed_limiter/busy")
        assert str(process.pid) in str(caught[0])
        assert "python" in str(caught[0])
        assert cgroups.exists("/speed_limiter/busy")


def test_a_rule_is_removed_right_after_its_process_ended(cgroups: Cgroups) -> None:
    cgroups.make_rule("ended")
    with child() as process:
        cgroups.move(process.pid, "/speed_limiter/ended")
        process.end()
        cgroups.remove("/speed_limiter/ended")
    assert not cgroups.exists("/speed_limiter/ended")


def test_a_rule_is_not_made_over_a_file(cgroups: Cgroups) -> None:
    with refused("cgroup_not_made"):
        cgroups.make_rule("cgroup.procs")


def test_the_kernel_s_limit_of_depth_is_told(cgroups: Cgroups) -> None:
    directory = make(cgroups, cgroups.managed)
    (directory / "cgroup.max.depth").write_text("0")
    with refused("cgroup_not_made") as caught:
        cgroups.make_rule("deep")
    assert "EAGAIN" in str(caught[0])
    assert "cgroup.max.depth" in str(caught[0])


# ---- processes


def test_processes_are_listed_once_with_those_below(cgroups: Cgroups) -> None:
    make(cgroups, "/a/b")
    with child() as outer, child() as inner:
        cgroups.move(outer.pid, "/a")
        cgroups.move(inner.pid, "/a/b")
        assert sorted(cgroups.pids("/a")) == sorted([outer.pid, inner.pid])
        assert cgroups.pids("/a", recursive=False) == [outer.pid]
        assert cgroups.pids("/missing") == []
        assert {outer.pid, inner.pid, os.getpid()} <= set(cgroups.pids("/"))


def test_processes_of_a_threaded_cgroup_are_listed(cgroups: Cgroups) -> None:
    threaded = make(cgroups, "/domain/threaded")
    (threaded / "cgroup.type").write_text("threaded")
    with child() as process:
        cgroups.move(process.pid, "/domain/threaded")
        assert own_cgroup(process.pid) == "/domain/threaded"
        assert cgroups.pids("/domain/threaded") == [process.pid]
        assert cgroups.pids("/domain") == [process.pid]
        cgroups.move(process.pid, "/")


def test_a_process_without_its_first_thread_is_listed_and_moved(cgroups: Cgroups) -> None:
    make(cgroups, "/a")
    with child(HEADLESS) as process:
        until(lambda: "Z (zombie)" in Path(f"/proc/{process.pid}/status").read_text())
        cgroups.move(process.pid, "/a")
        assert own_cgroup(process.pid) == "/a"
        assert cgroups.pids("/a") == [process.pid]


def test_a_thread_s_number_moves_the_whole_process(cgroups: Cgroups) -> None:
    make(cgroups, "/a")
    with child(HEADLESS) as process:
        cgroups.move(int(process.words[0]), "/a")
        assert cgroups.pids("/a") == [process.pid]


def test_a_dead_process_is_told(cgroups: Cgroups) -> None:
    make(cgroups, "/a")
    with child() as process:
        process.end()
        for pid in (process.pid, 0, -1):
            with refused("dead_process"):
                cgroups.move(pid, "/a")
        with refused("dead_process"):
            Leaves(cgroups, None, None).move_back(process.pid, "/a", "rule")


def test_a_zombie_is_nowhere(cgroups: Cgroups) -> None:
    make(cgroups, "/a")
    with zombie() as pid:
        assert pid not in cgroups.pids("/")


def test_a_kernel_thread_is_told(cgroups: Cgroups) -> None:
    make(cgroups, "/a")
    with refused("kernel_thread") as caught:
        cgroups.move(2, "/a")
    assert "kthreadd" in str(caught[0])
    assert cgroups.pids("/a") == []


def test_missing_and_invalid_cgroups_are_told_apart(cgroups: Cgroups) -> None:
    (make(cgroups, "/domain/threaded") / "cgroup.type").write_text("threaded")
    make(cgroups, "/domain/invalid")
    with child() as process:
        for cgroup, words in (("/missing", "ENOENT"), ("/domain/invalid", "EOPNOTSUPP"), ("/..", "namespace")):
            with refused("unusable_cgroup") as caught:
                cgroups.move(process.pid, cgroup)
            assert words in str(caught[0])
        assert own_cgroup(process.pid) == "/"


def test_a_process_goes_back_to_the_nearest_cgroup_that_takes_it(cgroups: Cgroups) -> None:
    make(cgroups, "/a/b")
    cgroups.make_rule("rule")
    with child() as process:
        for origin, goal in (
            ("/a/b", "/a/b"),
            ("/a/b/gone/too", "/a/b"),
            ("/gone/too", "/"),
            ("/../outside", "/"),
            ("/speed_limiter/gone", "/"),
            ("/speed_limiter", "/"),
            ("/", "/"),
        ):
            cgroups.move(process.pid, "/speed_limiter/rule")
            assert Leaves(cgroups, None, None).move_back(process.pid, origin, "rule") == goal
            assert own_cgroup(process.pid) == goal


def test_children_are_born_in_the_rule(cgroups: Cgroups) -> None:
    cgroups.make_rule("rule")
    with child(
        "import os, sys; print('ready', flush=True); sys.stdin.readline(); os.fork(); sys.stdin.read()"
    ) as process:
        cgroups.move(process.pid, "/speed_limiter/rule")
        assert process.process.stdin is not None
        process.process.stdin.write("\n")
        process.process.stdin.flush()
        until(lambda: len(cgroups.pids("/speed_limiter/rule")) == 2)
