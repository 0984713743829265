# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of a task's requests become patterns; those who know them are asked once for all."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Request, StoredPlace
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_requests
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import tools
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import users
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import named


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A host that knows units a and b@, user joe and container box. What was asked for."""
    calls: list[list[str]] = []

    class Units:
        def __init__(self, names: t.Iterable[str], patience: tools.Patience) -> None:
            calls.append(list(names))

        def cgroups(self, where: str, name: str, present: bool) -> list[str]:
            if name == "long.service":
                return ["/" + "n" * 300]
            return {"a.service": ["/system.slice/a.service"], "b@.service": ["/b.slice/b@*.service", "/b.socket"]}[name]

    class Containers:
        def __init__(self, names: t.Iterable[str], patience: tools.Patience) -> None:
            calls.append(list(names))

        def cgroup(self, where: str, name: str) -> tuple[str, list[str]]:
            if name != "box":
                raise LimiterError(
                    "unknown_container", f"{where}containers: {name} is not known", "asked: docker", "Give"
                )
            return "/docker/1", ["made anew"]

    def of_user(where: str, user: str) -> tuple[str, list[str]]:
        return "/user.slice/user-1000.slice", ["of the system"]

    monkeypatch.setattr(named, "Units", Units)
    monkeypatch.setattr(named, "Containers", Containers)
    monkeypatch.setattr(users, "cgroup", of_user)
    return calls


def paths(found: named.Named, request: Request) -> tuple[list[str], list[str]]:
    places, warnings = found.places(request)
    return [place.path for place in places], warnings


def test_all_requests_are_looked_up_together(asked: list[list[str]]) -> None:
    first, second = requests = parse_requests(
        [
            {"name": "a", "units": ["a", "b@"], "users": ["joe"]},
            {"name": "b", "units": ["a"], "containers": ["box"]},
        ]
    )
    found = named.Named(requests)
    assert asked == [["a.service", "b@.service", "a.service"], ["box"]]
    assert paths(found, first) == (
        ["/system.slice/a.service", "/b.slice/b@*.service", "/b.socket", "/user.slice/user-1000.slice"],
        ["of the system"],
    )
    assert paths(found, second) == (["/system.slice/a.service", "/docker/1"], ["made anew"])


def test_what_is_released_is_not_warned_about(asked: list[list[str]]) -> None:
    (request,) = requests = parse_requests([{"name": "a", "containers": ["box"], "state": "absent"}])
    assert paths(named.Named(requests), request) == (["/docker/1"], [])


def test_a_container_that_is_gone_is_released_by_its_path(asked: list[list[str]]) -> None:
    (request,) = requests = parse_requests([{"name": "a", "containers": ["gone"], "state": "absent"}])
    with pytest.raises(LimiterError, match="containers: gone is not known: asked: docker. Release it by its"):
        named.Named(requests).places(request)


def test_a_path_that_is_no_pattern_is_named_with_its_unit(asked: list[list[str]]) -> None:
    (request,) = requests = parse_requests([{"name": "a", "units": ["long"]}])
    with pytest.raises(LimiterError, match="units: long.service: '/nnn"):
        named.Named(requests).places(request)


def test_each_place_keeps_the_name_that_it_was_given_by(asked: list[list[str]]) -> None:
    (request,) = requests = parse_requests([{"name": "a", "units": ["a"], "users": ["joe"], "containers": ["box"]}])
    assert named.Named(requests).places(request)[0] == [
        StoredPlace("/system.slice/a.service", "unit", "a.service"),
        StoredPlace("/user.slice/user-1000.slice", "user", "joe", 1000),
        StoredPlace("/docker/1", "container", "box"),
    ]
