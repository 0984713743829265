# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/libbpf.py: what is said where something is missing, and cgroups found by their ids."""

from __future__ import annotations

import errno
import gc
import os
import sys
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import libbpf as port
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import KernelError, Libbpf
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import cgroup2

Make = t.Callable[[str], str]


def test_the_version_is_the_librarys(libbpf: Libbpf) -> None:
    assert (1, 0) <= libbpf.version() < (2, 0)


def test_an_interpreter_without_cffi_is_named_with_the_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_cffi_backend", None)
    port._ffi.cache_clear()
    try:
        with pytest.raises(LimiterError) as raised:
            port.load()
    finally:
        port._ffi.cache_clear()
        port._libc.cache_clear()  # bound to the ffi that is forgotten
    assert raised.value.kind == "missing_dependency"
    for words in (sys.executable, "python3-cffi-backend (Debian, Ubuntu)", "python3-cffi (Fedora"):
        assert words in str(raised.value)


def test_a_missing_libbpf_is_named_with_its_package() -> None:
    with pytest.raises(LimiterError) as raised:
        port.load("libbpf.so.99")
    assert raised.value.kind == "missing_dependency"
    for words in (sys.executable, "libbpf.so.99", "libbpf1 (Debian", "libbpf (Fedora"):
        assert words in str(raised.value)


def test_a_libbpf_of_the_0_series_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyOld:
        def dlopen(self, name: str) -> object:
            if name != "libbpf.so.0":
                raise OSError(f"cannot load library {name!r}")
            return object()

    monkeypatch.setattr(port, "_ffi", OnlyOld)
    with pytest.raises(LimiterError, match="libbpf 1.0 or newer is needed: only libbpf.so.0") as raised:
        port.load()
    assert raised.value.kind == "libbpf_too_old"


def test_a_link_that_somebody_is_just_making_stops_nobody(libbpf: Libbpf, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a number already, and cannot be opened yet."""
    monkeypatch.setattr(Libbpf, "try_call", lambda self, name, *arguments: -errno.EAGAIN)
    with libbpf.opened_by_id("link", 1) as fd:
        assert fd is None


def test_a_refusal_has_the_errnos_name_and_number(libbpf: Libbpf) -> None:
    with pytest.raises(KernelError, match="ENOENT \\(No such file or directory\\)") as raised:
        libbpf.get("/sys/fs/bpf/nothing")
    assert (raised.value.kind, raised.value.errno) == ("kernel", 2)


def test_an_error_of_libbpfs_own_is_told_in_its_words() -> None:
    assert port.reason(4003).startswith("libbpf error 4003 (")
    assert len(port.reason(4003)) > len("libbpf error 4003 ()")


def test_the_number_of_a_file_is_no_cgroups(libbpf: Libbpf) -> None:
    file = os.stat(f"{cgroup2()}/cgroup.procs").st_ino
    assert libbpf.cgroup_path_of(str(cgroup2()), file) is None


def test_what_libbpf_says_is_kept_when_another_instance_came_and_went(libbpf: Libbpf) -> None:
    """libbpf has one function to print with: that of an instance that is gone was called, which is freed memory."""
    libbpf.forget_log()
    another = port.load()
    del another
    gc.collect()
    with pytest.raises(KernelError):
        libbpf.pointer("bpf_object__open_file", b"/etc/passwd", libbpf.ffi.NULL)
    assert "'/etc/passwd' is not a proper ELF object" in libbpf.log(1)


def test_what_libbpf_says_is_kept_and_not_printed(libbpf: Libbpf, capfd: pytest.CaptureFixture[str]) -> None:
    libbpf.forget_log()
    with pytest.raises(KernelError):
        libbpf.pointer("bpf_object__open_file", b"/etc/passwd", libbpf.ffi.NULL)
    assert "'/etc/passwd' is not a proper ELF object" in libbpf.log(1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["/plain", "/with space", "/gone (deleted)", "/k\u00e4se\\x2d"])
def test_a_cgroup_is_found_by_its_id_until_it_is_gone(libbpf: Libbpf, cgroups: Make, name: str) -> None:
    mount = str(cgroup2())
    path = cgroups(name)
    cgroup_id = os.stat(mount + path).st_ino
    assert libbpf.cgroup_path_of(mount, cgroup_id) == path
    assert libbpf.cgroup_path_of(mount + "/", cgroup_id) == path
    os.rmdir(mount + path)
    assert libbpf.cgroup_path_of(mount, cgroup_id) is None


def test_a_cgroup_outside_of_the_mount_is_not_found(libbpf: Libbpf) -> None:
    """The sandbox's cgroup2 begins below the host's root, whose id is 1."""
    mount = str(cgroup2())
    assert libbpf.cgroup_path_of(mount, os.stat(mount).st_ino) == "/"
    assert libbpf.cgroup_path_of(mount, 1) is None
    assert libbpf.cgroup_path_of(mount, 2**63) is None
    assert libbpf.is_outside(mount, 1)
    assert not libbpf.is_outside(mount, os.stat(mount).st_ino)


def test_a_cgroup_that_is_gone_is_nowhere(libbpf: Libbpf, cgroups: Make) -> None:
    path = f"{cgroup2()}{cgroups('/gone')}"
    with open(f"{path}/cgroup.procs"):
        cgroup_id = os.stat(path).st_ino
        os.rmdir(path)
        assert not libbpf.is_outside(str(cgroup2()), cgroup_id)
