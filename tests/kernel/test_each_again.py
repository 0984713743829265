# SPDX-License-Identifier: GPL-3.0-or-later
"""A budget belongs to a cgroup's names: a service that restarts and a user who logs in again have the one they had.

With each cgroup that is removed and made again, nobody has a byte more than the rate and one bucket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.each import (
    Users,
    budgets,
    exiting,
    identifier,
    keys,
    send,
    told,
)
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

SLOWLY, BUCKET = 125_000, 125_000
DATAGRAM, HEADERS = 1400, 28
BURST = 300  # datagrams, more than three buckets
LONG = "x" * (layout.MAX_NAME - 1)


@pytest.fixture
def users(clean_host: Cgroups) -> Iterator[Users]:
    limiter.program()
    it = Users(clean_host)
    yield it
    limiter.purge()
    it.remove()


class Receiver:
    """Counts the IP bytes of datagrams that arrive on this host."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address = self._socket.getsockname()
        self.begun = time.monotonic()
        self.bytes = 0

    def count(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.bytes += len(self._socket.recv(2048)) + HEADERS

    def assert_bound(self) -> None:
        most = SLOWLY * (time.monotonic() - self.begun) + BUCKET + DATAGRAM + HEADERS
        assert BUCKET / 2 < self.bytes <= most, f"{self.bytes} bytes of {most:.0f} have arrived"

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with contextlib.closing(Receiver()) as it:
        yield it


def burst(cgroup: Path, receiver: Receiver, datagrams: int = BURST) -> None:
    if not (pid := os.fork()):
        with exiting():
            (cgroup / "cgroup.procs").write_text("0")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _datagram in range(datagrams):
                    sender.sendto(bytes(DATAGRAM), receiver.address)
    assert os.waitpid(pid, 0)[1] == 0
    receiver.count()


def again(*cgroups: Path) -> None:
    """Their last processes have ended; they go, and others come in their places."""
    before = {identifier(cgroup) for cgroup in cgroups}
    for cgroup in cgroups:
        cgroup.rmdir()
    for cgroup in cgroups:
        cgroup.mkdir()
    assert before.isdisjoint(identifier(cgroup) for cgroup in cgroups)


@pytest.mark.parametrize(
    ("each", "deeper", "times"), [(True, False, 100), (True, True, 100), (False, False, 1000)], ids=str
)
@pytest.mark.every_kernel
def test_a_cgroup_that_is_made_again_and_again_sends_no_more_than_before(
    users: Users, receiver: Receiver, each: bool, deeper: bool, times: int
) -> None:
    """As a service that restarts."""
    users.limit(rate=str(SLOWLY), bucket=str(BUCKET), each=each)
    cgroup = users.named("web.service")
    receiver.begun = time.monotonic()
    for _time in range(10 if SLOW else times):
        within = cgroup / "deeper" if deeper else cgroup
        within.mkdir(exist_ok=True)
        burst(within, receiver, 100 * BURST // times)
        if deeper:
            within.rmdir()
        again(cgroup)
    receiver.assert_bound()
    assert not each or told()["active"] == 1


def test_other_places_and_another_program_give_no_new_budget(users: Users, receiver: Receiver) -> None:
    """A new graph has other numbers, and another program begins without what it knew."""
    limit: dict[str, Any] = {"rate": str(SLOWLY), "bucket": str(BUCKET)}
    users.limit(**limit)
    cgroup = users.named("web.service")
    receiver.begun = time.monotonic()
    for number in range(6):
        burst(cgroup, receiver)
        again(cgroup)
        if number % 2:
            limiter.program(state="reloaded")
        else:
            users.limit(**limit, cgroup_paths=["/users/*", f"/elsewhere/{number}"])
    receiver.assert_bound()
    assert told()["active"] == 1


def test_of_many_that_are_made_again_each_packet_is_counted_once(users: Users) -> None:
    users.limit(rate="100m", bucket="100m")
    cgroups = users.new(100 if SLOW else 1000)
    packets = [0]
    for _time in range(3):
        send(cgroups)
        packets.append(told()["packets"])
        assert told()["active"] <= len(cgroups)
        again(*cgroups)
    assert packets == [len(cgroups) * time for time in range(4)]


@pytest.mark.every_kernel
def test_each_way_of_names_has_a_budget_of_its_own(users: Users) -> None:
    users.limit(cgroup_paths=["/users/*", "/users/*/*"])
    cgroups = [
        users.named(path)
        for path in (
            f"{LONG}a",
            f"{LONG}b",
            LONG,
            "12345678",
            "12345678/x",
            "12345678x",
            "x/12345678",
            "a/b",
            "b/a",
            "ab/c",
            "a/bc",
            "abc",
        )
    ]
    send(cgroups)
    there = {
        identifier(cgroup) for cgroup in (*cgroups, *(one.parent for one in cgroups if one.parent.name != "users"))
    }
    assert budgets() == there
    assert told()["active"] == len(there)


@pytest.mark.every_kernel
def test_names_longer_than_any_that_a_pattern_could_have_share_the_rule_s_budget(users: Users) -> None:
    users.limit()
    send([users.named(f"{LONG}{end}") for end in ("longer 1", "longer 2")])
    assert (told()["active"], told()["shared_packets"], told()["packets"]) == (0, 2, 2)


def test_keys_of_budgets_cannot_be_foreseen(users: Users) -> None:
    """Only as long as there are maps a cgroup has the same one."""
    cgroup = users.named("web.service")
    seen: list[int] = []
    for _time in range(2):
        limiter.program()
        users.limit()
        send([cgroup])
        seen += keys()
        limiter.program(state="reloaded")
        send([cgroup])
        assert [*keys()] == seen[-1:]
        limiter.purge("all")
    assert seen[0] != seen[1]


@pytest.mark.every_kernel
def test_every_version_makes_the_same_keys(users: Users) -> None:
    """Maps outlive programs. These were made by another SipHash-1-3, of the names from the lowest one up."""
    users.limit()
    with limiter.opened_maps() as maps:
        maps.of(catalog.SLOT).update(layout.INDEX.pack(0), layout.SLOT.pack(0, 1, 0))  # the secret
    usual, long = users.named("web.service"), users.named(f"{LONG}a")
    send([usual, long])
    assert keys() == {0x65A90A1E921CC9A8: identifier(usual), 0x6C7702A7C4ADC2E8: identifier(long)}


def test_one_that_is_made_again_is_told_by_its_path(users: Users) -> None:
    users.limit()
    cgroup = users.named("web.service")
    for _time in range(2):
        send([cgroup])
        again(cgroup)
    send([cgroup])
    [rule] = limiter.info(name="users", gather=["use"])["use"]
    assert [one["cgroup"] for one in rule["budgets"]] == ["/users/web.service"]


def test_a_socket_that_outlives_its_cgroup_pays_with_the_one_in_its_place_and_does_not_rename_it(users: Users) -> None:
    users.limit()
    cgroup, other = users.named("web.service"), users.named("other")
    ours, theirs = socket.socketpair()
    if not (pid := os.fork()):
        with exiting():
            ours.close()
            (cgroup / "cgroup.procs").write_text("0")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                (other / "cgroup.procs").write_text("0")
                while theirs.recv(1):
                    sender.sendto(b"x", ("127.0.0.1", 9))
                    theirs.send(b"x")
    theirs.close()
    with ours:
        for _time in range(2):
            ours.send(b"x")
            ours.recv(1)
            again(cgroup)
            send([cgroup])
            limiter.rule(name="another", rate="1m")  # what sockets are charged to is found again
            ours.send(b"x")
            ours.recv(1)
            assert budgets() == {identifier(cgroup)}
    assert os.waitpid(pid, 0)[1] == 0
    assert (told()["active"], told()["packets"]) == (1, 6)
