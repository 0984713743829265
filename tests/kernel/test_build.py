# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/build.py with the real compiler and the running kernel's types, in a /usr that is thrown away."""

from __future__ import annotations

import hashlib
import os
import shutil
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.generated import bpf_source
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import run_uncached

if t.TYPE_CHECKING:
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments


@pytest.fixture(autouse=True)
def nothing_built() -> t.Iterator[None]:
    def clean() -> None:
        for path in ("/usr/share/speed_limiter", "/usr/lib/speed_limiter"):
            if os.path.isfile(path):
                os.unlink(path)
            shutil.rmtree(path, ignore_errors=True)

    clean()
    yield
    clean()


def build_once() -> str:
    """For tests that need an object that was built, and not that it is built now, which takes long."""
    return build.build(limiter.run_command)


def is_up_to_date() -> bool:
    return build.up_to_date(build.inputs(run_uncached))


def test_the_object_is_built_where_the_role_and_the_seed_have_it_and_always_the_same(attachments: Attachments) -> None:
    assert not is_up_to_date()
    old = os.umask(0o077)
    try:
        assert build.build(run_uncached) == "/usr/lib/speed_limiter/limiter.bpf.o"
    finally:
        os.umask(old)
    assert is_up_to_date()
    sources = Path("/usr/share/speed_limiter/src")
    assert {path.name for path in sources.iterdir()} == {*bpf_source.SOURCES, "vmlinux.h"}
    for path in [*sources.iterdir(), *Path("/usr/lib/speed_limiter").iterdir()]:
        assert (path.stat().st_uid, path.stat().st_mode & 0o7777) == (0, 0o644), path
    for path in (sources, sources.parent, Path("/usr/lib/speed_limiter")):
        assert path.stat().st_mode & 0o7777 == 0o755, path
    assert sorted(os.listdir("/usr/lib/speed_limiter")) == ["limiter.bpf.o", "limiter.bpf.o.json"]
    first, identity = build.inputs(run_uncached), build.identity_of_object(build.OBJECT)
    attachments.load(build.OBJECT, first.identity, "/")
    assert attachments.current() is not None
    assert build.identity_of_object(build.build(run_uncached)) == identity
    assert build.inputs(run_uncached) == first
    assert first.identity.startswith("source:")
    assert identity.startswith("object:")
    assert {len(first.identity), len(identity)} == {7 + 48}


def test_another_source_compiler_kernel_or_architecture_makes_it_out_of_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_once()
    assert is_up_to_date()

    def newer_compiler(arguments: t.Sequence[str], check_rc: bool = False) -> tuple[int, str, str]:
        return 0, "clang version 99", ""

    assert not build.up_to_date(build.inputs(newer_compiler))
    with monkeypatch.context() as patch:
        patch.setitem(bpf_source.SOURCES, "wire.h", bpf_source.SOURCES["wire.h"] + "\n")
        assert not is_up_to_date()
    with monkeypatch.context() as patch:
        types = tmp_path / "vmlinux"
        types.write_bytes(b"another kernel's")
        patch.setattr(build, "BTF", str(types))
        assert not is_up_to_date()
    with monkeypatch.context() as patch:
        machine = os.uname()
        patch.setattr(os, "uname", lambda: type(machine)([*machine[:4], "another"]))
        assert not is_up_to_date()
    assert is_up_to_date()


def test_an_object_that_is_not_what_was_built_is_out_of_date_until_it_is_built_again() -> None:
    """A run that is killed between the object and its stamp leaves the first of these."""
    built, stamp = Path(build_once()), Path(build.STAMP)
    damages: dict[str, t.Callable[[], object]] = {
        "object replaced": lambda: built.write_bytes(b"\x7fELF"),
        "object gone": built.unlink,
        "object a symlink": lambda: built.symlink_to(built.rename(f"{built}.kept")),
        "object writable by others": lambda: built.chmod(0o666),
        "object not root's": lambda: os.chown(built, 1234, 0),
        "stamp gone": stamp.unlink,
        "stamp cut off": lambda: stamp.write_text('{"identity": '),
        "stamp of another kind": lambda: stamp.write_text("[]"),
    }
    whole, stamped = built.read_bytes(), stamp.read_bytes()
    for name, damage in damages.items():
        damage()
        assert not is_up_to_date(), name
        for path, data in ((built, whole), (stamp, stamped)):
            path.unlink(missing_ok=True)
            path.write_bytes(data)
            path.chmod(0o644)
        assert is_up_to_date(), name
    built.unlink()
    build_once()
    assert is_up_to_date()


def test_without_a_bpftool_that_runs_libbpf_writes_the_types(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attachments: Attachments
) -> None:
    """Ubuntu's bpftool is a wrapper that fails where the running kernel's tools are not installed."""
    wrapper = tmp_path / "bpftool"
    wrapper.write_text("#!/bin/sh\necho 'WARNING: bpftool not found for kernel 1.2.3' >&2\nexit 2\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    attachments.load(build.build(run_uncached), "source:test", "/")
    header = Path("/usr/share/speed_limiter/src/vmlinux.h").read_text()
    assert "struct __sk_buff {" in header
    assert "preserve_access_index" in header


def test_without_clang_the_error_names_packages_and_the_way_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda command, path=None: None)
    with pytest.raises(LimiterError) as raised:
        build.inputs(run_uncached)
    assert raised.value.kind == "no_compiler"
    for words in ("clang is not installed", "libbpf-dev (Debian, Ubuntu)", "libbpf-devel (Fedora", "option object"):
        assert words in str(raised.value)


def test_a_clang_that_does_not_run_is_told() -> None:
    with pytest.raises(LimiterError, match="/clang does not run: libLLVM is missing") as raised:
        build.inputs(lambda arguments, check_rc=False: (127, "", "libLLVM is missing\n"))
    assert raised.value.kind == "no_compiler"


def test_without_btf_the_error_names_the_kernels_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BTF", "/sys/kernel/btf/nothing")
    with pytest.raises(LimiterError, match="/sys/kernel/btf/nothing.*ENOENT.*CONFIG_DEBUG_INFO_BTF") as raised:
        build.build(run_uncached)
    assert raised.value.kind == "no_btf"


def test_without_libbpfs_headers_the_error_names_their_package() -> None:
    def without_headers(arguments: list[str], check_rc: bool = False) -> tuple[int, str, str]:
        return run_uncached([*arguments, "-nostdlibinc"] if "-c" in arguments else arguments)

    with pytest.raises(LimiterError, match="headers.*are not installed. Install libbpf-dev") as raised:
        build.build(without_headers)
    assert raised.value.kind == "no_libbpf_headers"
    assert not is_up_to_date()


def test_what_the_compiler_says_is_in_the_error_and_the_old_object_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    built = Path(build_once())
    before = hashlib.sha256(built.read_bytes()).digest()
    monkeypatch.setitem(bpf_source.SOURCES, catalog.LIMITER.source, "int broken(void) { return nonsense; }\n")
    with pytest.raises(LimiterError, match="use of undeclared identifier 'nonsense'") as raised:
        build.build(run_uncached)
    assert raised.value.kind == "compile_failed"
    assert hashlib.sha256(built.read_bytes()).digest() == before
    monkeypatch.undo()
    assert is_up_to_date()


def test_a_place_that_cannot_be_written_is_named() -> None:
    Path("/usr/lib/speed_limiter").write_text("a file where the directory should be")
    with pytest.raises(LimiterError, match="/usr/lib/speed_limiter cannot be written: EEXIST") as raised:
        build.build(run_uncached)
    assert raised.value.kind == "cannot_write"


def test_an_object_that_is_not_there_is_named() -> None:
    with pytest.raises(LimiterError, match="/nowhere.o cannot be read: ENOENT") as raised:
        build.identity_of_object("/nowhere.o")
    assert raised.value.kind == "no_object"


@pytest.mark.parametrize("way", ["theirs/limiter.bpf.o", "theirs/below/limiter.bpf.o", "link/below/limiter.bpf.o"])
def test_an_object_whose_directory_is_not_roots_could_be_swapped_and_is_refused(tmp_path: Path, way: str) -> None:
    (tmp_path / "theirs" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / way).write_bytes(b"x")
    build.check_owner(str(tmp_path / way))
    os.chown(tmp_path / "theirs", 1234, 0)
    with pytest.raises(LimiterError, match=f"others may write to {tmp_path}/theirs") as raised:
        build.check_owner(str(tmp_path / way))
    assert raised.value.kind == "unsafe_object"


def test_a_text_file_is_refused_in_one_sentence_each(tmp_path: Path) -> None:
    (tmp_path / "text.o").write_text("not ELF")
    with pytest.raises(LimiterError, match="not a proper ELF object") as raised:
        limiter.program(object=str(tmp_path / "text.o"))
    assert raised.value.kind == "bad_object"
    assert "\n" not in str(raised.value)
