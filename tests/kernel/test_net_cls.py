# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody uses net_cls of cgroup v1: on kernels before 5.15, new sockets then belong to no cgroup and nothing limits
them, until the next boot. Elsewhere it is harmless, and nothing is said of it.

On a kernel that has the flaw this ends all limits of the machine: it runs in virtual machines only, after everything
else (all is in one test: what comes first cannot be had again).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.association import can_be_lost
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import association
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, rule, rules

FLAWED = can_be_lost(kernel.version(), association.controllers())
HIERARCHY = "/run/net_cls"
WORDS = ("new connections are not limited", os.uname().release, "net_cls or net_prio", "5.15")


@pytest.fixture
def hierarchy() -> Iterator[Path]:
    """A hierarchy of net_cls with a cgroup that no process is in. Only the first cgroup namespace may make one."""
    if FLAWED and not elsewhere.MAY_BE_SPOILED:
        pytest.skip("this kernel would limit nothing any more, until its next boot: only in a virtual machine")
    os.makedirs(HIERARCHY, exist_ok=True)
    mount = ["nsenter", "--target=1", "--cgroup", "mount", "-t", "cgroup", "-o", "net_cls", "net_cls", HIERARCHY]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Our own virtual machines can, or the test would prove nothing anywhere.
        stop = pytest.fail if elsewhere.MAY_BE_SPOILED else pytest.skip
        stop(f"net_cls of cgroup v1 cannot be mounted here: {done.stderr.strip()}")
    empty = Path(HIERARCHY, "empty")
    empty.mkdir()
    try:
        yield empty
    finally:
        empty.rmdir()
        subprocess.run(["umount", HIERARCHY], check=True)


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


def said() -> dict[str, list[str]]:
    """What each module says against the limits of this host, whose lockdown, another test's, is none of our business."""
    mirror: dict[str, Any] = {"name": "mirror", "rate": "1m", "cgroup_path": "/mirror"}
    tasks = {
        "rule": rule(**mirror),
        "rule, check mode": rule(check=True, **mirror),
        "rules": rules(mirror),
        "rules, check mode": rules(mirror, check=True),
    }
    told = {name: [text for text in task["unenforced"] if "lockdown" not in text] for name, task in tasks.items()}
    for name, task in tasks.items():
        assert not task["changed"]
        assert [warning for warning in task["warnings"] if "net_cls" in warning] == told[name]
    found = info()
    assert found["warnings"] == [text for text in found["host"]["missing"] if "net_cls" in text]
    return {**told, "info": found["warnings"]}


def mode_and_reason() -> tuple[str, str | None]:
    pacing = info(gather=["rules"])["rules"][0]["pacing"]
    return pacing["mode"], pacing["reason"]


def in_the_root() -> list[str]:
    """Our own processes are in the sandbox's cgroup; those of other hosts may be in the root."""
    mounts = [line.split() for line in Path("/proc/1/mounts").read_text().splitlines()]
    procs = next(f"{place}/cgroup.procs" for _device, place, kind, *_rest in mounts if kind == "cgroup2")
    enter = f"nsenter --target=1 --cgroup --mount sh -c 'echo $1 >{procs}' sh $$"
    return ["sh", "-euc", f'{enter}; exec "$@"', "sh"]


# No loopback, no socket to try it with.
WITHOUT_LOOPBACK = ["unshare", "--net"]
WITHOUT_LOG = ["unshare", "--mount", "sh", "-euc", 'mount --bind /dev/null /dev/kmsg; exec "$@"', "sh"]


@pytest.mark.spoils_kernel(2)
@pytest.mark.every_kernel
def test_net_cls_ends_all_limits_on_kernels_that_have_the_flaw_and_every_module_says_so(
    hierarchy: Path, cgroups: Cgroups
) -> None:
    with limiter.senders("/mirror") as [sender]:
        rule(name="mirror", rate="1m", cgroup_path="/mirror")
        assert sender.charged("opened before") == {"mirror"}
        assert set(map(tuple, said().values())) == {()}
        assert info(gather=["host"])["host"]["sockets"] == association.try_here(cgroups) == "kept"
        assert mode_and_reason() == ("paced", None)

        (hierarchy / "net_cls.classid").write_text("0x100001")

        assert sender.charged("opened before") == {"mirror"}
        assert sender.charged("opened afterwards") == (set() if FLAWED else {"mirror"})
        if not FLAWED:
            assert association.try_here(cgroups) == "kept"
            assert set(map(tuple, said().values())) == {()}
            assert info(gather=["host"])["host"]["sockets"] == "kept"
            assert mode_and_reason() == ("paced", None)
            return
        for module, texts in said().items():
            assert len(texts) == 1, module
            for words in (*WORDS, "a socket that was opened as a test has no cgroup", "reboot"):
                assert words in texts[0], (module, texts)
        assert info(gather=["host"])["host"]["sockets"] == "lost"
        mode, reason = mode_and_reason()
        assert mode == "none"
        assert reason is not None and reason.startswith("new connections are not limited")
        assert rule(name="mirror", state="absent")["unenforced"] == []  # nothing is left that could be wrong
        assert info(gather=["rules"])["warnings"] != []

        _other_ways_to_know(hierarchy)


def _other_ways_to_know(hierarchy: Path) -> None:
    rule(name="mirror", rate="1m", cgroup_path="/mirror")
    for call in ("info(gather=['rules'])", "rule(name='mirror', rate='1m')"):
        assert "a socket that was opened as a test has no cgroup" in elsewhere.said(in_the_root(), call)
    call = "info(gather=['host'])"
    assert "the kernel's log says so" in elsewhere.said(WITHOUT_LOOPBACK, call)
    text = elsewhere.said([*WITHOUT_LOOPBACK, *WITHOUT_LOG], call)
    assert "may not be limited" in text and f"{hierarchy}/net_cls.classid has a value" in text and "'suspected'" in text
    (hierarchy / "net_cls.classid").write_text("0")
    text = elsewhere.said([*WITHOUT_LOOPBACK, *WITHOUT_LOG], call)
    assert "'unknown'" in text and "net_cls" not in text
