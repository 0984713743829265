# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leaves: which rule a cgroup's processes are in, and where their home is."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.leaves import (
    home_of,
    leaf_for,
    rule_of,
    unit_of,
)

LEAVES = {"/a.service/speed_limiter.web": "web", "/speed_limiter.x/y/speed_limiter.db": "db"}


@pytest.mark.parametrize(
    ("cgroup", "rule", "home"),
    [
        ("/", None, "/"),
        ("/a.service", None, "/a.service"),
        ("/a.service/speed_limiter.web", "web", "/a.service"),
        ("/a.service/speed_limiter.web/below/it", "web", "/a.service"),
        ("/a.service/speed_limiter.webb", None, "/a.service/speed_limiter.webb"),
        ("/speed_limiter.x/y", None, "/speed_limiter.x/y"),
        ("/speed_limiter.x/y/speed_limiter.db", "db", "/speed_limiter.x/y"),
        ("/speed_limiter/web", "web", "/speed_limiter/web"),
        ("/speed_limiter/web/below", "web", "/speed_limiter/web/below"),
        ("/speed_limiter", None, "/speed_limiter"),
        ("/system.slice/speed_limiter.service", None, "/system.slice/speed_limiter.service"),
        ("/../b.service", None, "/../b.service"),
    ],
)
def test_a_cgroup_has_a_rule_and_a_home(cgroup: str, rule: str | None, home: str) -> None:
    assert (rule_of(cgroup, LEAVES), home_of(cgroup, LEAVES)) == (rule, home)


def test_a_leaf_is_below_its_home() -> None:
    leaf = leaf_for("/a.service", "web")
    assert leaf == "/a.service/speed_limiter.web" and home_of(leaf, (leaf,)) == "/a.service"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/a.service", "a.service"),
        ("/user.slice/user-1.slice/user@1.service/app.slice/x.scope", "x.scope"),
        ("/user.slice/user-1.slice/session-3.scope/below", "session-3.scope"),
        ("/kubepods/besteffort", None),
        ("/", None),
    ],
)
def test_a_cgroup_belongs_to_a_unit(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit
