# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a kernel's shortcomings explains which refusal."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.shortcomings import (
    Kernel,
    explained,
    of,
    refused,
)

GOOD = Kernel("6.1.0-28-amd64", (6, 1), btf=True, lockdown="none", bits=64)
OLD: dict[str, Any] = {"release": "4.19.0-27-amd64", "version": (4, 19)}
READS = "EINVAL (Invalid argument): program of this type cannot use helper bpf_probe_read_kernel#113"


@pytest.mark.parametrize(
    ("lacks", "kinds"),
    [
        ({}, []),
        (OLD, ["kernel_too_old"]),
        ({"release": "5.9.0", "version": (5, 9)}, ["kernel_too_old"]),
        ({"release": "5.10.0", "version": (5, 10)}, []),
        ({"btf": False}, ["no_btf"]),
        ({**OLD, "btf": False, "bits": 32}, ["kernel_32_bit", "kernel_too_old", "no_btf"]),
        ({"lockdown": "confidentiality"}, []),
        ({"lockdown": None}, []),
    ],
)
def test_all_that_is_lacking_is_listed_with_what_helps(lacks: dict[str, Any], kinds: list[str]) -> None:
    found = of(GOOD._replace(**lacks))
    assert [shortcoming.kind for shortcoming in found] == kinds
    for shortcoming in found:
        assert "Run a" in str(shortcoming)


@pytest.mark.parametrize(
    ("kind", "why", "lacks", "then"),
    [
        ("load_failed", "EINVAL", OLD, "kernel_too_old"),
        ("kernel", "EINVAL", OLD, "kernel_too_old"),
        ("no_btf", "ENOENT", OLD, "kernel_too_old"),
        ("load_failed", "ESRCH", {"btf": False}, "no_btf"),
        ("load_failed", READS, {"lockdown": "confidentiality"}, "locked_down"),
        ("load_failed", READS, {"lockdown": "integrity"}, "load_failed"),
        ("load_failed", "EINVAL", {"lockdown": "confidentiality"}, "load_failed"),
        ("load_failed", "EINVAL", {}, "load_failed"),
        # These have causes of their own.
        ("exclusive_program", "EPERM", OLD, "exclusive_program"),
        ("no_compiler", "", {"btf": False}, "no_compiler"),
        ("not_permitted", "EPERM", OLD, "not_permitted"),
    ],
)
def test_a_refusal_that_a_shortcoming_explains_gets_its_kind_and_keeps_its_own_words(
    kind: str, why: str, lacks: dict[str, Any], then: str
) -> None:
    error = explained(LimiterError(kind, "it was refused", why), GOOD._replace(**lacks))
    assert error.kind == then
    assert "it was refused" in str(error)
    assert why in str(error)


def test_where_nothing_may_be_done_a_lockdown_that_forbids_something_is_told() -> None:
    error = LimiterError("not_permitted", "it was refused", "EPERM", "Run it as root")
    assert "lockdown (confidentiality," in str(explained(error, GOOD._replace(lockdown="confidentiality")))
    for mode in ("integrity", "none", None):  # in integrity, as with Secure Boot, everything works
        assert "lockdown" not in str(explained(error, GOOD._replace(lockdown=mode)))


def test_what_lockdown_takes_of_pacing_is_told_with_the_kernels_words() -> None:
    text = refused(READS, GOOD._replace(lockdown="confidentiality"))
    for words in ("lockdown (confidentiality,", "bpf_probe_read_kernel#113", "lockdown=integrity"):
        assert words in text
    assert refused(READS, GOOD) == READS
    assert refused("EPERM", GOOD._replace(lockdown="confidentiality")) == "EPERM"
