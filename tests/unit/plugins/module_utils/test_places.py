# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Places: which may have budgets, and how the kernel's set becomes another one."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.patterns import parse
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.places import Stored, is_confined
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import places


@pytest.mark.parametrize(
    ("pattern", "confined"),
    [
        ("/user.slice/user-*.slice", True),
        ("/user.slice/user-1000.slice/user@1000.service", True),
        ("/user.slice/user-1000.slice/user@1000.service/*", False),
        ("/user.slice/user-1000.slice/user@*.service/app.slice/*", False),
        ("/user.slice/user-*.slice/u*/*", False),
        ("/user.slice/*/*/*", False),
        ("/system.slice/user@1000.service/*", True),
        ("/system.slice/*/*", True),
        ("/kubepods.slice/kubepods-*.slice/*", True),
    ],
)
def test_no_user_has_budgets_by_cgroups_that_he_makes(pattern: str, confined: bool) -> None:
    assert is_confined(parse("", pattern)) == confined


class OneMap:
    """Each change is noted, as what is there after it."""

    def __init__(self) -> None:
        self.schema = layout.SCHEMA
        self.there: dict[bytes, bytes] = {}
        self.seen: list[set[Stored]] = []

    def of(self, row: catalog.MapRow) -> OneMap:
        assert row is catalog.PLACE
        return self

    def entries(self, row: catalog.MapRow = catalog.PLACE) -> list[tuple[bytes, bytes]]:
        return list(self.there.items())

    def update(self, key: bytes, value: bytes) -> None:
        self.there[key] = value
        self._note()

    def delete(self, key: bytes) -> None:
        del self.there[key]
        self._note()

    def _note(self) -> None:
        self.seen.append(set(places.read(t.cast(t.Any, self)).values()))


def test_what_is_in_both_sets_is_there_at_every_moment() -> None:
    maps = OneMap()
    old = {Stored(1, False, "/a"), Stored(1, False, "/b"), Stored(2, False, "/c")}
    new = {Stored(1, True, "/a"), Stored(2, False, "/b"), Stored(2, False, "/d")}
    places.write(t.cast(t.Any, maps), old)
    assert maps.seen[-1] == old
    begun = len(maps.seen)
    places.write(t.cast(t.Any, maps), new)
    assert maps.seen[-1] == new
    assert all({"/a", "/b"} <= {place.pattern for place in seen} for seen in maps.seen[begun:])
    before = len(maps.seen)
    places.write(t.cast(t.Any, maps), new)
    assert len(maps.seen) == before
