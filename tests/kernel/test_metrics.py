# SPDX-License-Identifier: GPL-3.0-or-later
"""`limiter metrics` on the running kernel, and its file in a directory that belongs to others."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import main
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import publish
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import program, rule
from prometheus_client.parser import text_string_to_metric_families

OTHERS = 65534
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found, mock.patch.object(main, "_listen"):
        yield found


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of a user other than root, and a path in it."""
    directory = tmp_path / "textfile"
    directory.mkdir()
    os.chown(directory, OTHERS, OTHERS)
    return directory / "speed_limiter.prom"


def read(text: str) -> dict[tuple[str, str], float]:
    """The samples, by name and rule; those with other labels are left out."""
    return {
        (sample.name, sample.labels.get("rule", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.keys() <= {"rule"}
    }


def printed(output: Output, status: int = 0) -> str:
    assert main.main(["metrics"]) == status
    return output.readouterr().out


def test_all_rules_are_measured(capsys: Output) -> None:
    nothing = read(printed(capsys))
    assert nothing == {
        ("speed_limiter_up", ""): 1,
        ("speed_limiter_program_loaded", ""): 0,
        ("speed_limiter_rules", ""): 0,
    }
    for name, rate in (("backup", "1m"), ("mirror", "2m")):
        rule(name=name, rate=rate)
    found = read(printed(capsys))
    assert (found["speed_limiter_program_loaded", ""], found["speed_limiter_rules", ""]) == (1, 2)
    assert found["speed_limiter_rule_limit_bytes_per_second", "backup"] == 2**20
    assert found["speed_limiter_rule_limit_bytes_per_second", "mirror"] == 2**21
    assert found["speed_limiter_rule_limited", "mirror"] == 1
    assert found["speed_limiter_rule_bytes_total", "mirror"] == 0
    assert found["speed_limiter_rule_each", "mirror"] == 0
    assert found["speed_limiter_rule_utilization_ratio", "mirror"] == 0
    program(state="absent")
    assert read(printed(capsys))["speed_limiter_program_loaded", ""] == 0


def test_what_cannot_be_looked_at_is_told_and_not_counted(capsys: Output) -> None:
    rule(name="backup", rate="1m")
    with mock.patch(f"{limiter.__name__.rsplit('.', 3)[0]}.plugins.module_utils._limiter.work.info.load") as load:
        load.side_effect = LimiterError("missing_dependency", "libbpf was not found")
        assert main.main(["metrics"]) == 0
    output = capsys.readouterr()
    found = read(output.out)
    assert found["speed_limiter_up", ""] == 0
    assert ("speed_limiter_rule_limit_bytes_per_second", "backup") not in found
    assert "libbpf was not found" in output.err


def test_the_file_is_written_as_a_whole_and_for_all(theirs: Path, capsys: Output) -> None:
    rule(name="backup", rate="1m")
    assert main.main(["metrics", "--write", str(theirs)]) == 0
    assert capsys.readouterr() == ("", "")
    assert read(theirs.read_text())["speed_limiter_rules", ""] == 1
    status = theirs.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o644, 0)
    inode = status.st_ino
    with theirs.open() as reader:
        assert main.main(["metrics", "--write", str(theirs)]) == 0
        assert reader.read().endswith("\n")
    assert theirs.stat().st_ino != inode
    assert os.listdir(theirs.parent) == [theirs.name]


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe", "file"])
@pytest.mark.parametrize("place", ["speed_limiter.prom", ".speed_limiter.prom.new"])
def test_what_others_put_in_the_way_is_not_written_to(theirs: Path, tmp_path: Path, kind: str, place: str) -> None:
    precious, trap = tmp_path / "precious", theirs.parent / place
    precious.write_text("precious")
    precious.chmod(0o600)
    if kind == "symbolic link":
        trap.symlink_to(precious)
    elif kind == "hard link":
        trap.hardlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(trap)
    else:
        trap.write_text("left by a task that was killed")
    publish.publish(str(theirs), b"new\n")
    assert theirs.read_text() == "new\n" and os.listdir(theirs.parent) == [theirs.name]
    assert (precious.read_text(), stat.S_IMODE(precious.stat().st_mode)) == ("precious", 0o600)


def test_a_lock_of_others_is_not_waited_for(theirs: Path, capsys: Output) -> None:
    held = os.open(theirs.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main.main(["metrics", "--write", str(theirs)]) == 1
    finally:
        os.close(held)
    assert "another process holds a lock of its directory. Run again. (locked)" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["nosuch/a.prom", "directory"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, place: str, capsys: Output) -> None:
    (tmp_path / "directory").mkdir()
    assert main.main(["metrics", "--write", str(tmp_path / place)]) == 1
    assert f"{tmp_path / place} cannot be written" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["directory"]
