# SPDX-License-Identifier: GPL-3.0-or-later
"""Cgroups that are found by their names: also those that did not exist when their rule was made, or exist again."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.patterns import parse
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.parts import USED
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    MBIT,
    Scene,
    assert_bound,
    assert_held,
    pause,
    share_of,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

RATE = 8 * MBIT


class Named:
    """Rules that only patterns lead to, and cgroups that are made and removed."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._made: list[Path] = []

    def rules(self, patterns: Mapping[str, str], rate: int = RATE, each: tuple[str, ...] = ()) -> None:
        """By pattern, the rule's name. These rules and no others, in one task."""
        listed = [
            {
                "name": name,
                "rate": str(rate),
                "bucket": str(rate // 10),
                "cgroup_paths": [pattern for pattern, rule in patterns.items() if rule == name],
                "each": name in each,
            }
            for name in dict.fromkeys(patterns.values())
        ]
        limiter.rules(*listed, purge=True)

    def cgroup(self, path: str) -> Path:
        cgroup = Path(self._cgroups.absolute(path))
        for one in (*reversed(cgroup.parents), cgroup):
            if not one.exists():
                one.mkdir()
                self._made.append(one)
        return cgroup

    def remove(self) -> None:
        while self._made:
            self._made.pop().rmdir()


@pytest.fixture
def named(scene: Scene, clean_host: Cgroups) -> Iterator[Named]:
    it = Named(clean_host)
    yield it
    scene.pair.stop()
    it.remove()


def rules_of(cgroup: Path) -> list[str]:
    """What a datagram is charged to that a socket made in a cgroup sends."""
    before = limiter.packets()
    if not (pid := os.fork()):
        (cgroup / "cgroup.procs").write_text("0")
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    after = limiter.packets()
    return sorted(name for name in after if after[name] > before.get(name, 0))


PATTERNS = {
    "/shop": "shop",
    "/shop/web-*.service": "web",
    "/shop/web-*-fast.service": "fast",
    "/shop/*": "others",
    "/shop/web-1.service": "first",
    "/shop/*/deep": "deep",
}


@pytest.mark.every_kernel
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/shop", ["shop"]),
        ("/shop/web-1.service", ["first", "shop"]),
        ("/shop/web-2.service", ["shop", "web"]),
        ("/shop/web-2-fast.service", ["fast", "shop"]),
        ("/shop/web-fast.service", ["shop", "web"]),
        ("/shop/web-.service", ["shop", "web"]),
        ("/shop/web.service", ["others", "shop"]),
        ("/shop/web-2.service/deep", ["deep", "shop", "web"]),
        ("/shop/web-2.service/other", ["shop", "web"]),
        ("/shop/" + "n" * 255, ["others", "shop"]),
        ("/shopping", []),
        ("/other/shop", []),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 99 else "",
)
def test_names_and_stars_lead_to_rules(named: Named, path: str, expected: list[str]) -> None:
    named.rules(PATTERNS)
    assert rules_of(named.cgroup(path)) == expected


# As deep as users like: more levels than one climb takes, where a kernel has to climb.
@pytest.mark.every_kernel
@pytest.mark.parametrize("levels", [15, 16, 63, 64, 1_039, 1_040])
def test_cgroups_that_a_user_nests_below_do_not_lead_out_of_a_rule(named: Named, levels: int) -> None:
    named.rules({"/shop": "shop", "/shop/*/deep": "deep"})
    outer = named.cgroup("/shop/a/deep")
    before = os.open(".", os.O_DIRECTORY)
    os.chdir(outer)
    try:
        for _level in range(levels - 3):
            os.mkdir("n")
            os.chdir("n")
        assert rules_of(Path()) == ["deep", "shop"]
    finally:
        while not os.path.samefile(".", outer):
            os.chdir("..")
            os.rmdir("n")
        os.fchdir(before)
        os.close(before)


def test_the_program_finds_what_the_graph_says(named: Named) -> None:
    lot = random.Random(5)
    letters = "ab"

    def word(most: int) -> str:
        return "".join(lot.choice(letters) for _time in range(lot.randint(0, most)))

    for _table in range(3 if SLOW else 10):
        patterns: dict[str, str] = {}
        for number in range(4):
            names = [word(2) + lot.choice(("", "*")) + word(2) or "a" for _time in range(lot.randint(1, 3))]
            patterns["/drawn/" + "/".join(names)] = f"rule{number}"
        try:
            named.rules(patterns)
        except LimiterError:
            continue
        for _path in range(3 if SLOW else 8):
            path = "/drawn/" + "/".join(word(4) or "b" for _time in range(lot.randint(1, 3)))
            assert rules_of(named.cgroup(path)) == sorted(expected(patterns, path)), (patterns, path)


def expected(patterns: Mapping[str, str], path: str) -> set[str]:
    """By looking at every pattern."""
    names, found = path.strip("/").split("/"), set()
    parsed = {parse("", pattern): rule for pattern, rule in patterns.items()}
    for depth in range(1, len(names) + 1):
        fit = [one for one in parsed if len(one.names) == depth and all(map(_fits, one.names, names))]
        if fit:
            found.add(parsed[max(fit, key=lambda one: one.rank)])
    return found


def _fits(wanted: str | tuple[str, str], name: str) -> bool:
    if isinstance(wanted, str):
        return wanted == name
    before, behind = wanted
    return len(name) >= len(before + behind) and name.startswith(before) and name.endswith(behind)


def test_a_cgroup_that_is_made_again_and_again_stays_limited(scene: Scene, named: Named) -> None:
    """With a sender in each, that begins at once: nothing passes beyond the rate and one bucket."""
    pair = scene.pair
    named.rules({"/again/*.service": "again"})
    before = pair.arrived()
    times = 5 if SLOW else 20
    for _time in range(times):
        cgroup = named.cgroup("/again/web.service")
        sender = pair.send_udp(4 * RATE, 0.2, cgroup=cgroup)
        sender.result()
        cgroup.rmdir()
        named._made.remove(cgroup)
    after = pair.arrived()
    assert_bound(before, after, RATE, RATE // 10)
    assert after.bytes - before.bytes > 0.1 * RATE * times


def test_a_socket_that_outlives_its_cgroup_stays_limited(named: Named) -> None:
    named.rules({"/w*b.service": "web"})
    home, elsewhere = Path(Cgroups.find().absolute("/web.service")), named.cgroup("/elsewhere")
    with limiter.senders("/web.service") as [sender]:
        (elsewhere / "cgroup.procs").write_text(str(sender.pid))
        home.rmdir()
        assert sender.charged("opened elsewhere") == set()
        for change in (lambda: None, lambda: limiter.rule(name="another", rate="1m"), home.mkdir):
            change()
            assert (sender.charged("udp"), sender.charged("tcp")) == ({"web"}, {"web"})
        limiter.rule(name="another", state="absent")  # and what sockets are charged to is found again
        assert sender.charged() == {"web"}


def test_an_open_connection_is_paced_as_soon_as_its_cgroup_is_named(scene: Scene, named: Named) -> None:
    pair = scene.pair
    cgroup = named.cgroup("/named/a.service")
    bulk = pair.send_tcp(cgroup=cgroup)
    pause(0.3)
    named.rules({"/named/*.service": "named"})
    pause(0.7)
    assert_held(pair, RATE)
    drops = limiter.counters()["named"].dropped_packets
    pause(1.0)
    assert SLOW or limiter.counters()["named"].dropped_packets == drops
    bulk.kill()


def test_each_cgroup_that_matches_has_a_budget_of_its_own(scene: Scene, named: Named) -> None:
    pair = scene.pair
    named.rules({"/users/user-*.slice": "each"}, each=("each",))
    before = pair.arrived()
    for number in (1, 2):
        pair.send_tcp(cgroup=named.cgroup(f"/users/user-{number}.slice"))
    pause(0.7)
    assert share_of(pair, 2 * RATE) >= USED
    assert_bound(before, pair.arrived(), 2 * RATE, 2 * RATE // 10)


def test_what_is_not_named_any_more_is_not_limited_and_leaves_nothing(named: Named) -> None:
    named.rules(PATTERNS)
    cgroup = named.cgroup("/shop")
    assert rules_of(cgroup) == ["shop"]
    named.rules({"/else": "shop"})
    assert rules_of(cgroup) == []
    limiter.rule(name="shop", state="absent")
    with limiter.opened_maps() as maps:
        assert not [*maps.entries(catalog.NODE), *maps.entries(catalog.EDGE), *maps.entries(catalog.PLACE)]


def test_ten_thousand_patterns_are_written_and_replaced(named: Named) -> None:
    patterns = {f"/many/s{number}.service": "many" for number in range(1_000 if SLOW else 10_000)}
    named.rules(patterns)
    named.rules({**patterns, "/many/*": "rest"})
    assert rules_of(named.cgroup("/many/s7.service")) == ["many"]
    assert rules_of(named.cgroup("/many/x")) == ["rest"]
    with limiter.opened_maps() as maps:
        assert len([*maps.entries(catalog.NODE)]) == len(patterns) + 3
