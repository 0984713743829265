# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that give every cgroup a budget of its own: budgets come and go with the cgroups that send, and with no others.

The program has few slots here, and takes a budget for rested after a second. Between two tasks nothing runs but the
kernel: slots are given and taken by cgroups' packets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import budgets as of_kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.each import (
    RATE,
    Users,
    budgets,
    exiting,
    identifier,
    keys,
    send,
    told,
)
from ansible_collections.speed_limiter.ebpf.tests.support.scene import Scene, assert_bound, pause, when_begun
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

SLOTS, REST_SECONDS = 16, 1
POLICY = struct.Struct("=II")  # struct budget_policy


@pytest.fixture(scope="module")
def hasty_object(limiter_object: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    data, usual = Path(limiter_object).read_bytes(), POLICY.pack(layout.MAX_BUDGETS, 20)
    assert data.count(usual) == 1
    path = tmp_path_factory.mktemp("hasty") / "limiter.bpf.o"
    path.write_bytes(data.replace(usual, POLICY.pack(SLOTS, REST_SECONDS)))
    return str(path)


@pytest.fixture
def users(scene: Scene, clean_host: Cgroups, hasty_object: str) -> Iterator[Users]:
    limiter.program(object=hasty_object)
    it = Users(clean_host)
    yield it
    scene.pair.stop()
    it.remove()


def crowd_out(users: Users, cgroup: Path) -> None:
    """Others come, until the budget of this one, which rests, is gone."""

    def is_gone() -> bool:
        send(users.new(1))
        return identifier(cgroup) not in budgets()

    until(is_gone)


def test_rested_budgets_make_room_and_nothing_that_they_counted_is_lost(users: Users) -> None:
    users.limit()
    seen = 0
    for _round in range(3):
        cgroups = users.new(SLOTS)

        def all_have_budgets(cgroups: list[Path] = cgroups) -> bool:
            nonlocal seen
            send(cgroups)
            seen += len(cgroups)
            assert told()["packets"] == seen
            return {identifier(cgroup) for cgroup in cgroups} == budgets()

        until(all_have_budgets)
        for cgroup in cgroups:
            cgroup.rmdir()
    assert told()["active"] == SLOTS


def test_who_finds_no_room_shares_the_rules_own_budget_which_is_told_until_there_is_room(users: Users) -> None:
    users.limit()
    first, late = users.new(SLOTS), users.new(1)
    shared = 0
    while not shared:  # a slow machine may take longer for them than budgets are in use
        send(first)
        send(late)
        shared = told()["shared_packets"]
        assert told()["active"] <= SLOTS

    def has_room() -> bool:
        send(late)
        return identifier(late[0]) in budgets()

    until(has_room)
    found = told()
    send(late)
    assert told() == {**found, "packets": found["packets"] + 1}


@pytest.mark.parametrize("deeper", [False, pytest.param(True, marks=pytest.mark.every_kernel)], ids=["itself", "below"])
def test_a_cgroup_whose_budget_was_removed_is_limited_from_its_next_packet_on(
    scene: Scene, users: Users, deeper: bool
) -> None:
    """Its rules are cached, and a rule without a state limits nothing."""
    pair = scene.pair
    users.limit()
    [cgroup] = users.new(1)
    within = cgroup / "deeper" if deeper else cgroup
    within.mkdir(exist_ok=True)
    try:
        send([within])
        crowd_out(users, cgroup)
        with limiter.opened_maps() as maps:
            generation = maps.control().generation
        before = pair.arrived()
        pair.send_udp(4 * RATE, cgroup=within)
        begun = when_begun(pair, before)
        pause(1.0)
        assert_bound(before, pair.arrived(), RATE, RATE // 10)
        assert pair.arrived().bytes - begun.bytes >= 0.5 * RATE
        assert identifier(cgroup) in budgets()
        with limiter.opened_maps() as maps:
            assert maps.control().generation == generation
    finally:
        pair.stop()
        if deeper:
            until(lambda: not (within / "cgroup.procs").read_text())
            within.rmdir()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_an_open_socket_brings_back_the_budget_that_was_removed(users: Users, kind: socket.SocketKind) -> None:
    users.limit()
    [cgroup] = users.new(1)
    with contextlib.ExitStack() as stack:
        receiver, ours, theirs = map(stack.enter_context, (socket.socket(socket.AF_INET, kind), *socket.socketpair()))
        receiver.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            receiver.listen()
        if not (pid := os.fork()):
            with exiting():
                ours.close()
                (cgroup / "cgroup.procs").write_text("0")
                sender = socket.socket(socket.AF_INET, kind)
                sender.connect(receiver.getsockname())
                while theirs.recv(1):
                    sender.send(b"x")
                    theirs.send(b"x")
        theirs.close()

        def has_budget() -> bool:
            before = told()["packets"]
            ours.send(b"x")
            ours.recv(1)
            assert told()["packets"] > before
            return identifier(cgroup) in budgets()

        for _time in range(3):
            until(has_budget)
            crowd_out(users, cgroup)
        ours.close()
        os.waitpid(pid, 0)


def test_many_cpus_give_each_cgroup_one_budget_and_each_budget_a_slot(users: Users) -> None:
    users.limit(rate="100m", bucket="100m")
    rounds, packets = (3, 5) if SLOW else (20, 20)
    sent = 0
    for _round in range(rounds):
        cgroups = users.new(SLOTS // 2)
        senders = []
        for _sender in range(4):
            if not (pid := os.fork()):
                with exiting():
                    send(cgroups, packets)
            senders.append(pid)
        for pid in senders:
            assert os.waitpid(pid, 0)[1] == 0
        sent += len(senders) * len(cgroups) * packets
    assert told()["packets"] == sent
    with limiter.opened_maps() as maps:
        slots = [layout.SLOT.unpack(value)[2] for _index, value in maps.entries(catalog.SLOT)]
    assert keys().keys() <= set(slots)
    assert len(keys()) <= SLOTS


def test_counters_never_go_back_while_budgets_go(users: Users) -> None:
    users.limit(rate="100m", bucket="100m")
    count = 60 if SLOW else 200
    cgroups = users.new(count)
    if not (pid := os.fork()):
        with exiting():
            for cgroup in cgroups:
                send([cgroup], 3)
                pause(2 * REST_SECONDS / count)
    packets = [0]
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        packets.append(told()["packets"])
    assert packets == sorted(packets)
    assert told()["packets"] == 3 * count


def test_budgets_go_with_their_rule(users: Users) -> None:
    users.limit()
    send(users.new(3))
    assert told()["active"] == 3
    limiter.rules(purge=True)
    with limiter.opened_maps() as maps:
        assert not [*maps.entries(catalog.STATE)]


def test_a_rule_that_shares_again_keeps_what_its_budgets_counted(users: Users) -> None:
    users.limit()
    cgroups = users.new(3)
    send(cgroups)
    users.limit(each=False)
    send(cgroups)
    assert limiter.counters()["users"].packets == 6
    assert limiter.info(name="users")["rules"][0]["budgets"] is None


def test_another_rule_gives_a_cgroup_another_budget_and_the_first_keeps_its_counters(users: Users) -> None:
    users.limit()
    cgroups = users.new(2)
    send(cgroups)
    limiter.rules(
        {"name": "users", "rate": "1m", "cgroup_paths": ["/users/*"], "each": True},
        {"name": "first", "rate": "2m", "cgroup_paths": [f"/users/{cgroups[0].name}*"], "each": True},
        purge=True,
    )
    send(cgroups)
    counted = limiter.counters()
    assert (counted["users"].packets, counted["first"].packets) == (3, 1)
    assert told()["active"] == 1


def test_what_a_killed_task_left_of_a_rules_budgets_is_purged(users: Users) -> None:
    users.limit()
    send(users.new(3))
    rule = limiter.info(name="users")["rules"][0]["cgroup_id"]
    with limiter.opened_maps() as maps:
        maps.remove_limit(rule)
        maps.remove_member(rule)
        maps.remove_state(rule)
    Path(Cgroups.find().absolute("/speed_limiter/users")).rmdir()
    removed = limiter.purge("stale")["removed"]
    assert removed["stale_rules"] == [rule]
    with limiter.opened_maps() as maps:
        assert not [*maps.entries(catalog.STATE)]


def test_the_same_task_removes_what_one_left_that_was_killed_before_budgets_went(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.limit()
    send(users.new(3))
    child = os.fork()
    if child == 0:
        with exiting():
            monkeypatch.setattr(of_kernel, "remove", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
            limiter.rule(name="users", state="absent")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(budgets()) == 3
    limiter.rule(name="users", state="absent")
    with limiter.opened_maps() as maps:
        assert not [*maps.entries(catalog.STATE)]
