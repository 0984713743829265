# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/attachments.py with real programs, ours and other people's, on the hook of real cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Program
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf, closing_fd
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import cgroup2, load_program
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import (
    CARRY_OVER,
    LIMIT_EGRESS,
    OURS,
    PACE_SOCKETS,
    SETTLE_SOCKETS,
    SOMEONE_ELSES,
    an_object,
)
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import RELEASES, steps

RULE, LIMIT = 4711, Limit(rate=10**6, bucket=10**6)
PINNED = sorted(
    [
        *(row.name for row in catalog.MAPS),
        catalog.LIMIT.link,
        catalog.PACE.link,
        *([catalog.SETTLE.link] if RELEASES else []),
    ]
)

Make = t.Callable[[str], str]
Compile = t.Callable[[str], str]


def ours(attachments: Attachments, cgroup: str) -> list[str | None]:
    """Where our program is attached, of all that runs for a cgroup."""
    return [entry["cgroup"] for entry in attachments.on_hook(cgroup) if entry["ours"]]


def program(attachments: Attachments) -> Program:
    current = attachments.current()
    assert current is not None
    return current


def limits(libbpf: Libbpf) -> dict[int, Limit]:
    maps = Maps.open(libbpf)
    assert maps is not None
    with maps:
        return maps.limits()


@pytest.mark.every_kernel
def test_a_program_is_loaded_where_none_was(attachments: Attachments, limiter_object: str, cgroups: Make) -> None:
    below = cgroups("/a")
    assert attachments.current() is None
    attachments.load(limiter_object, "source:first", "/")
    assert (program(attachments).identity, program(attachments).cgroup) == ("source:first", "/")
    assert ours(attachments, below) == ["/"]
    assert sorted(os.listdir(pins.PIN_DIR)) == PINNED


@pytest.mark.every_kernel
def test_an_upgrade_keeps_link_rules_tokens_and_counters(
    attachments: Attachments, limiter_object: str, maps: Maps
) -> None:
    maps.set_limit(RULE, LIMIT)
    maps.make_state(RULE, 12345)
    state = maps._state.items()
    before = program(attachments)
    attachments.load(limiter_object, "source:second", "/")
    after = program(attachments)
    assert after.identity == "source:second"
    assert after.link_id == before.link_id
    assert after.program_id != before.program_id
    assert maps.limits() == {RULE: LIMIT}  # through descriptors that were opened before
    assert maps._state.items() == state


def test_a_program_that_nobody_wrote_down_is_unknown(attachments: Attachments, maps: Maps) -> None:
    maps.write_control(maps.control()._replace(program_id=1))
    assert program(attachments).identity == "unknown"


def test_the_attach_point_moves_and_the_rules_stay(
    attachments: Attachments, limiter_object: str, maps: Maps, cgroups: Make
) -> None:
    cgroups("/a")
    maps.set_limit(RULE, LIMIT)
    attachments.load(limiter_object, "source:test", "/a")
    assert program(attachments).cgroup == "/a"
    assert (ours(attachments, "/"), ours(attachments, "/a")) == ([], ["/a"])
    assert not pins.exists(catalog.LIMIT.moving)
    assert maps.limits() == {RULE: LIMIT}


class Killed(BaseException):
    """Nobody catches this: what follows does not run, as after SIGKILL."""


CHANGING = ("object__load", "obj_pin", "link_create", "link_update", "link_detach", "map_update_elem")


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ends the run before its step number ``steps`` that could change something outside of the process."""
    left = [steps]

    def step() -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    def counted(function: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(*arguments: t.Any) -> t.Any:
            step()
            return function(*arguments)

        return call

    def counted_method(method: t.Callable[..., int]) -> t.Callable[..., int]:
        def call(self: Libbpf, name: str, *arguments: t.Any) -> int:
            if name.endswith(CHANGING):
                step()
            return method(self, name, *arguments)

        return call

    for name in ("mkdir", "rename", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    for name in ("call", "try_call"):
        monkeypatch.setattr(Libbpf, name, counted_method(getattr(Libbpf, name)))


@pytest.mark.parametrize("begin", ["nothing", "loaded", "loaded elsewhere"])
def test_a_load_that_is_killed_between_any_two_steps_is_completed_by_the_next(
    attachments: Attachments, libbpf: Libbpf, limiter_object: str, cgroups: Make, begin: str
) -> None:
    cgroups("/a")
    cgroups("/a/b")
    for number in steps(100):
        attachments.unload()
        attachments.remove_maps()
        if begin != "nothing":
            attachments.load(limiter_object, "source:old", "/a" if begin == "loaded" else "/")
            with t.cast(Maps, Maps.open(libbpf)) as maps:
                maps.set_limit(RULE, LIMIT)
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, number)
            try:
                attachments.load(limiter_object, "source:new", "/a")
                killed = False
            except Killed:
                killed = True
        if begin != "nothing":
            assert ours(attachments, "/a/b"), f"unlimited after {number} steps"
        attachments.load(limiter_object, "source:new", "/a")
        now = program(attachments)
        assert (now.identity, now.cgroup, now.pacing) == ("source:new", "/a", "on"), f"after {number} steps"
        assert not attachments.unfinished()
        assert (ours(attachments, "/"), ours(attachments, "/a/b")) == ([], ["/a"])
        assert sorted(os.listdir(pins.PIN_DIR)) == PINNED
        if begin != "nothing":
            assert limits(libbpf) == {RULE: LIMIT}
        if not killed:
            assert number >= {"nothing": 11, "loaded": 3, "loaded elsewhere": 6}[begin]
            return
    pytest.fail("load() takes more than a hundred steps")


def test_a_link_whose_cgroup_is_gone_is_replaced(attachments: Attachments, limiter_object: str, cgroups: Make) -> None:
    attachments.load(limiter_object, "source:test", cgroups("/gone"))
    os.rmdir(f"{cgroup2()}/gone")
    assert attachments.current() is None
    attachments.load(limiter_object, "source:test", "/")
    assert program(attachments).cgroup == "/"


def test_a_program_without_its_pinned_maps_does_not_count_as_loaded(
    attachments: Attachments, limiter_object: str, maps: Maps, libbpf: Libbpf
) -> None:
    os.unlink(pins.path("rate_limit_config_map"))
    assert attachments.current() is None
    attachments.load(limiter_object, "source:test", "/")
    assert ours(attachments, "/") == ["/"]
    assert limits(libbpf) == {}


@pytest.mark.every_kernel
def test_unloading_takes_the_program_away_at_once_and_keeps_the_maps(
    attachments: Attachments, maps: Maps, libbpf: Libbpf
) -> None:
    maps.set_limit(RULE, LIMIT)
    assert attachments.unload()
    assert attachments.on_hook("/") == []
    assert attachments.current() is None
    assert limits(libbpf) == {RULE: LIMIT}
    assert not attachments.unload()


def test_other_programs_on_the_hook_stay_and_are_told_apart_although_they_have_our_name(
    attachments: Attachments, limiter_object: str, cgroups: Make, attach: t.Callable[..., int]
) -> None:
    cgroups("/a")
    cgroups("/a/b")
    high, low = attach("/", "multi"), attach("/a/b", "multi")
    attachments.load(limiter_object, "source:test", "/a")
    found = attachments.on_hook("/a/b")
    assert [(entry["id"], entry["cgroup"], entry["ours"]) for entry in found] == [
        (low, "/a/b", False),
        (program(attachments).program_id, "/a", True),
        (high, "/", False),
    ]
    assert {entry["name"] for entry in found} == {"limit_egress"}
    assert {entry["attach_flags"] for entry in found} == {"multi"}
    attachments.unload()
    assert [entry["id"] for entry in attachments.on_hook("/a/b")] == [low, high]


@pytest.mark.parametrize("flags", [(), ("override",)])
@pytest.mark.parametrize("attached_to", ["/a", "/a/b"])
def test_a_program_that_shares_with_none_is_named_and_nothing_is_changed(
    attachments: Attachments,
    limiter_object: str,
    cgroups: Make,
    attach: t.Callable[..., int],
    attached_to: str,
    flags: tuple[str, ...],
) -> None:
    cgroups("/a")
    cgroups("/a/b")
    foreign = attach(attached_to, *flags)
    with pytest.raises(LimiterError) as raised:
        attachments.load(limiter_object, "source:test", "/a/b")
    assert raised.value.kind == "exclusive_program"
    for words in ("limit_egress", f"id {foreign})", f"to {attached_to} ", "ALLOW_MULTI", "bpftool cgroup detach"):
        assert words in str(raised.value)
    assert attachments.current() is None
    assert [entry["id"] for entry in attachments.on_hook("/a/b")] == [foreign]
    assert [entry["attach_flags"] for entry in attachments.on_hook("/a/b")] == [flags[0] if flags else "none"]


def test_an_exclusive_program_below_ours_runs_beside_it(
    attachments: Attachments, limiter_object: str, cgroups: Make, attach: t.Callable[..., int]
) -> None:
    foreign = attach(cgroups("/a"))
    attachments.load(limiter_object, "source:test", "/")
    assert [entry["id"] for entry in attachments.on_hook("/a")] == [foreign, program(attachments).program_id]


def test_a_hook_that_is_full_is_an_error_of_its_own(
    attachments: Attachments, limiter_object: str, libbpf: Libbpf, cgroups: Make, compiled: Compile
) -> None:
    cgroup_fd = os.open(f"{cgroup2()}{cgroups('/a')}", os.O_RDONLY)
    links = []
    with closing_fd(cgroup_fd), closing_fd(load_program(Path(compiled(SOMEONE_ELSES)), "limit_egress")) as fd:
        try:
            links += [libbpf.call("bpf_link_create", fd, cgroup_fd, 1, libbpf.ffi.NULL) for _index in range(64)]
            assert len(attachments.on_hook("/a")) == 64
            with pytest.raises(LimiterError, match="64 programs.*E2BIG") as raised:
                attachments.load(limiter_object, "source:test", "/a")
        finally:
            for link in links:
                os.close(link)
    assert raised.value.kind == "too_many_programs"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(SOMEONE_ELSES, "no program carry_over", id="no other programs"),
        pytest.param(
            SOMEONE_ELSES + CARRY_OVER + PACE_SOCKETS + SETTLE_SOCKETS, "no map rate_limit_config_map", id="no maps"
        ),
        pytest.param(an_object(PACE_SOCKETS, SETTLE_SOCKETS), "no program limit_egress", id="no program"),
        pytest.param(
            an_object(LIMIT_EGRESS.replace("egress", "ingress", 1), PACE_SOCKETS, SETTLE_SOCKETS),
            "not for the hook cgroup_skb/egress",
            id="another hook",
        ),
        pytest.param(
            an_object(LIMIT_EGRESS, PACE_SOCKETS, SETTLE_SOCKETS, key="__u16"),
            "map rate_limit_config_map has another type, key or value",
            id="another layout",
        ),
    ],
)
def test_an_object_that_is_not_the_limiter_is_refused_before_anything_changes(
    attachments: Attachments, compiled: Compile, maps: Maps, text: str, why: str
) -> None:
    before = program(attachments)
    with pytest.raises(LimiterError, match=why) as raised:
        attachments.load(compiled(text), "object:bad", "/")
    assert raised.value.kind == "bad_object"
    assert program(attachments) == before


def test_what_is_no_bpf_object_is_refused_with_libbpfs_words(attachments: Attachments, tmp_path: Path) -> None:
    text = tmp_path / "text.o"
    text.write_text("not ELF")
    with pytest.raises(LimiterError, match="not a proper ELF object") as raised:
        attachments.load(str(text), "object:bad", "/")
    assert raised.value.kind == "bad_object"
    with pytest.raises(LimiterError, match="missing.o.*ENOENT") as raised:
        attachments.load(str(tmp_path / "missing.o"), "object:bad", "/")
    assert raised.value.kind == "bad_object"


def test_a_program_that_the_verifier_refuses_is_an_error_with_its_words_and_the_old_one_goes_on(
    attachments: Attachments, compiled: Compile, maps: Maps
) -> None:
    wild = LIMIT_EGRESS.replace("return 1", "return *(volatile int *)7")
    before = program(attachments)
    with pytest.raises(LimiterError) as raised:
        attachments.load(compiled(an_object(wild, PACE_SOCKETS, SETTLE_SOCKETS)), "object:bad", "/")
    assert raised.value.kind == "load_failed"
    assert "invalid mem access" in raised.value.why
    assert program(attachments) == before


def test_maps_that_an_object_wants_pinned_elsewhere_are_not(attachments: Attachments, compiled: Compile) -> None:
    text = OURS + (
        "struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32);\n"
        '__uint(pinning, LIBBPF_PIN_BY_NAME); } stray SEC(".maps");\n'
    )
    before = {*os.listdir(pins.BPFFS)}
    attachments.load(compiled(text), "object:stray", "/")
    assert {*os.listdir(pins.BPFFS)} - before == {"speed_limiter"}


def test_a_cgroup_that_does_not_exist_is_named(attachments: Attachments, limiter_object: str) -> None:
    for act in (
        lambda: attachments.load(limiter_object, "source:test", "/nowhere"),
        lambda: attachments.on_hook("/nowhere"),
    ):
        with pytest.raises(LimiterError, match="/nowhere.*ENOENT") as raised:
            act()
        assert raised.value.kind == "no_cgroup"
    assert attachments.current() is None


def test_without_capabilities_the_error_says_which_are_needed(attachments: Attachments, limiter_object: str) -> None:
    code = f"""
import sys
from {Attachments.__module__} import Attachments
from {Libbpf.__module__} import load
from {LimiterError.__module__} import LimiterError
try:
    Attachments(load(), {str(cgroup2())!r}).load({limiter_object!r}, "source:test", "/")
except LimiterError as error:
    sys.exit(f"{{error.kind}}: {{error}}")
"""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    for words in ("not_permitted: ", "EPERM", "CAP_BPF"):
        assert words in done.stderr
    assert attachments.current() is None
