# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels that cannot limit: which of their shortcomings a task's error names, and that nothing is half made.

The shortcomings are made here: a hidden file, a version that the kernel itself tells to old programs (UNAME26), a
command of bpf(2) that is refused.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import nothing, rule, snapshot
from ansible_collections.speed_limiter.ebpf.tests.support.refusing import BPF_PROG_LOAD, BPF_PROG_QUERY, refusing

OLD = ["setarch", os.uname().machine, "--uname-2.6"]
IN_OWN_MOUNTS = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
WITHOUT_BTF = [*IN_OWN_MOUNTS, 'mount -t tmpfs tmpfs /sys/kernel/btf; exec "$@"', "sh"]
ALONE = "/run/limiter.bpf.o"

TOO_OLD = ["the kernel is 2.6.", "and 5.10 or newer is needed", "Run a newer kernel"]
NO_BTF = ["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]


def in_lockdown(mode: str) -> list[str]:
    said = " ".join(f"[{word}]" if word == mode else word for word in ("none", "integrity", "confidentiality"))
    hide = f'mount -t tmpfs tmpfs /sys/kernel/security; echo "{said}" >/sys/kernel/security/lockdown; exec "$@"'
    return [*IN_OWN_MOUNTS, hide, "sh"]


@pytest.fixture(autouse=True)
def cgroups() -> Iterator[Cgroups]:
    """A host without a program."""
    with limiter.clean_host() as found:
        yield found


@pytest.fixture
def alone() -> str:
    """An object that was built elsewhere."""
    build.build(limiter.run_command)
    shutil.copyfile(build.OBJECT, ALONE)
    os.remove(build.STAMP)
    return ALONE


# How the kernel is seen, and what an error then says, its kind first; where nothing can be known before it is tried,
# check mode says nothing.
LACKING = {
    "too old": ([*OLD, *refusing(BPF_PROG_LOAD, errno.EINVAL)], ["kernel_too_old: ", *TOO_OLD, "EINVAL"], False),
    "too old, without BTF": ([*OLD, *WITHOUT_BTF], ["kernel_too_old: ", *TOO_OLD, *NO_BTF[:1]], True),
    "too old, without BPF for cgroups": (
        [*OLD, *refusing(BPF_PROG_QUERY, errno.EINVAL)],
        ["kernel_too_old: ", *TOO_OLD],
        True,
    ),
    "without BTF": (WITHOUT_BTF, ["no_btf: ", *NO_BTF, "built elsewhere needs it, too"], True),
    "without BPF for cgroups": (
        refusing(BPF_PROG_QUERY, errno.EINVAL),
        ["no_cgroup_bpf: the kernel runs no BPF programs for cgroups", "EINVAL", "CONFIG_CGROUP_BPF=y"],
        True,
    ),
    "in lockdown": (
        [*in_lockdown("confidentiality"), *refusing(BPF_PROG_LOAD, errno.EPERM)],
        ["not_permitted: ", "EPERM", "the kernel is in lockdown (confidentiality, says /sys/kernel/security/lockdown)"],
        False,
    ),
    "forbidden without lockdown": (
        [*in_lockdown("none"), *refusing(BPF_PROG_LOAD, errno.EPERM)],
        ["not_permitted: ", "EPERM", "CAP_BPF"],
        False,
    ),
}


@pytest.mark.parametrize(("prefix", "words", "foreseen"), LACKING.values(), ids=list(LACKING))
def test_what_the_kernel_lacks_is_the_error_and_nothing_is_half_made(
    prefix: list[str], words: list[str], foreseen: bool
) -> None:
    empty = nothing()
    for check in (True, False):
        code, text = elsewhere.run(prefix, f"rule(name='new', rate='1m', check={check})")
        if check and not foreseen:
            assert code == 0, text
            continue
        assert code != 0
        assert text.startswith(words[0]), text
        for word in words:
            assert word in text
    assert snapshot()._replace(files=()) == empty


def test_an_object_that_was_built_elsewhere_needs_btf_too(alone: str) -> None:
    for check in (True, False):
        text = elsewhere.error_of(WITHOUT_BTF, f"program(object={alone!r}, check={check})")
        assert text.startswith("no_btf: "), text
        for word in NO_BTF:
            assert word in text


def test_an_old_number_alone_is_no_reason_to_refuse() -> None:
    """Enterprise distributions bring back what is newer than the number of their kernel says."""
    assert "'name': 'new'" in elsewhere.said(OLD, "rule(name='new', rate='1m')")
    assert snapshot().cgroups == ("/speed_limiter", "/speed_limiter/new")


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (OLD, TOO_OLD),
        (WITHOUT_BTF, NO_BTF),
        (refusing(BPF_PROG_QUERY, errno.EINVAL), ["CONFIG_CGROUP_BPF=y", "'hook': None"]),
        (in_lockdown("integrity"), ["'lockdown': 'integrity'"]),
    ],
    ids=["too old", "without BTF", "without BPF for cgroups", "in lockdown"],
)
def test_info_lists_what_is_missing_and_still_gives_the_rest(prefix: list[str], words: list[str]) -> None:
    text = elsewhere.said(prefix, "info()")
    for word in (*words, "'kernel': ", "'rules': []"):
        assert word in text


def test_a_32_bit_kernel_would_load_the_program_and_limit_nothing_so_it_is_refused() -> None:
    with mock.patch.object(kernel, "_bits", return_value=32):
        for check in (True, False):
            with pytest.raises(LimiterError, match="has 32 bits.*Run a 64-bit kernel") as raised:
                rule(name="new", rate="1m", check=check)
            assert raised.value.kind == "kernel_32_bit"
        assert any("has 32 bits" in text for text in limiter.info()["host"]["missing"])
    assert snapshot() == nothing()


@pytest.mark.parametrize(
    ("kallsyms", "machine", "bits"),
    [
        ("c1000000 T startup_32\n", "i686", 32),
        ("ffffffff81000000 T _stext\n", "i686", 64),  # uname is told to lie: setarch i686
        ("", "armv7l", 32),
        ("", "aarch64", 64),
    ],
)
def test_a_32_bit_interpreter_asks_the_kernel_how_many_bits_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kallsyms: str, machine: str, bits: int
) -> None:
    (tmp_path / "kallsyms").write_text(kallsyms)
    monkeypatch.setattr("sys.maxsize", 2**31 - 1)
    monkeypatch.setattr(kernel, "KALLSYMS", str(tmp_path / "kallsyms"))
    monkeypatch.setattr(os, "uname", lambda: mock.Mock(machine=machine))
    assert kernel._bits() == bits
