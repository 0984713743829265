# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where units are, by what systemctl of systemd 252 and 257 printed about them (both print the same)."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import units
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.units import PROBE
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import tools
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import units as host_units
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.units import Units

# systemctl show --property=... NAME; a.service is also ali.service, a second socket of s.service is odd.socket.
PRINTED = {
    "a.service": r"""
Slice=system.slice
ControlGroup=/system.slice/a.service
Id=a.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "none.service": r"""
Slice=
ControlGroup=
Id=none.service
Triggers=
TriggeredBy=
LoadState=not-found
LoadError=org.freedesktop.systemd1.NoSuchUnit "Unit none.service not found."
""",
    "mask.service": r"""
Slice=
ControlGroup=
Id=mask.service
Triggers=
TriggeredBy=
LoadState=masked
LoadError=org.freedesktop.systemd1.UnitMasked "Unit mask.service is masked."
""",
    "moved.service": r"""
Slice=foo.slice
ControlGroup=/foo.slice/foo-bar.slice/moved.service
Id=moved.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    r"t@x\x2dy.service": r"""
Slice=system-t.slice
ControlGroup=/system.slice/system-t.slice/t@x\x2dy.service
Id=t@x\x2dy.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    f"t@{PROBE}.service": f"""
Slice=system-t.slice
ControlGroup=
Id=t@{PROBE}.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "t@*.service": r"""
Slice=other.slice
ControlGroup=/other.slice/t@strayed.service
Id=t@strayed.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=

Slice=system-t.slice
ControlGroup=/system.slice/system-t.slice/t@x\x2dy.service
Id=t@x\x2dy.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    f"in@{PROBE}.service": f"""
Slice=in-{PROBE}.slice
ControlGroup=
Id=in@{PROBE}.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "s.service": r"""
Slice=system.slice
ControlGroup=
Id=s.service
Triggers=
TriggeredBy=s.socket "o\\x2dd.socket" s.timer
LoadState=loaded
LoadError=
""",
    "s.socket": r"""
Accept=no
Slice=system.slice
ControlGroup=/system.slice/s.socket
Id=s.socket
Triggers=s.service
TriggeredBy=
LoadState=loaded
LoadError=
""",
    r"o\x2dd.socket": r"""
Accept=no
Slice=web.slice
ControlGroup=
Id=o\x2dd.socket
Triggers=s.service
TriggeredBy=
LoadState=loaded
LoadError=
""",
    f"acc@{PROBE}.service": f"""
Slice=system-acc.slice
ControlGroup=
Id=acc@{PROBE}.service
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "acc.socket": r"""
Accept=yes
Slice=system.slice
ControlGroup=/system.slice/acc.socket
Id=acc.socket
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "foo-bar.slice": r"""
Slice=foo.slice
ControlGroup=
Id=foo-bar.slice
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "-.slice": r"""
Slice=
ControlGroup=/
Id=-.slice
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "usr.mount": r"""
Slice=-.slice
ControlGroup=
Id=usr.mount
Triggers=
TriggeredBy=
LoadState=loaded
LoadError=
""",
    "run-1.scope": r"""
Slice=
ControlGroup=
Id=run-1.scope
Triggers=
TriggeredBy=
LoadState=not-found
LoadError=org.freedesktop.systemd1.NoSuchUnit "Unit run-1.scope not found."
""",
}
PRINTED["ali.service"] = PRINTED["a.service"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """systemctl knows these units and no others. What it was asked for."""
    calls: list[list[str]] = []

    def show(arguments: t.Sequence[str], seconds: float) -> tuple[int, str, str]:
        assert list(arguments[:4]) == ["/bin/systemctl", "show", f"--property={units.PROPERTIES}", "--"]
        calls.append(list(arguments[4:]))
        missing = PRINTED["none.service"]
        texts = [PRINTED.get(name, "" if "*" in name else missing.replace("none.service", name)) for name in calls[-1]]
        return 0, "\n".join(texts).strip("\n") + "\n", ""

    monkeypatch.setattr(host_units, "BOOTED", str(tmp_path))
    monkeypatch.setattr(tools, "find", lambda name: f"/bin/{name}")
    monkeypatch.setattr(tools, "ask", show)
    return calls


def where(name: str, present: bool = True) -> list[str]:
    full = units.full_name("", name)
    return Units([full], tools.Patience()).cgroups("", full, present)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.service", ["/system.slice/a.service"]),
        ("a", ["/system.slice/a.service"]),
        ("ali", ["/system.slice/a.service"]),
        ("moved", ["/foo.slice/moved.service", "/foo.slice/foo-bar.slice/moved.service"]),
        (r"t@x\x2dy", [r"/system.slice/system-t.slice/t@x\x2dy.service"]),
        ("t@", ["/system.slice/system-t.slice/t@*.service", "/other.slice/t@strayed.service"]),
        ("in@.service", ["/in.slice/in-*.slice/in@*.service"]),
        ("s", ["/system.slice/s.service", "/system.slice/s.socket", r"/web.slice/o\x2dd.socket"]),
        ("s.socket", ["/system.slice/s.socket"]),
        ("acc@", ["/system.slice/system-acc.slice/acc@*.service", "/system.slice/acc.socket"]),
        ("foo-bar.slice", ["/foo.slice/foo-bar.slice"]),
        ("-.slice", ["/"]),
        ("usr.mount", ["/usr.mount"]),
    ],
)
def test_where_a_unit_is(asked: list[list[str]], name: str, expected: list[str]) -> None:
    assert where(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("memory.service", "_memory.service"),
        ("cpu.slice", "_cpu.slice"),
        ("bpf-firewall.service", "_bpf-firewall.service"),
        ("cgroup.service", "_cgroup.service"),
        ("_x.service", "__x.service"),
        ("memory-cache.service", "memory-cache.service"),
        ("cpu2.service", "cpu2.service"),
    ],
)
def test_names_of_the_kernels_own_files_are_kept_apart_as_systemd_does(name: str, expected: str) -> None:
    assert units.escaped(name) == expected
    if name.endswith(".slice"):
        assert units.slice_path(name) == f"/{expected}"


def test_systemd_is_asked_once_for_all_and_again_for_sockets_with_other_names(asked: list[list[str]]) -> None:
    found = Units(["a.service", "s.service", "t@.service", "foo-bar.slice", "a.service"], tools.Patience())
    assert asked == [
        ["a.service", "a.socket", "s.service", "s.socket", f"t@{PROBE}.service", f"t@{PROBE}.socket", "t.socket"]
        + ["foo-bar.slice", "t@*.service"],
        [r"o\x2dd.socket"],
    ]
    assert found.cgroups("", "a.service") == ["/system.slice/a.service"]


def test_nothing_is_asked_for_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "ask", lambda arguments, seconds: pytest.fail("asked"))
    Units([], tools.Patience())


def test_many_units_are_asked_for_in_parts(asked: list[list[str]]) -> None:
    names = [f"{number}.slice" for number in range(201)]
    Units(names, tools.Patience())
    assert [len(call) for call in asked] == [100, 100, 1]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        (
            "none",
            "unknown_unit",
            "rules[3]: units: none.service does not exist on this host: systemd: Unit none.service",
        ),
        ("none@x", "unknown_unit", "none@x.service does not exist"),
        ("none@", "unknown_unit", "none@.service does not exist"),
        ("run-1.scope", "unknown_unit", "A scope is there only while it runs"),
        ("mask", "unusable_unit", "Unit mask.service is masked. See systemctl status mask.service; systemctl unmask"),
    ],
)
def test_a_unit_that_cannot_be_limited_is_named(asked: list[list[str]], name: str, kind: str, words: str) -> None:
    full = units.full_name("", name)
    with pytest.raises(LimiterError) as error:
        Units([full], tools.Patience()).cgroups("rules[3]: ", full)
    assert error.value.kind == kind and words in str(error.value)
    assert PROBE not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", "/system.slice/none.service"),
        ("no-ne@x.service", r"/system.slice/system-no\x2dne.slice/no-ne@x.service"),
        ("no-ne@.service", r"/system.slice/system-no\x2dne.slice/no-ne@*.service"),
        ("none.mount", "/none.mount"),
        ("mask", "/system.slice/mask.service"),
    ],
)
def test_what_is_to_be_released_need_not_exist_any_more(asked: list[list[str]], name: str, expected: str) -> None:
    assert where(name, present=False) == [expected]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "it is empty. Leave the option out"),
        ("a b.service", "it is no name of a unit"),
        ("a/b", "it is no name of a unit"),
        ("ä.service", "it is no name of a unit"),
        ("a\n.service", "it is no name of a unit"),
        ("a" * 300, "it is no name of a unit"),
        ("@x.service", "it is no name of a unit"),
        (".service", "it is no name of a unit"),
        ("a@b.slice", "it is no name of a unit"),
        ("a.timer", "Give the service that it starts"),
        ("multi-user.target", "Give the service that it starts"),
        ("web-*.service", "cgroup_paths: /system.slice/web-*.service"),
        ("web-?.service", "cgroup_paths"),
    ],
)
def test_what_is_no_unit_with_processes_is_refused(name: str, words: str) -> None:
    with pytest.raises(LimiterError) as error:
        units.full_name("rules[0]: ", name)
    assert error.value.kind == "bad_unit" and words in str(error.value)
    assert str(error.value).startswith("rules[0]: units: ")


def test_a_hyphen_in_front_is_no_option(asked: list[list[str]]) -> None:
    with pytest.raises(LimiterError, match="--all.service does not exist"):
        where("--all")


def test_without_systemd_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_units, "BOOTED", str(tmp_path / "none"))
    with pytest.raises(LimiterError) as error:
        Units(["a.service"], tools.Patience())
    assert error.value.kind == "no_systemd"
    assert "the unit a.service cannot be looked up: systemd does not run on this host" in str(error.value)


def test_a_systemctl_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hanging = tmp_path / "systemctl"
    hanging.write_text("#!/bin/sh\nsleep 1000")
    hanging.chmod(0o755)
    monkeypatch.setattr(host_units, "BOOTED", str(tmp_path))
    monkeypatch.setattr(tools, "find", lambda name: str(hanging))
    monkeypatch.setattr(tools, "SECONDS", 0.2)
    with pytest.raises(LimiterError) as error:
        Units(["a.service"], tools.Patience())
    assert error.value.kind == "no_answer" and "systemctl does not answer: it was ended after" in str(error.value)


@pytest.mark.parametrize("answer", [(1, "", "Failed to connect to bus: No such file\n"), (0, "", "")])
def test_a_systemd_that_does_not_tell_is_an_error(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str]
) -> None:
    monkeypatch.setattr(tools, "ask", lambda arguments, seconds: answer)
    with pytest.raises(LimiterError) as error:
        Units(["a.service"], tools.Patience())
    assert error.value.kind == "no_answer" and "systemd does not tell" in str(error.value)
