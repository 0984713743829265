# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cgroup port makes of mount tables, of limits and of refusals that not every kernel can be brought to."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import mounts
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.leaves import Leaves
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.mounts import Mount
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import association

HYBRID = r"""
25 30 0:23 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 25 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 master:3 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
40 30 0:28 / /mnt/with\040space\134 rw - cgroup2  rw
41 30 0:28 /docker/1 /part rw - cgroup2 cgroup rw
""".strip()


def cgroup2(text: str) -> list[tuple[str, str, str]]:
    found = mounts.parse(text.splitlines(keepends=True))
    return [(mount.point, mount.root, mount.device) for mount in found if mount.kind == "cgroup2"]


def test_whole_and_partial_mounts_are_told_apart_and_escapes_are_read() -> None:
    assert cgroup2(HYBRID) == [
        ("/sys/fs/cgroup/unified", "/", "0:28"),
        ("/mnt/with space\\", "/", "0:28"),
        ("/part", "/docker/1", "0:28"),
    ]


def test_a_later_mount_on_the_same_place_hides_the_earlier() -> None:
    later = HYBRID + "\n50 32 0:99 / /sys/fs/cgroup/unified rw - tmpfs tmpfs rw"
    assert [point for point, _root, _device in cgroup2(later)] == ["/mnt/with space\\", "/part"]


def test_hierarchies_of_net_cls_and_net_prio_are_found_whatever_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    old = "\n".join(
        [
            HYBRID,
            r"51 31 0:30 / /old\040cgroups rw - cgroup cgroup rw,net_cls,net_prio",
            "52 31 0:31 / /cpu rw - cgroup cgroup rw,cpu",
            "53 31 0:32 / /other rw - ext4 net_cls rw",
        ]
    )
    found = mounts.parse(old.splitlines(keepends=True))
    monkeypatch.setattr(mounts, "listed", lambda: found)
    assert association._hierarchies() == ["/old cgroups"]


def show(monkeypatch: pytest.MonkeyPatch, visible: bool, *found: tuple[str, str]) -> None:
    monkeypatch.setattr(mounts, "listed", lambda: [Mount(point, "cgroup2", root, "0:1") for point, root in found])
    monkeypatch.setattr(Mount, "visible", visible)


@pytest.mark.parametrize(
    ("seen", "chosen"),
    [
        (["/cg", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"], "/sys/fs/cgroup"),
        (["/cg", "/sys/fs/cgroup/unified"], "/sys/fs/cgroup/unified"),
        (["/other", "/cg"], "/other"),
    ],
)
def test_the_usual_places_are_preferred(monkeypatch: pytest.MonkeyPatch, seen: list[str], chosen: str) -> None:
    show(monkeypatch, True, *((point, "/") for point in seen))
    assert Cgroups.find().mount == chosen


@pytest.mark.parametrize(
    ("found", "words"),
    [([], "no cgroup2"), ([("/part", "/docker/1")], "a part"), ([("/cg", "/")], "hidden by another mount")],
)
def test_without_a_mount_the_cause_is_told(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, str]], words: str
) -> None:
    show(monkeypatch, False, *found)
    with pytest.raises(LimiterError, match=words) as caught:
        Cgroups.find()
    assert caught.value.kind == "no_cgroup2"
    assert "systemd.unified_cgroup_hierarchy=1" in caught.value.remedy


def test_limits_are_found_on_the_cgroup_and_above_but_not_on_the_root(tmp_path: Path) -> None:
    service = tmp_path / "system.slice" / "db.service"
    service.mkdir(parents=True)
    for file, text in (
        ("pids.max", "100\n"),  # the root of a namespace: not lost
        ("system.slice/cpu.max", "50000 100000\n"),
        ("system.slice/memory.max", "max\n"),
        ("system.slice/db.service/memory.max", "1073741824\n"),
        ("system.slice/db.service/memory.high", "max\n"),
        ("system.slice/db.service/cpu.max", "max 100000\n"),
        ("system.slice/db.service/cpuset.cpus", "\n"),
        ("system.slice/db.service/memory.low", "1000\n"),
    ):
        (tmp_path / file).write_text(text)
    cgroups = Cgroups(str(tmp_path))
    assert cgroups.limits("/system.slice/db.service") == ["memory.max", "cpu.max"]
    assert cgroups.limits("/system.slice") == ["cpu.max"]
    assert cgroups.limits("/") == []
    assert cgroups.limits("/gone/too") == []
    assert cgroups.limits("/../outside") == []


def test_a_cgroup_that_gives_controllers_is_told_and_left_out_on_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says EBUSY; the cgroups of a test host may have no controller to bring it to that."""
    (tmp_path / "slice" / "inner").mkdir(parents=True)
    for directory in ("", "slice", "slice/inner"):
        (tmp_path / directory / "cgroup.procs").touch()
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink() == tmp_path / "slice" / "inner" / "cgroup.procs":
            raise OSError(errno.EBUSY, "busy")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    cgroups = Cgroups(str(tmp_path))
    with pytest.raises(LimiterError, match=r"cgroup.subtree_control.*EBUSY") as caught:
        cgroups.move(1, "/slice/inner")
    assert caught.value.kind == "unusable_cgroup"
    leaves = Leaves(cgroups, None, None)
    assert leaves.move_back(1, "/slice/inner", "web") == "/slice"
    assert (tmp_path / "slice" / "cgroup.procs").read_text() == "1"
    assert not (tmp_path / "slice" / "inner" / "speed_limiter.web").exists()

    def mkdir(path: str, mode: int) -> None:
        make(path, mode)
        Path(path, "cgroup.procs").touch()

    make = os.mkdir
    monkeypatch.setattr(os, "mkdir", mkdir)
    refuge = "/slice/inner/speed_limiter.web"  # there all limits above it hold on
    assert leaves.move_back(2, "/slice/inner", "web") == refuge == leaves.move_back(3, "/slice/inner", "web")
    assert (tmp_path / refuge[1:] / "cgroup.procs").read_text() == "3"
    leaves.rules[refuge] = "web"  # who is released is not limited again
    assert leaves.move_back(4, "/slice/inner", "web") == "/slice"
