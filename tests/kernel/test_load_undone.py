# SPDX-License-Identifier: GPL-3.0-or-later
"""A load that the kernel refuses, or a user interrupts, at any of its steps leaves what was there before: which program
is attached where, what paces sockets, what is pinned.
"""

from __future__ import annotations

import errno
import os
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import (
    KernelError,
    Libbpf,
    closing_fd,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import (
    LIMIT_EGRESS,
    OURS,
    PACE_SOCKETS,
    REFUSED_SETTLE,
    an_object,
)

MOST_STEPS = 60
CHANGING = ("object__load", "obj_pin", "link_create", "link_update", "link_detach", "map_update_elem")

Compile = t.Callable[[str], str]
Make = t.Callable[[str], str]


def seen(libbpf: Libbpf) -> dict[str, object]:
    """All that a load may change, but for the generation: who reads it only looks again."""
    found: dict[str, object] = {}
    for name in sorted(os.listdir(pins.PIN_DIR)) if os.path.isdir(pins.PIN_DIR) else ():
        found[name] = None
        if name in catalog.LINKS:
            with closing_fd(libbpf.get(pins.path(name))) as fd:
                info = libbpf.info(fd, "bpf_link_info")
            found[name] = (info.id, info.prog_id, info.cgroup_id if name != catalog.SETTLE.link else None)
    maps = Maps.open(libbpf)
    if maps is not None:
        with maps:
            found["control"] = maps.control()._replace(generation=0)
    return found


class _Fault:
    """Before its step number ``steps`` it is refused, or interrupted; the other steps are done."""

    def __init__(self, patch: pytest.MonkeyPatch, steps: int, interrupts: bool) -> None:
        self.left, self.interrupts, self.happened = steps, interrupts, False
        for name in ("rename", "unlink"):
            patch.setattr(os, name, self._system_call(getattr(os, name)))
        for name in ("call", "try_call"):
            patch.setattr(Libbpf, name, self._libbpf(name, getattr(Libbpf, name)))

    def _next(self) -> bool:
        self.left -= 1
        if self.left != -1:
            return False
        self.happened = True
        if self.interrupts:
            raise KeyboardInterrupt
        return True

    def _system_call(self, function: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(*arguments: t.Any) -> t.Any:
            if self._next():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        return call

    def _libbpf(self, kind: str, function: t.Callable[..., int]) -> t.Callable[..., int]:
        def call(libbpf: Libbpf, name: str, *arguments: t.Any) -> int:
            if name.endswith(CHANGING) and self._next():
                if kind == "call":
                    raise KernelError(name, errno.ENOSPC)
                return -errno.ENOSPC
            return function(libbpf, name, *arguments)

        return call


# What is loaded before, as arguments of `Attachments.load`, and what is then: (cgroup, paced, has an iterator).
Load = tuple[str, bool, bool]
CASES: dict[str, tuple[Load | None, Load]] = {
    "a first load": (None, ("/a", True, True)),
    "a first load without pacing": (None, ("/a", False, True)),
    "an upgrade": (("/a", True, True), ("/a", True, True)),
    "an upgrade to one without an iterator": (("/a", True, True), ("/a", True, False)),
    "a move": (("/", True, True), ("/a", True, True)),
    "pacing is switched on": (("/a", False, True), ("/a", True, True)),
    "pacing is switched off": (("/a", True, True), ("/a", False, True)),
}


@pytest.mark.parametrize("interrupts", [False, True], ids=["refused", "interrupted"])
@pytest.mark.parametrize(("before", "wanted"), CASES.values(), ids=list(CASES))
def test_what_is_refused_or_interrupted_leaves_what_was_there(
    attachments: Attachments,
    libbpf: Libbpf,
    compiled: Compile,
    cgroups: Make,
    before: Load | None,
    wanted: Load,
    interrupts: bool,
) -> None:
    def load(what: Load) -> None:
        cgroup, paced, settles = what
        text = OURS if settles else an_object(LIMIT_EGRESS, PACE_SOCKETS, REFUSED_SETTLE)
        attachments.load(compiled(text), "object:it", cgroup, paced)

    cgroups("/a")
    if before is not None:
        load(before)
    undone = 0
    for steps in range(MOST_STEPS):
        there = seen(libbpf)
        with pytest.MonkeyPatch.context() as patch:
            fault = _Fault(patch, steps, interrupts)
            try:
                load(wanted)
            except (LimiterError, OSError, KeyboardInterrupt):
                failed = True
            else:
                failed = False
        if not fault.happened:
            assert undone >= 2
            return
        if failed and seen(libbpf) == there:
            undone += 1
            continue
        # What need not fail does not; and when all else is done, the old place may still have to be left.
        assert not failed or attachments.unfinished(), f"before step {steps}"
        attachments.unload()
        attachments.remove_maps()
        if before is not None:
            load(before)
    pytest.fail("load() takes too many steps")


def test_a_signal_that_interrupts_the_verifier_is_no_refusal(
    attachments: Attachments, libbpf: Libbpf, compiled: Compile, cgroups: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EAGAIN, also after libbpf's own tries: else a host would silently be limited by its bucket alone."""
    left = 3
    real = Libbpf.call

    def call(bpf: Libbpf, name: str, *arguments: t.Any) -> int:
        nonlocal left
        if name == "bpf_object__load" and left:
            left -= 1
            raise KernelError(name, errno.EAGAIN)
        return real(bpf, name, *arguments)

    cgroups("/a")
    monkeypatch.setattr(Libbpf, "call", call)
    loaded = attachments.load(compiled(OURS), "object:it", "/a", True)
    assert not left and not loaded.warnings
    assert seen(libbpf).keys() >= {catalog.SETTLE.link}
