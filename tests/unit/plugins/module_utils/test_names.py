# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names a rule may have."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.names import (
    check_rule_name,
    controller_file,
)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "_",
        "7",
        "backup",
        "web-1",
        "getty@tty1",
        "10.0.0.1:80",
        "memory",
        "memory.",
        "memories.max",
        "pid-12",
        "x" * 128,
    ],
)
def test_a_usual_name_is_accepted(name: str) -> None:
    check_rule_name("name", name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "-a",
        "@a",
        ":a",
        "a/b",
        "/a",
        "a b",
        "a\n",
        "a\0",
        "\u00fcber",
        "a\u0661",
        "x" * 129,
        "x" * 300,
        "memory.max",
        "cgroup.procs",
        "io.x",
    ],
)
def test_another_name_is_refused_and_named(name: str) -> None:
    with pytest.raises(LimiterError) as caught:
        check_rule_name("rules[3]: name", name)
    assert caught.value.kind == "bad_name"
    assert str(caught.value).startswith("rules[3]: name '")
    assert len(str(caught.value)) < 400


def test_the_error_says_which_of_the_rules_was_broken() -> None:
    for name, words in (
        ("a/b", "letters, digits"),
        ("x" * 300, "300 characters"),
        ("memory.max", "kernel's own files"),
    ):
        with pytest.raises(LimiterError, match=words):
            check_rule_name("name", name)


@pytest.mark.parametrize(
    "name", ["cgroup.procs", "memory.max", "cpu.pressure", "cpuset.cpus.effective", "hugetlb.2MB.max", "pids.max"]
)
def test_files_of_controllers_are_known(name: str) -> None:
    assert controller_file(name)


@pytest.mark.parametrize("name", ["cgroup", "cgroups.procs", "memory", ".memory", "my.memory.max", "cpu-max"])
def test_other_names_are_not_files_of_controllers(name: str) -> None:
    assert not controller_file(name)
