# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that are older than their rule, and not open on both sides any more, or not yet: what they send is paced
as on any other connection.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import Child, child
from ansible_collections.speed_limiter.ebpf.tests.support.connections import UNPACED
from ansible_collections.speed_limiter.ebpf.tests.support.net import Pair, run
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import adopting
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT, Scene, assert_held, counters, pacing
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

RATE = 20 * MBIT // (10 if SLOW else 1)
QUEUED = 8 * RATE  # bytes: more than any of the tests sends

# Both ends of a connection, each in its network namespace. What it sends is queued before its receiver reads anything.
ENDS = """
import ctypes, socket, sys

address, receiving, sending, queued = sys.argv[1:]
SNDBUFFORCE, RCVBUF = 32, 1 << 18

def enter(namespace):
    with open(f"/run/netns/{namespace}") as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0

def listen(address):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RCVBUF)
    listener.bind((address, 0))
    listener.listen()
    return listener

enter(receiving)
listener = listen(address)  # outside of the cgroup, as is what it accepts
print("ready", flush=True)
sys.stdin.readline()
enter(sending)
sender = socket.create_connection(listener.getsockname())
sender.setsockopt(socket.SOL_SOCKET, SNDBUFFORCE, int(queued))
receiver = listener.accept()[0]
sender.setblocking(False)
left = int(queued)
while left > 0:
    try:
        left -= sender.send(bytes(min(left, 65536)))
    except BlockingIOError:
        break
for word in sys.stdin.readline().split():
    if word == "peer":
        receiver.shutdown(socket.SHUT_WR)
    if word == "own":
        sender.shutdown(socket.SHUT_WR)
    if word == "close":
        sender.close()
print(sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] if sender.fileno() >= 0 else 0, flush=True)
sys.stdin.readline()
sink = bytearray(1 << 20)
while receiver.recv_into(sink):
    pass
"""

# Who closes, and the state (include/net/tcp_states.h) in which the sender then is; 0: nobody can ask it any more.
CLOSED = {
    "nobody": ("", 1),
    "its peer": ("peer", 8),
    "its process one way": ("own", 4),
    "both, its process first": ("own peer", 11),
    "both, its peer first": ("peer own", 9),
    "its process for good": ("close", 0),
}


@pytest.fixture
def ends(scene: Scene) -> Iterator[Child]:
    """A connection from the cgroup ``paced``, which has no rule yet, with more queued than its receiver takes."""
    cgroup, pair = scene.cgroup(), scene.pair
    with child(ENDS, Pair.address, pair.receiver, pair.sender, str(QUEUED)) as process:
        (cgroup / "cgroup.procs").write_text(str(process.pid))
        tell(process, "")
        yield process


def tell(process: Child, words: str) -> None:
    process.process.stdin.write(f"{words}\n")
    process.process.stdin.flush()


@adopting
@pytest.mark.parametrize(
    "who", [pytest.param(who, marks=[pytest.mark.every_kernel] if who == "its peer" else []) for who in CLOSED]
)
def test_what_is_queued_on_a_closed_connection_is_paced(scene: Scene, ends: Child, who: str) -> None:
    words, state = CLOSED[who]
    # What is queued must last for some windows.
    rate = RATE // 4 if SLOW else RATE
    tell(ends, words)
    assert int(ends.process.stdout.readline()) == state
    limiter.rule(name="paced", rate=str(rate), cgroup_path="/paced")
    tell(ends, "read")
    assert_held(scene.pair, rate)
    seen = counters()
    # An emulated machine is late: the first lumps, which were made before there was a rule, may come too early.
    assert seen["dropped_packets"] <= (seen["packets"] // 5 if SLOW else 0)
    shown = pacing()
    assert (shown["mode"], shown["reason"], shown["unpaced_connections"]) == ("paced", None, 0)


# A server that is asked with TCP Fast Open: it answers before the handshake is over. Says the state and the
# SO_MAX_PACING_RATE of what it accepted, whenever it is asked.
FAST = """
import ctypes, socket, struct, sys

address, namespace = sys.argv[1:]
with open(f"/run/netns/{namespace}") as file:
    assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0
print("ready", flush=True)
sys.stdin.readline()
listener = socket.create_server((address, 5002))
print("listens", flush=True)
accepted = listener.accept()[0]
accepted.send(b"answer")
while True:
    state = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    print(state, *struct.unpack("@L", accepted.getsockopt(socket.SOL_SOCKET, 47, 8)), flush=True)
    sys.stdin.readline()
"""
SYN_RECV = 3
NOBODY = "10.255.0.9"  # whom the server's answers reach, and who says nothing more


def syn_with_data(source: str, target: str, port: int) -> bytes:
    """Without any option: the server is told to want no cookie."""
    data = b"request"
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 0x02, 65535, 0, 0) + data
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp)) + tcp + bytes(len(tcp) % 2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    tcp = tcp[:16] + struct.pack("!H", checksum) + tcp[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, socket.IPPROTO_TCP, 0) + addresses + tcp


SEND_RAW = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sock.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))
print("ready", flush=True)
"""


@adopting
def test_who_answers_before_the_handshake_is_over_is_paced(scene: Scene) -> None:
    cgroup, pair = scene.cgroup(), scene.pair
    inside = ("nsenter", f"--net=/run/netns/{pair.sender}")
    # A server, without cookies, on every listener.
    run(*inside, "sysctl", "-qw", "net.ipv4.tcp_fastopen=0x602")
    run("ip", "-n", pair.sender, "neighbour", "replace", NOBODY, "lladdr", "02:00:00:00:00:09", "dev", "veth0")
    with child(FAST, Pair.sender_address, pair.sender) as server:
        (cgroup / "cgroup.procs").write_text(str(server.pid))
        tell(server, "")
        assert server.process.stdout.readline() == "listens\n"
        packet = syn_with_data(NOBODY, Pair.sender_address, 5002)
        command = [*("nsenter", f"--net=/run/netns/{pair.receiver}"), sys.executable, "-c", SEND_RAW]
        run(*command, packet.hex(), Pair.sender_address)
        state, rate = map(int, server.process.stdout.readline().split())
        assert (state, rate) == (SYN_RECV, UNPACED)
        limiter.rule(name="paced", rate=str(RATE), cgroup_path="/paced")
        tell(server, "")
        state, rate = map(int, server.process.stdout.readline().split())
        assert state == SYN_RECV
        assert rate < 2 * RATE
