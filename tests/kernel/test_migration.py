# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which an earlier version limits, whose maps have another layout: the next task takes all of it over, while
packets are limited and counted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout, schemas
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, earlier, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.connections import borrowed
from ansible_collections.speed_limiter.ebpf.tests.support.earlier import LIMIT, RATE, schema
from ansible_collections.speed_limiter.ebpf.tests.support.homes import place
from ansible_collections.speed_limiter.ebpf.tests.support.net import Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import ADOPTS, RELEASES
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    assert_bound,
    assert_held,
    counters,
    when_begun,
)

PACKET = 1428  # bytes of IP of what `send_udp` sends


@pytest.fixture(scope="module", params=sorted(schemas.FORMER), ids=lambda schema: f"schema {schema}")
def then(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> earlier.Version:
    """The version that was there before."""
    return earlier.compiled(request.param, tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def service(then: earlier.Version, network: Pair) -> Iterator[Path]:
    with limited_in_place(then, network) as directory:
        yield directory


@contextlib.contextmanager
def limited_in_place(then: earlier.Version, network: Pair) -> Iterator[Path]:
    """A cgroup that the earlier version limits in place, by a rule of its name."""
    with limiter.clean_host() as cgroups:
        directory = Path(cgroups.absolute("/service"))
        directory.mkdir()
        try:
            earlier.program(then)
            earlier.rule("service", LIMIT, "/service")
            yield directory
        finally:
            network.stop()
            limiter.purge("all")
            until(lambda: not (directory / "cgroup.procs").read_text())
            directory.rmdir()


def meanwhile(work: Callable[[], Any]) -> list[Counters]:
    """What the counters of the rule ``service`` said while another process did this."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    seen = []
    while not os.waitpid(child, os.WNOHANG)[0]:
        seen.append(limiter.counters()["service"])
    return [*seen, limiter.counters()["service"]]


def assert_monotonic(seen: list[Counters]) -> None:
    for one, following in zip(seen, seen[1:]):
        pairs = [(one.packets, following.packets), (one.bytes, following.bytes)]
        pairs += [(one.dropped_packets, following.dropped_packets), (one.dropped_bytes, following.dropped_bytes)]
        pairs += [*zip(one.drops, following.drops), *zip(one.notices, following.notices)]
        assert all(old <= new for old, new in pairs), f"{one}, then {following}"


def upgrade() -> None:
    limiter.rule(name="service", rate=str(RATE))


def test_counters_never_go_back_nothing_is_lost_and_no_packet_is_unlimited(network: Pair, service: Path) -> None:
    before = network.arrived()
    sender = network.send_udp(3 * RATE, cgroup=service)
    begun = when_begun(network, before, 1_000_000)
    seen = meanwhile(upgrade)
    assert schema() == layout.SCHEMA
    assert len(seen) > 10
    assert_monotonic(seen)
    assert seen[-1].bytes > seen[0].bytes
    assert_held(network, RATE)
    sender.finish()
    after = network.arrived()
    assert_bound(before, after, RATE, LIMIT.bucket)
    assert_bound(begun, after, RATE, 0)
    # What is still under way arrives; what else arrives in this namespace is less than a packet.
    counted = counters("service")["bytes"]
    until(lambda: 0 <= network.arrived().bytes - before.bytes - counted < PACKET)


def test_connections_are_paced_before_and_after(network: Pair, service: Path) -> None:
    before = network.arrived()
    sender = network.send_tcp(cgroup=service, connections=2)
    until(lambda: paced(sender) == [True, True])
    seen = meanwhile(upgrade)
    assert schema() == layout.SCHEMA
    assert_monotonic(seen)
    assert_held(network, RATE)
    assert_bound(before, network.arrived(), RATE, LIMIT.bucket)
    if ADOPTS:
        until(lambda: paced(sender) == [True, True])
    assert limiter.program()["changed"] is False
    limiter.rule(name="service", state="absent")
    if RELEASES:
        until(lambda: paced(sender) == [False, False])


@pytest.mark.parametrize("since", ["before the earlier version", "since then"])
def test_where_another_program_keeps_pacing_away_the_bucket_limits_all_the_time(
    then: earlier.Version, network: Pair, attach: Callable[..., int], since: str
) -> None:
    foreign = attach("/", hook=bpf.SOCK_OPS) if since == "before the earlier version" else None
    with limited_in_place(then, network) as service:
        if foreign is None:
            os.unlink(pins.path(catalog.PACE.link))
            foreign = attached_alone(attach)
        before = network.arrived()
        sender = network.send_udp(3 * RATE, cgroup=service)
        begun = when_begun(network, before, 1_000_000)
        counted = limiter.counters()["service"]
        # A rule task leaves pacing as it is, which was lost.
        done = limiter.program() if since == "since then" else limiter.rule(name="service", rate=str(RATE))
        assert schema() == layout.SCHEMA
        assert_monotonic([counted, limiter.counters()["service"]])
        (warning,) = [text for text in done["warnings"] if f"id {foreign}" in text]
        assert "only the token bucket" in warning
        assert limiter.info(gather=["program"])["program"]["pacing"]["state"] == "refused"
        assert_held(network, RATE)
        sender.finish()
        after = network.arrived()
        assert_bound(before, after, RATE, LIMIT.bucket)
        assert_bound(begun, after, RATE, 0)


def attached_alone(attach: Callable[..., int]) -> int:
    """The id of a program that shares the hook of sockets with none, as soon as ours has left it."""
    found: list[int] = []

    def attached() -> bool:
        with contextlib.suppress(PermissionError):
            found.append(attach("/", hook=bpf.SOCK_OPS))
        return bool(found)

    until(attached)
    return found[0]


def paced(sender: Process) -> list[bool]:
    """Of each of its connections, whether it was told how fast it may send."""
    with borrowed(sender.pid) as connections:
        return [connection.pacing < RATE for connection in connections]


@pytest.fixture
def moved(then: earlier.Version) -> Iterator[limiter.Sender]:
    with earlier.moved(then) as sender:
        yield sender


def test_sockets_stay_bound_to_their_rule(moved: limiter.Sender) -> None:
    for socket in ("udp", "tcp"):
        assert moved.charged(socket) == {"web"}
    before = limiter.counters()["web"]
    done = limiter.rule(name="web", rate=str(RATE))
    assert schema() == layout.SCHEMA
    assert done["rule"]["counters"]["packets"] >= before.packets > 0
    for socket in ("udp", "tcp"):
        assert moved.charged(socket) == {"web"}


@pytest.mark.parametrize("then", [2], indirect=True)
def test_what_the_modules_of_that_time_wrote_down_is_understood(then: earlier.Version) -> None:
    with limiter.clean_host(), limiter.senders("/home_of_moved", 2) as (first, second):
        alone = f"pid-{second.pid}"
        earlier.limit_by(then, first)
        earlier.rule(alone, LIMIT, pids=(second.pid,))
        with earlier.files_of_modules(then, "/home_of_moved", first.pid, second.pid):
            foretold, done = (limiter.rule(check=check, last=True, rate="1m") for check in (True, False))
            assert (schema(), done["rule"]["name"], done["rule"]["rate"]) == (layout.SCHEMA, alone, 1 << 20)
            assert (foretold["diff"], foretold["program_actions"]) == (done["diff"], done["program_actions"])
            assert not [text for text in done["warnings"] if "state.json" in text]
            assert (first.charged(), second.charged()) == ({"web"}, {alone})
            assert not limiter.program()["changed"]
            limiter.rule(pids=[second.pid], state="absent")
            limiter.rule(name="web", state="absent")
            assert place(first.pid) == place(second.pid) == "/home_of_moved"
            assert [rule["name"] for rule in limiter.info(gather=["rules"])["rules"]] == []


def test_check_mode_foretells_it_and_touches_nothing(moved: limiter.Sender) -> None:
    pinned = sorted(os.listdir(pins.PIN_DIR))
    with limiter.opened_maps() as maps:
        control = maps.control()
    foretold = limiter.rule(check=True, name="web", rate="1m")
    assert sorted(os.listdir(pins.PIN_DIR)) == pinned
    with limiter.opened_maps() as maps:
        assert maps.control() == control
    done = limiter.rule(name="web", rate="1m")
    assert (foretold["changed"], foretold["diff"], foretold["program_actions"]) == (
        True,
        done["diff"],
        done["program_actions"],
    )
    assert "program: of an earlier version" in done["diff"]["before"]
    assert any("of an earlier version" in text for text in done["program_actions"])


def test_the_program_module_upgrades_too_and_moves_at_once(moved: limiter.Sender) -> None:
    done = limiter.program(cgroup_path="/home_of_moved")
    assert done["changed"] and done["program"]["cgroup"] == "/home_of_moved"
    assert schema() == layout.SCHEMA
    assert moved.charged() == {"web"}
    assert not limiter.program(cgroup_path="/home_of_moved")["changed"]


def test_rules_that_nothing_enforces_are_taken_over_too(moved: limiter.Sender, then: earlier.Version) -> None:
    moved.charged()
    counted = limiter.counters()["web"]
    limiter.program(state="absent")
    assert schema() == then.schema
    limiter.program()
    assert (schema(), limiter.counters()["web"]) == (layout.SCHEMA, counted)
    assert moved.charged() == {"web"}


def test_two_tasks_at_once_take_it_over_once(network: Pair, service: Path) -> None:
    network.send_udp(3 * RATE, cgroup=service)

    def both() -> None:
        if os.fork() == 0:
            try:
                upgrade()
            finally:
                os._exit(0)
        upgrade()
        os.wait()

    assert_monotonic(meanwhile(both))
    assert schema() == layout.SCHEMA
    assert not set(os.listdir(pins.PIN_DIR)) & set(catalog.PASSING)
    assert_held(network, RATE)


def test_who_looks_and_is_slower_than_all_of_it_looks_again(
    moved: limiter.Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the schema of before, and finds the maps of after."""
    look = Maps._open
    done: list[bool] = []

    def late(libbpf: Libbpf, any_version: bool) -> Maps | None:
        if not done:
            done.append(True)
            limiter.rule(name="web", rate=str(RATE))
            raise LimiterError("foreign_pin", "a map of another layout", "", "")
        return look(libbpf, any_version)

    monkeypatch.setattr(Maps, "_open", late)
    assert limiter.counters()["web"].packets >= 0
    assert schema() == layout.SCHEMA


def test_what_is_foreign_among_the_pins_stays_and_does_not_stop_it(moved: limiter.Sender) -> None:
    theirs = Path(pins.PIN_DIR) / "theirs"
    theirs.mkdir()
    try:
        limiter.rule(name="web", rate=str(RATE))
        assert schema() == layout.SCHEMA
        assert theirs.is_dir()
    finally:
        theirs.rmdir()
    assert moved.charged() == {"web"}


@pytest.mark.parametrize("gone", [catalog.CONFIG, catalog.CONTROL], ids=["config", "control"])
def test_what_a_killed_purge_left_of_it_stops_nothing(moved: limiter.Sender, gone: catalog.MapRow) -> None:
    limiter.program(state="absent")
    os.unlink(pins.path(gone.name))
    assert limiter.info(gather=["rules"])["rules"][0]["rate"] is None
    limiter.rule(name="web", rate=str(RATE), pids=[moved.pid])
    assert schema() == layout.SCHEMA
    assert limiter.info(gather=["rules"])["rules"][0]["rate"] == RATE


@pytest.fixture
def copied(moved: limiter.Sender, then: earlier.Version) -> Iterator[limiter.Sender]:
    """The same, where the object of that time was copied to the host, as the role does it."""
    Path(build.OBJECT).parent.mkdir(exist_ok=True)
    Path(build.STAMP).unlink(missing_ok=True)
    shutil.copyfile(then.path, build.OBJECT)
    yield moved
    Path(build.OBJECT).unlink()


def test_an_object_that_was_copied_for_it_makes_room_for_one_that_is_built(copied: limiter.Sender) -> None:
    foretold = limiter.rule(check=True, name="web", rate="1m")
    assert limiter.rule(name="web", rate="1m")["program_actions"] == foretold["program_actions"]
    assert schema() == layout.SCHEMA
    assert copied.charged() == {"web"}
    assert not limiter.program()["changed"]


def test_where_nothing_can_be_built_either_the_role_is_named_and_nothing_changes(
    copied: limiter.Sender, then: earlier.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda command, path=None: None)
    for task in (limiter.rule, limiter.program):
        options = {"name": "web", "rate": "1m"} if task is limiter.rule else {}
        for check in (True, False):
            said = "of another version of this collection, and this host has no compiler", "Run the role setup"
            with limiter.refused_unchanged("bad_object", build.OBJECT, *said):
                task(check=check, **options)
    assert (schema(), copied.charged()) == (then.schema, {"web"})


def test_it_can_be_purged_as_it_is(moved: limiter.Sender, then: earlier.Version) -> None:
    limiter.purge("rules")
    assert schema() == then.schema
    assert moved.charged() == set()
    limiter.purge("all")
    assert limiter.snapshot() == limiter.nothing()


@pytest.mark.parametrize("then", [2], indirect=True)
def test_ten_thousand_rules_in_a_full_map_are_taken_over(network: Pair, service: Path, then: earlier.Version) -> None:
    earlier.rules([f"of-many-{number}" for number in range(10_000)], LIMIT)
    earlier.fill(LIMIT)
    before = network.arrived()
    sender = network.send_udp(3 * RATE, cgroup=service)
    begun = when_begun(network, before, 1_000_000)
    upgrade()
    assert schema() == layout.SCHEMA
    sender.finish()
    assert_bound(before, network.arrived(), RATE, LIMIT.bucket)
    assert_bound(begun, network.arrived(), RATE, 0)
    told = limiter.info(gather=["rules"])["rules"]
    assert {one["name"] for one in told} == {"service", *(f"of-many-{number}" for number in range(10_000))}
    assert {(one["rate"], one["bucket"]) for one in told if one["name"] != "service"} == {LIMIT}
