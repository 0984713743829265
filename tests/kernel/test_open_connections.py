# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that are open follow their process into a rule and out of it, though the kernel never relabels them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_request
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import tagging
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.enforce import enforce
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.host import Host
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.purge import carry_out, find
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import run_uncached
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import MPTCP, multipath

# Sends one datagram for each line that it reads, through the socket of that name, which it opens at its first use.
SENDER = """
import socket, sys
sockets = {}
for name in sys.stdin:
    sock = sockets.setdefault(name, socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.sendto(b"x", ("127.0.0.1", 9))
    print("sent", flush=True)
"""


class Sender:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def send(self, name: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "sent\n"


@pytest.fixture
def sender() -> Iterator[Sender]:
    it = Sender()
    yield it
    it.process.kill()
    it.process.wait()
    host = Host.open(run_uncached)
    carry_out(host, *find(host, "all"), everything=True)


def apply(**options: object) -> None:
    enforce(run_uncached, [parse_request(options)], check=False)


def packets(name: str) -> int:
    """What a rule has passed so far."""
    host = Host.open(run_uncached)
    rule = host.cgroups.identifier(host.cgroups.rule_cgroup(name))
    counters = host.maps.counters(rule) if host.maps and rule else None
    assert counters is not None
    return counters.packets


def test_a_socket_that_was_open_is_charged_once_its_process_is_moved(sender: Sender) -> None:
    sender.send("early")
    apply(name="web", pids=[sender.pid], rate="1m")
    sender.send("early")
    sender.send("late")
    assert packets("web") == 2


@pytest.mark.every_kernel
def test_a_moved_process_takes_its_sockets_to_the_next_rule(sender: Sender) -> None:
    sender.send("early")
    apply(name="web", pids=[sender.pid], rate="1m")
    sender.send("late")
    apply(name="db", pids=[sender.pid], rate="1m")
    sender.send("early")
    sender.send("late")
    assert (packets("web"), packets("db")) == (1, 2)


def test_a_released_process_is_free_on_all_its_sockets(sender: Sender) -> None:
    sender.send("early")
    apply(name="web", pids=[sender.pid], rate="1m")
    sender.send("late")
    apply(pids=[sender.pid], state="absent")
    sender.send("early")
    sender.send("late")
    assert packets("web") == 1


def test_what_limits_its_cgroup_holds_beside_the_rule_that_it_is_moved_into(sender: Sender) -> None:
    host = Host.open(run_uncached)
    home = Path(host.cgroups.absolute("/home_of_sender"))
    home.mkdir()
    try:
        (home / "cgroup.procs").write_text(str(sender.pid))
        sender.send("early")
        apply(name="home", cgroup_paths=["/home_of_sender"], rate="1m")
        apply(name="web", pids=[sender.pid], rate="1m")
        sender.send("early")
        sender.send("late")
        assert (packets("home"), packets("web")) == (2, 2)
        apply(pids=[sender.pid], state="absent")
        sender.send("early")
        sender.send("late")
        assert (packets("home"), packets("web")) == (4, 2)
    finally:
        sender.process.kill()
        sender.process.wait()
        home.rmdir()


MPTCP_SERVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
server.bind(("127.0.0.1", 0))
server.listen()
print(server.getsockname()[1], flush=True)
while True:
    connection, _peer = server.accept()
    connection.sendall(b"x" * 1000)
    connection.close()
"""


@multipath
@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, MPTCP], ids=["TCP", "MPTCP"])
def test_what_an_open_mptcp_listener_accepts_is_charged(sender: Sender, protocol: int) -> None:
    with subprocess.Popen([sys.executable, "-c", MPTCP_SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            port = int(server.stdout.readline())
            apply(name="web", pids=[server.pid], rate="1m")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
                client.connect(("127.0.0.1", port))
                while client.recv(4096):
                    pass
            assert packets("web") > 1
        finally:
            server.kill()


def test_a_socket_that_cannot_be_bound_leaves_no_other_unlimited() -> None:
    bound: list[int] = []

    def bind(descriptor: int) -> None:
        if not bound:
            bound.append(-1)
            raise LimiterError("kernel", "no room for the options of this socket")
        bound.append(descriptor)

    with socket.socket(), socket.socket(), socket.socket():
        told = tagging.tag([os.getpid()], tagging.Tags(bind)).missed
    assert len(bound) >= 3
    assert any("1 open socket of" in text and "no room" in text for text in told)
