# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that forbids BPF to look into its memory (lockdown=confidentiality) takes the program without such looks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import main
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.places import BLIND
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


def test_what_is_not_found_by_its_name_is_told_wherever_one_looks(capfd: pytest.CaptureFixture[str]) -> None:
    with limiter.senders("/mirror") as [sender]:
        limiter.rule(name="mirror", rate="1m", cgroup_path="/mirror", persistent=True)
        limiter.rule(name="pid", rate="1m", pid=sender.pid)
        seen = limiter.info(gather=["program", "rules", "boot"])
        assert seen["program"]["in_place"] == {"found_by": "name", "reason": None}
        assert [rule["unlimited"] for rule in seen["rules"]] == [[], []]
        with forbidding_looks():
            limiter.program(state="reloaded")
        limiter.rule(name="pid", state="absent")
        seen = limiter.info(gather=["program", "rules", "boot"])
        assert seen["program"]["in_place"] == {"found_by": "id", "reason": BLIND}
        assert seen["rules"][0]["unlimited"] == [BLIND] and BLIND in seen["boot"]["problems"]
        assert [rule["name"] for rule in limiter.info(gather=["rules"], pid=sender.pid)["rules"]] == ["mirror"]
    with limiter.senders("/mirror") as [again]:
        assert again.charged() == set()
        [mirror] = limiter.info(gather=["rules"])["rules"]
        missed = "it does not reach /mirror until the next rule task"
        assert mirror["unlimited"] == [BLIND, missed] and mirror["waiting"] == []
        assert limiter.info(gather=["rules"], pid=again.pid)["rules"] == []
        assert "no rule holds" in limiter.info(gather=["use"], pid=again.pid)["why"]["text"]
        assert main.main(["list"]) == 0
        told = capfd.readouterr().err
        assert all(f"limiter: warning: mirror: {text}\n" in told for text in (BLIND, missed))
        limiter.rule(name="mirror")
        assert again.charged() == {"mirror"}
        assert limiter.info(gather=["rules"])["rules"][0]["unlimited"] == [BLIND]
        assert main.main(["list", "--bpf"]) == 0
        assert "in place  found by id" in capfd.readouterr().out
