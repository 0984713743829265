# SPDX-License-Identifier: GPL-3.0-or-later
"""Lockdown, as Secure Boot brings it on many machines: limits hold in it, and what the strictest mode takes is told.

A kernel never leaves a mode for a less strict one until it boots, so all is one test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.places import BLIND
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, program, rule
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import RELEASES


@pytest.fixture
def lockdown() -> Path:
    if not elsewhere.MAY_BE_SPOILED:
        pytest.skip("this kernel would stay in lockdown until its next boot: only in a virtual machine")
    path = Path(kernel.LOCKDOWN)
    if not path.exists():
        pytest.fail("this kernel has no lockdown: Debian's have, where securityfs is mounted")
    return path


@pytest.fixture(autouse=True)
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


@pytest.mark.spoils_kernel(1)
@pytest.mark.every_kernel
def test_limits_hold_in_lockdown_and_what_confidentiality_takes_is_told(lockdown: Path) -> None:
    with limiter.senders("/mirror") as [sender]:
        for mode in ("integrity", "confidentiality"):
            lockdown.write_text(mode)
            warnings = program(state="reloaded")["warnings"]
            nameless = mode == "confidentiality"
            made = rule(name="mirror", rate="1m", cgroup_path="/mirror")
            assert (BLIND in made["unenforced"]) is nameless
            assert sender.charged(f"opened in {mode}") == {"mirror"}
            traced = limiter.task("speed_limit_trace", duration=0.5, reason="other_program")
            assert traced["ended"] == "duration"
            warned = [text for text in traced["warnings"] if "another program drops look as if they had passed" in text]
            assert traced["other_drops_seen"] == (not warned)
            assert mode == "confidentiality" or not warned
            found = info(gather=["host", "program"])
            assert found["host"]["lockdown"] == mode
            assert found["host"]["missing"] == []
            pacing = found["program"]["pacing"]
            assert pacing["state"] == "on"
            assert pacing["open_connections"] is (RELEASES and mode == "integrity")
            assert found["program"]["in_place"]["found_by"] == ("id" if nameless else "name")
            if mode == "integrity":
                assert warnings == []
                continue
            consequences = ["traffic that IPsec sends through a tunnel's device is charged twice"]
            if RELEASES:
                consequences.append("connections that are already open are paced and released later")
            assert len(warnings) == len(consequences)
            for warning, consequence in zip(warnings, consequences):
                for words in (
                    consequence,
                    "the kernel is in lockdown (confidentiality, says /sys/kernel/security/lockdown)",
                    "forbids BPF to read the kernel's memory",
                    "lockdown=integrity",
                ):
                    assert words in warning
    with limiter.senders("/mirror") as [again]:
        assert again.charged() == set()
        missed = [BLIND, "it does not reach /mirror until the next rule task"]
        assert info(gather=["rules"])["rules"][0]["unlimited"] == missed
        rule(name="mirror")
        assert again.charged() == {"mirror"}
