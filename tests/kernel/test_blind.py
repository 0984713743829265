# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that forbids BPF to look into its memory (lockdown=confidentiality) takes the program without such looks."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import shortcomings
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import KernelError, Libbpf
from ansible_collections.speed_limiter.ebpf.tests.support import limiter

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
    tried = 0
    call = Libbpf.call

    def refuses_the_first(self: Libbpf, name: str, *arguments: Any) -> Any:
        nonlocal tried
        if name == "bpf_object__load":
            tried += 1
            if tried == 1:
                raise KernelError("the kernel did not load the BPF program", errno.EINVAL)
        return call(self, name, *arguments)

    forbids = mock.patch.object(shortcomings, "forbids_looking", return_value=True)
    with mock.patch.object(Libbpf, "call", refuses_the_first), forbids:
        limiter.program(state="reloaded")
    assert tried == 2
    assert looks() == []
    with limiter.senders("/mirror") as [sender]:
        made = limiter.rule(name="mirror", rate="1m", cgroup_path="/mirror")
        assert sender.charged() == {"mirror"}
        assert "not found by their names" in "".join(made["unenforced"])
