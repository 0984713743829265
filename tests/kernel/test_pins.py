# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/pins.py: a directory of pins that only root could have filled, and nothing else is trusted."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf

if t.TYPE_CHECKING:
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps


@pytest.fixture
def directory() -> t.Iterator[str]:
    """Our directory, empty; whatever is put there goes after the test."""
    pins.ensure()
    yield pins.PIN_DIR
    subprocess.run(["rm", "-rf", pins.PIN_DIR], check=True)


def make_map(name: str, kind: str = "hash", key: int = 8, value: int = 16) -> None:
    arguments = f"bpftool map create {pins.path(name)} type {kind} key {key} value {value} entries 10 name foreign"
    subprocess.run(arguments.split(), check=True)


def in_a_host_of_its_own(code: str, mount_options: str | None = None) -> str:
    """What the code prints where bpffs is not mounted, or is mounted anew with these options."""
    again = f"mount -t bpf -o {mount_options} bpf /sys/fs/bpf;" if mount_options else ""
    script = f'umount -l /sys/fs/bpf; {again} exec "$0" -c "$1"'
    prelude = f"import os\nfrom {pins.__package__} import pins\n"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, sys.executable, prelude + code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_bpffs_is_mounted_where_it_is_missing_for_root_alone_and_that_is_told() -> None:
    code = (
        "print(pins.is_mounted(), pins.ensure(), pins.is_mounted(), pins.ensure())\n"
        "print(oct(os.stat('/sys/fs/bpf').st_mode & 0o7777), oct(os.stat(pins.PIN_DIR).st_mode & 0o7777))"
    )
    done = "['mounted bpffs at /sys/fs/bpf', 'made /sys/fs/bpf/speed_limiter']"
    assert in_a_host_of_its_own(code).splitlines() == [f"False {done} True []", "0o1700 0o700"]


def test_a_bpffs_that_somebody_mounted_by_hand_is_used_as_it_is() -> None:
    assert in_a_host_of_its_own("print(pins.ensure(), pins.is_mounted())", "mode=1777") == (
        "['made /sys/fs/bpf/speed_limiter'] True\n"
    )


def test_a_bpffs_in_which_others_could_replace_our_directory_is_refused() -> None:
    """The kernel mounts it sticky, whatever the options; who took that away opened it."""
    code = "os.chmod('/sys/fs/bpf', 0o777)\ntry: pins.ensure()\nexcept Exception as error: print(error.kind, error)"
    assert in_a_host_of_its_own(code, "mode=0700").startswith("unsafe_pin_directory /sys/fs/bpf cannot be trusted: ")


@pytest.mark.every_kernel
def test_what_is_ours_passes(maps: Maps, libbpf: Libbpf) -> None:
    pins.check(libbpf)
    assert pins.foreign() == []


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o1777])
def test_a_directory_that_lets_others_in_is_refused(directory: str, mode: int) -> None:
    os.chmod(directory, mode)
    with pytest.raises(LimiterError, match=f"its mode is {mode:04o}.*0700") as raised:
        pins.ensure()
    assert raised.value.kind == "unsafe_pin_directory"


@pytest.mark.parametrize("what", ["", "/rate_limit_state_map", "/something"])
def test_what_is_not_roots_is_refused(directory: str, what: str) -> None:
    if what:
        make_map(what[1:])
    os.chown(directory + what, 1234, 0)
    with pytest.raises(LimiterError, match="its owner is uid 1234, not root") as raised:
        pins.check()
    assert raised.value.kind == "unsafe_pin_directory"


@pytest.mark.parametrize("name", ["rate_limit_config_map", "something"])
def test_a_symlink_in_the_directory_is_refused_and_not_followed(directory: str, libbpf: Libbpf, name: str) -> None:
    os.symlink("/sys/fs/bpf/elsewhere", pins.path(name))
    for act in (lambda: pins.check(libbpf), pins.ensure, pins.remove):
        with pytest.raises(LimiterError, match=f"{name} cannot be trusted: it is a symbolic link") as raised:
            act()
        assert raised.value.kind == "unsafe_pin_directory"
    assert os.path.islink(pins.path(name))


def test_a_directory_that_is_a_symlink_is_refused() -> None:
    os.mkdir("/sys/fs/bpf/elsewhere", 0o700)
    os.symlink("/sys/fs/bpf/elsewhere", pins.PIN_DIR)
    try:
        with pytest.raises(LimiterError, match="speed_limiter cannot be trusted: it is a symbolic link"):
            pins.ensure()
    finally:
        os.unlink(pins.PIN_DIR)
        os.rmdir("/sys/fs/bpf/elsewhere")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("hash", 8, 24), ("hash", 4, 16), ("lru_hash", 8, 16)],
)
def test_a_map_of_another_kind_with_our_name_is_named(
    directory: str, libbpf: Libbpf, kind: str, key: int, value: int
) -> None:
    make_map("rate_limit_config_map", kind, key, value)
    with pytest.raises(LimiterError, match=f"rate_limit_config_map is not the limiter's.*keys of {key} ") as raised:
        pins.check(libbpf)
    assert raised.value.kind == "foreign_pin"


def test_another_versions_values_may_be_of_another_size_and_nothing_else(directory: str, libbpf: Libbpf) -> None:
    make_map("rate_limit_config_map", value=24)
    pins.check(libbpf, schema=None)
    make_map("rate_limit_state_map", key=4)
    with pytest.raises(LimiterError, match="rate_limit_state_map is not the limiter's.*keys of 4 ") as raised:
        pins.check(libbpf, schema=None)
    assert raised.value.kind == "foreign_pin"


def test_a_control_map_of_another_size_is_no_versions(directory: str, libbpf: Libbpf) -> None:
    make_map(catalog.CONTROL.name, kind="array", key=4, value=16)
    with pytest.raises(LimiterError, match="rate_limit_control_map is not the limiter's") as raised:
        pins.check(libbpf, schema=None)
    assert raised.value.kind == "foreign_pin"


def test_a_map_where_the_link_should_be_and_a_link_where_a_map_should_be_are_named(
    maps: Maps, attachments: Attachments, libbpf: Libbpf
) -> None:
    os.rename(pins.path(catalog.LIMIT.link), pins.path("kept"))
    os.rename(pins.path("rate_limit_config_map"), pins.path(catalog.LIMIT.link))
    with pytest.raises(LimiterError, match="limit_egress_link is not the limiter's: it is a BPF map"):
        attachments.current()
    os.rename(pins.path(catalog.LIMIT.link), pins.path("map"))
    os.rename(pins.path("kept"), pins.path("rate_limit_config_map"))
    with pytest.raises(LimiterError, match="rate_limit_config_map is not the limiter's: it is a BPF link"):
        attachments.load("/nowhere.o", "object:none", "/")
    os.rename(pins.path("rate_limit_config_map"), pins.path(catalog.LIMIT.link))
    os.rename(pins.path("map"), pins.path("rate_limit_config_map"))


def test_a_directory_with_the_name_of_a_map_is_named(directory: str, libbpf: Libbpf) -> None:
    os.mkdir(pins.path("rate_limit_config_map"))
    for act in (lambda: pins.check(libbpf), pins.remove):
        with pytest.raises(LimiterError) as raised:
            act()
        assert raised.value.kind == "foreign_pin"


def test_only_our_pins_are_removed(directory: str, attachments: Attachments, limiter_object: str) -> None:
    attachments.load(limiter_object, "source:test", "/")
    attachments.unload()
    make_map("not_ours")
    assert pins.foreign() == ["not_ours"]
    assert sorted(pins.remove()) == sorted(pins.path(row.name) for row in catalog.MAPS)
    assert os.listdir(directory) == ["not_ours"]
    os.unlink(pins.path("not_ours"))
    assert pins.remove() == [directory]
    assert pins.remove() == []
