# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and their slices."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import units, users


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It runs, and there are these users."""
    monkeypatch.setattr(units, "BOOTED", str(tmp_path))
    known = {"joe": 1000, "root": 0, "postgres": 115, "1001": 5000}

    def getpwnam(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", known[name], 100, "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)


@pytest.mark.parametrize(
    ("user", "uid"), [("joe", 1000), ("root", 0), ("1000", 1000), ("0", 0), ("1001", 1001), ("4294967294", 4294967294)]
)
def test_a_user_is_a_slice(user: str, uid: int) -> None:
    assert users.cgroup("", user) == (f"/user.slice/user-{uid}.slice", [])


def test_services_of_a_system_user_are_not_in_its_slice() -> None:
    place, warnings = users.cgroup("rules[1]: ", "postgres")
    assert place == "/user.slice/user-115.slice"
    assert warnings == [
        "rules[1]: users: postgres is a user of the system, whose services do not run in its slice (user-115.slice): "
        "limit them by units"
    ]


@pytest.mark.parametrize("user", ["none", "", "-1", "4294967295", "1.5", "٣", "a\0b"])
def test_an_unknown_user_is_an_error(user: str) -> None:
    with pytest.raises(LimiterError) as error:
        users.cgroup("rules[1]: ", user)
    assert error.value.kind == "unknown_user" and str(error.value).startswith("rules[1]: users: ")


def test_an_empty_name_is_told_as_such() -> None:
    with pytest.raises(LimiterError) as error:
        users.cgroup("", "")
    assert str(error.value) == (
        "users: '' is not known on this host: it is empty. Leave the option out, or look at the variable that came out "
        "empty."
    )


def test_without_systemd_there_are_no_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "BOOTED", str(tmp_path / "none"))
    with pytest.raises(LimiterError) as error:
        users.cgroup("", "joe")
    assert error.value.kind == "no_systemd" and "systemd does not run on this host" in str(error.value)
