# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that are open already: paced soon after their rule is made, and given back their own rate at once when it
goes, whatever makes it go, in every network namespace, and where the kernel can't do it by itself.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import enter_network_namespace
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import settle
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import pacing
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import Child, child, until
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import (
    ADOPTS,
    RELEASES,
    adopting,
    not_adopting,
    releasing,
)

RATE = 1 << 20
BUCKET = str(RATE // 20)  # what TCP may spend of it at once raises no share to twice the rate, nor its window
NONE = (1 << 64) - 1  # no SO_MAX_PACING_RATE
SO_MAX_PACING_RATE = 47
UNCLAMPED = (1 << 31) - 1  # segments

# Begins in no cgroup of interest; opens a connection to itself when it is told to, and always answers with its
# sender's SO_MAX_PACING_RATE.
CONNECTION = """
import ctypes, socket, struct, subprocess, sys
home = open("/proc/self/ns/net")
print("ready", flush=True)
for line in sys.stdin:
    word, *rest = line.split()
    if word == "home":
        assert ctypes.CDLL(None).setns(home.fileno(), 0x40000000) == 0
    if word == "namespace":
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        print("ready", flush=True)
        continue
    if word == "open":
        listener = socket.create_server(("127.0.0.1", 0))
        sender = socket.create_connection(listener.getsockname())
        receiver, peer = listener.accept()
    if word in ("open", "own"):
        for rate in rest:
            sender.setsockopt(socket.SOL_SOCKET, 47, struct.pack("@L", int(rate)))
    if word == "send":
        sender.sendall(bytes(2000))
        receiver.recv(2000, socket.MSG_WAITALL)
    if word == "window":  # struct tcp_info: tcpi_snd_ssthresh, which follows what the window is clamped to
        print(struct.unpack_from("@I", sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 76)[0], flush=True)
        continue
    print(*struct.unpack("@L", sender.getsockopt(socket.SOL_SOCKET, 47, 8)), flush=True)
"""


class Connection:
    def __init__(self, process: Child) -> None:
        self.pid, self._process = process.pid, process.process

    def ask(self, *words: object) -> str:
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return str(self._process.stdout.readline()).strip()

    def rate(self, *words: object) -> int:
        return int(self.ask(*(words or ("tell",))))

    def is_paced(self) -> bool:
        """Sends something: a socket hears of its share when it is acknowledged."""
        return self.rate("send") < 2 * RATE  # what it has left unused it may catch up with


@pytest.fixture
def place() -> Iterator[str]:
    with limiter.clean_host() as cgroups:
        directory = Path(cgroups.absolute("/paced"))
        directory.mkdir()
        yield "/paced"
        limiter.purge("all")  # a leaf is in it
        until(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


@pytest.fixture(params=["our network namespace", "one of its own"])
def connection(request: pytest.FixtureRequest, place: str) -> Iterator[Connection]:
    with child(CONNECTION) as process:
        it = Connection(process)
        Path(f"{Cgroups.find().absolute(place)}/cgroup.procs").write_text(str(it.pid))
        if request.param == "one of its own":
            assert it.ask("namespace") == "ready"
        yield it


def in_place() -> dict[str, Any]:
    return limiter.rule(name="it", rate=str(RATE), bucket=BUCKET, cgroup_path="/paced")


def open_and_limit(connection: Connection, *own: int) -> None:
    """In this order; before Linux 6.12 in the other one, since what is older than its rule is not paced there."""
    limiter.program()
    if not ADOPTS:
        in_place()
    assert connection.rate("open", *own) <= (own[0] if own else NONE)
    in_place()
    until(connection.is_paced)


ENDS: dict[str, Callable[[], object]] = {
    "the rule goes": lambda: limiter.rule(name="it", state="absent"),
    "the member goes": lambda: limiter.rule(name="it", state="absent", cgroup_path="/paced"),
    "another list of rules": lambda: limiter.rules({"name": "other", "rate": "1m"}, purge=True),
    "rules are purged": limiter.purge,
    "all is purged": lambda: limiter.purge("all"),
    "the program is unloaded": lambda: limiter.program(state="absent"),
    "pacing is switched off": lambda: limiter.program(pacing=False),
}
# Sockets are borrowed one by one where the kernel has no iterator that releases them.
WITHOUT_THE_KERNEL = ("all is purged", "the program is unloaded", "pacing is switched off")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.every_kernel] if name == "the rule goes" else []) for name in ENDS]
)
def test_an_open_connection_is_paced_and_released(connection: Connection, name: str) -> None:
    """At once; before Linux 6.1 with its next packets, where it is not released by hand."""
    open_and_limit(connection)
    assert (connection.rate("window") < UNCLAMPED) == RELEASES
    ENDS[name]()
    if RELEASES or name in WITHOUT_THE_KERNEL:
        assert connection.rate() == NONE
    else:
        until(lambda: connection.rate("send") == NONE)
    assert connection.rate("window") == UNCLAMPED


@not_adopting
@pytest.mark.parametrize(
    "host", [pytest.param("that had no rule", marks=pytest.mark.every_kernel), "on which pacing was off"]
)
def test_a_connection_that_the_kernel_cannot_adopt_stays_with_the_bucket_and_that_is_told(
    connection: Connection, host: str
) -> None:
    if host == "that had no rule":
        limiter.purge("all")
    else:
        limiter.program(pacing=False)
    connection.rate("open")
    limiter.program()
    limiter.rule(name="it", rate=str(RATE), bucket="2k", cgroup_path="/paced")
    for _turn in range(5):
        assert connection.rate("send") == NONE
    (shown,) = limiter.info(name="it", gather=["rules"])["rules"]
    assert shown["pacing"]["mode"] == "paced"
    for words in ("some connections are not paced", "open before their rule", "Linux 6.12", "token bucket limits"):
        assert words in shown["pacing"]["reason"]
    assert shown["counters"]["bytes"] > 5 * 2000
    assert limiter.info(gather=["program"])["program"]["pacing"]["open_connections"] == RELEASES
    connection.rate("open")
    until(connection.is_paced)


def without_iterator() -> None:
    if RELEASES:
        os.unlink(pins.path(catalog.SETTLE.link))


@pytest.mark.parametrize("own", [RATE // 2, 100 * RATE])
def test_the_lower_of_a_connections_own_rate_and_its_share_holds_and_it_gets_its_own_back(
    connection: Connection, own: int
) -> None:
    open_and_limit(connection, own)
    assert connection.rate("send") <= own
    limiter.rule(name="it", state="absent")
    if RELEASES:
        assert connection.rate() == own
    until(lambda: connection.rate("send") == own)


@pytest.mark.parametrize("end", [ENDS[name] for name in WITHOUT_THE_KERNEL], ids=WITHOUT_THE_KERNEL)
@pytest.mark.parametrize("own", [NONE, RATE // 2])
def test_where_the_kernel_has_no_iterator_sockets_are_released_one_by_one(
    connection: Connection, own: int, end: Callable[[], object]
) -> None:
    in_place()
    without_iterator()
    connection.rate("open", own)
    until(connection.is_paced)
    end()
    assert connection.rate() == own
    assert connection.rate("send") == own


def test_a_rate_that_its_process_has_set_meanwhile_is_left_to_it(connection: Connection) -> None:
    in_place()
    without_iterator()
    connection.rate("open")
    until(connection.is_paced)
    connection.rate("own", RATE // 4)
    limiter.program(state="absent")
    assert connection.rate() == RATE // 4


@adopting
def test_the_first_rule_of_a_host_paces_what_its_process_has_open(connection: Connection) -> None:
    connection.rate("open")
    limiter.rule(name="it", rate=str(RATE), bucket=BUCKET, pid=connection.pid)
    until(connection.is_paced)


def test_who_removes_the_attachments_by_hand_frees_what_is_opened_from_then_on_until_the_next_task(
    connection: Connection,
) -> None:
    open_and_limit(connection)
    for link in Path(pins.PIN_DIR).glob("*_link"):
        link.unlink()
    assert limiter.info(gather=["program"])["program"] is None
    until(lambda: connection.rate("open") == NONE)  # the kernel detaches what is not pinned any more a moment later
    assert connection.rate("send") == NONE
    assert in_place()["changed"]
    connection.rate("open")
    until(connection.is_paced)


def test_a_process_that_leaves_its_rule_is_released(connection: Connection) -> None:
    limiter.rule(name="it", rate=str(RATE), bucket=BUCKET, pid=connection.pid)
    connection.rate("open")
    until(connection.is_paced)
    limiter.rule(pid=connection.pid, state="absent")
    if RELEASES:
        assert connection.rate() == NONE
    until(lambda: connection.rate("send") == NONE)


@adopting
def test_pacing_that_is_switched_on_again_paces_what_is_open(connection: Connection) -> None:
    in_place()
    limiter.program(pacing=False)
    connection.rate("open")
    assert connection.rate("send") == NONE
    limiter.program()
    until(connection.is_paced)


@pytest.mark.parametrize("end", [ENDS[name] for name in WITHOUT_THE_KERNEL], ids=WITHOUT_THE_KERNEL)
def test_a_connection_in_a_network_namespace_that_nothing_leads_to_is_released(
    connection: Connection, end: Callable[[], object]
) -> None:
    in_place()
    assert connection.ask("namespace") == "ready"
    connection.rate("open")
    until(connection.is_paced)
    connection.ask("home")
    end()
    assert connection.rate() == NONE
    assert connection.rate("window") == UNCLAMPED


def test_a_network_namespace_without_a_process_is_found_by_its_name(place: str) -> None:
    subprocess.run(["ip", "netns", "add", "somewhere"], check=True)
    subprocess.run(["nsenter", "--net=/run/netns/somewhere", "ip", "link", "set", "lo", "up"], check=True)
    ends: list[socket.socket] = []

    def open_there() -> None:
        with open("/run/netns/somewhere", encoding="ascii") as namespace:
            enter_network_namespace(namespace.fileno())
        listener = socket.create_server(("127.0.0.1", 0))
        ends.extend([listener, socket.create_connection(listener.getsockname()), listener.accept()[0]])

    def rate() -> int:
        ends[1].sendall(bytes(2000))
        ends[2].recv(2000, socket.MSG_WAITALL)
        return int(struct.unpack("@L", ends[1].getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0])

    limiter.rule(name="it", rate=str(RATE), bucket=BUCKET, cgroup_path="/", everything=True)
    thread = threading.Thread(target=open_there)
    thread.start()
    thread.join()
    try:
        until(lambda: rate() < 2 * RATE)
        limiter.program(state="absent")
        assert rate() == NONE
    finally:
        for end in ends:
            end.close()
        subprocess.run(["ip", "netns", "delete", "somewhere"], check=True)


def noting(looked_at: list[object]) -> Callable[..., list[object]]:
    """Stands in for settle.settle: notes what was to be looked at, and says that nothing is wrong."""

    def note(pids: object = None) -> list[object]:
        looked_at.append(pids)
        return []

    return note


def test_a_task_settles_once_and_one_that_changes_nothing_not_at_all(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[object] = []
    monkeypatch.setattr(settle, "settle", noting(looked_at))
    wanted = [{"name": f"rule-{number}", "rate": "1m"} for number in range(20)]
    limiter.program()
    looked_at.clear()
    limiter.rules(*wanted)
    assert looked_at == [set()]
    limiter.rules(*wanted)
    assert len(looked_at) == 1


def test_so_many_rules_that_all_processes_are_looked_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    monkeypatch.setattr(pacing, "_MOST_RULES", 3)
    limiter.program()
    monkeypatch.setattr(settle, "settle", noting(looked_at))
    limiter.rules(*({"name": f"rule-{number}", "rate": "1m"} for number in range(4)))
    assert looked_at == [None]


@releasing
def test_sockets_that_cannot_be_settled_are_a_warning_and_the_rule_holds(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tell: object) -> None:
        raise OSError(5, "Input/output error")

    limiter.program()
    monkeypatch.setattr(settle, "_run", refuse)
    made = limiter.rule(name="it", rate=str(RATE), bucket=BUCKET, cgroup_path="/paced")
    assert made["changed"]
    assert [text for text in made["warnings"] if "Input/output error" in text]
    connection.rate("open")
    until(connection.is_paced)
