# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that forbids BPF to look into its memory (lockdown=confidentiality) takes the program without such looks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.refusing import forbidding_looks

PINNED = "/sys/fs/bpf/speed_limiter/limit_egress_link"
BPFTOOL = shutil.which("bpftool") or "/usr/sbin/bpftool"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with limiter.clean_host():
        yield


def bpftool(*arguments: str) -> str:
    return subprocess.run([BPFTOOL, *arguments], check=True, capture_output=True, text=True).stdout


def looks() -> list[str]:
    """The calls of all its functions that read the kernel's memory."""
    number = bpftool("link", "show", "pinned", PINNED).partition("prog ")[2].split()[0]
    return [
        line for line in bpftool("prog", "dump", "xlated", "id", number).splitlines() if "call bpf_probe_read" in line
    ]


def test_no_function_of_the_program_looks_where_the_kernel_forbids_it() -> None:
    limiter.program()
    assert looks()
    with forbidding_looks():
        limiter.program(state="reloaded")
    assert looks() == []
    with limiter.senders("/mirror") as [sender]:
        made = limiter.rule(name="mirror", rate="1m", cgroup_path="/mirror")
        assert sender.charged() == {"mirror"}
        assert "not found by their names" in "".join(made["unenforced"])
