# SPDX-License-Identifier: GPL-3.0-or-later
"""IPsec: what goes through a tunnel's device passes the hook as it is, and once more encrypted. It is charged once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.children import child
from ansible_collections.speed_limiter.ebpf.tests.support.net import PORT, Arrived, Pair, run
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    FIRST_WINDOW,
    LEAST,
    MBIT,
    MOST,
    Scene,
    assert_bound,
    counters,
    pacing,
    pause,
    when_begun,
)

RATE = 4 * MBIT
BUCKET = RATE // 4
KEY = "0x" + "42" * 20  # of AES-GCM: 16 bytes and a salt
INNER, INNER_PEER = "10.254.0.1", "10.254.0.2"
# Of a packet: its data, and how much larger it is encrypted than what is charged, at most.
SIZE, OVERHEAD = 1400, 1.08


class Host(NamedTuple):
    """One of the two, its addresses and its peer's, on the wire and inside of the tunnel."""

    namespace: str
    own: str
    peer: str
    inner: str
    inner_peer: str

    def ip(self, *words: str) -> None:
        run("ip", "-n", self.namespace, *words)


def states(host: Host, mode: str, *more: str) -> None:
    """One security association each way."""
    cipher = ("aead", "rfc4106(gcm(aes))", KEY, "128")
    for source, target in ((host.own, host.peer), (host.peer, host.own)):
        ends = ("src", source, "dst", target, "spi", "0x1000" if source < target else "0x2000")
        host.ip("xfrm", "state", "add", *ends, "proto", "esp", "reqid", "1", "mode", mode, *cipher, *more)


def policy(host: Host, mode: str, selector: tuple[str, ...], *more: str) -> None:
    """What is between two addresses, and of a protocol where one is named, goes through the associations."""
    own, peer, *protocol = selector
    ways = {"out": (own, peer, host.own, host.peer), "in": (peer, own, host.peer, host.own)}
    for direction, (source, target, outer_source, outer_target) in ways.items():
        ends = ("src", source, "dst", target, *protocol)
        template = ("tmpl", "src", outer_source, "dst", outer_target, "proto", "esp", "reqid", "1", "mode", mode)
        host.ip("xfrm", "policy", "add", *ends, "dir", direction, *more, *template)


def through_device(host: Host, *kind: str) -> None:
    host.ip("link", "add", "tunnel0", "type", *kind)
    host.ip("address", "add", host.inner, "peer", host.inner_peer, "dev", "tunnel0")
    host.ip("link", "set", "tunnel0", "mtu", "1438", "up")


def xfrm(host: Host) -> None:
    states(host, "tunnel", "if_id", "7")
    policy(host, "tunnel", ("0.0.0.0/0", "0.0.0.0/0"), "if_id", "7")
    through_device(host, "xfrm", "dev", "veth0", "if_id", "7")


def xfrm_in_udp(host: Host) -> None:
    states(host, "tunnel", "if_id", "7", "encap", "espinudp", "4500", "4500", "0.0.0.0")
    policy(host, "tunnel", ("0.0.0.0/0", "0.0.0.0/0"), "if_id", "7")
    through_device(host, "xfrm", "dev", "veth0", "if_id", "7")


def xfrm_over_ipv6(host: Host) -> None:
    addresses = {Pair.sender_address: Pair.sender_address6, Pair.address: Pair.address6}
    outer = host._replace(own=addresses[host.own], peer=addresses[host.peer])
    states(outer, "tunnel", "if_id", "7", "flag", "af-unspec")
    policy(outer, "tunnel", ("0.0.0.0/0", "0.0.0.0/0"), "if_id", "7")
    through_device(host, "xfrm", "dev", "veth0", "if_id", "7")


def vti(host: Host) -> None:
    states(host, "tunnel")
    policy(host, "tunnel", ("0.0.0.0/0", "0.0.0.0/0"), "mark", "9")
    through_device(host, "vti", "local", host.own, "remote", host.peer, "key", "9")


def gre(host: Host) -> None:
    """Whose packets a policy encrypts."""
    states(host, "transport")
    policy(host, "transport", (host.own, host.peer, "proto", "gre"))
    through_device(host, "gre", "local", host.own, "remote", host.peer)


def transport(host: Host) -> None:
    states(host, "transport")
    policy(host, "transport", (host.own, host.peer))


def tunnel(host: Host) -> None:
    """Without a device: the inner addresses are the hosts' own, and a policy takes what is sent to them."""
    states(host, "tunnel")
    host.ip("address", "add", f"{host.inner}/32", "dev", "lo")
    host.ip("route", "add", host.inner_peer, "via", host.peer, "src", host.inner)
    policy(host, "tunnel", (host.inner, host.inner_peer))


Way = Callable[[Host], None]
DEVICES: dict[str, Way] = {
    "xfrm": xfrm,
    "xfrm over IPv6": xfrm_over_ipv6,
    "xfrm in UDP": xfrm_in_udp,
    "vti": vti,
    "gre": gre,
}
POLICIES: dict[str, Way] = {"transport": transport, "tunnel": tunnel}


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def hosts(pair: Pair) -> list[Host]:
    return [
        Host(pair.sender, pair.sender_address, pair.address, INNER, INNER_PEER),
        Host(pair.receiver, pair.address, pair.sender_address, INNER_PEER, INNER),
    ]


@pytest.fixture
def network(pair: Pair, request: pytest.FixtureRequest) -> Pair:
    """Two hosts with that kind of IPsec between them, and a receiver for what comes out of it; or with none."""
    if not hasattr(request, "param"):
        return pair
    way: Way = {**DEVICES, **POLICIES}[request.param]
    for host in hosts(pair):
        try:
            way(host)
        except RuntimeError as error:
            pytest.skip(f"this kernel cannot do this kind of IPsec: {str(error).rpartition(': ')[2]}")
    if way is not transport:
        pair.receivers.append(pair.start(pair.receiver, "receive", INNER_PEER, str(PORT)))
    return pair


def target(kind: str) -> str:
    return Pair.address if kind == "transport" else INNER_PEER


def both(ways: dict[str, Way], everywhere: str = "") -> pytest.MarkDecorator:
    """``everywhere``: the kind that is tried on every kernel."""
    each = [pytest.param(kind, kind, marks=[pytest.mark.every_kernel] if kind == everywhere else []) for kind in ways]
    return pytest.mark.parametrize(("network", "kind"), each, indirect=["network"])


def seen(pair: Pair, before: Arrived, seconds: float) -> Arrived:
    """What has arrived some seconds after a moment: bytes on the wire, encrypted."""
    pause(seconds)
    after = pair.arrived()
    print(f"{(after.bytes - before.bytes) / (after.seconds - before.seconds) / RATE:.3f} of the limit on the wire")
    return after


# The last are cut before they are encrypted.
@both(DEVICES)
@pytest.mark.parametrize(("offered", "size"), [(3, SIZE), (9, SIZE), (3, 20_000)])
def test_datagrams_through_a_tunnels_device_are_charged_once(scene: Scene, kind: str, offered: int, size: int) -> None:
    cgroup, pair = scene.limited(RATE, bucket=str(BUCKET)), scene.pair
    before = pair.arrived()
    pair.send_udp(offered * MBIT, size=size, address=target(kind), cgroup=cgroup)
    # The first packet says that there is IPsec, and waits for modules to be loaded: what follows comes in a burst.
    begun = when_begun(pair, before, 100_000)
    was = counters()
    after = seen(pair, begun, 2.0)
    is_now = counters()
    seconds = after.seconds - begun.seconds
    wanted = min(offered * MBIT, RATE)
    assert (after.bytes - begun.bytes) / seconds >= 0.9 * wanted
    assert_bound(begun, after, int(RATE * OVERHEAD), BUCKET)
    assert is_now["packets"] - was["packets"] <= 1.3 * (after.packets - begun.packets) + 20
    if offered * MBIT < RATE:
        # None, but for what a busy machine sends late, and at once.
        assert is_now["dropped_packets"] - was["dropped_packets"] <= 0.05 * (is_now["packets"] - was["packets"])


# Answers that come in UDP are for the socket of a key exchange, which there is none of.
@both({kind: way for kind, way in DEVICES.items() if way is not xfrm_in_udp}, "xfrm")
def test_tcp_through_a_tunnels_device_is_paced(scene: Scene, kind: str) -> None:
    cgroup, pair = scene.limited(RATE), scene.pair
    before = pair.arrived()
    pair.send_tcp(connections=2, address=target(kind), cgroup=cgroup)
    begun = when_begun(pair, before, 100_000)
    pause(1.0)
    begun = pair.arrived()
    after = seen(pair, begun, 2.0)
    share = (after.bytes - begun.bytes) / (after.seconds - begun.seconds) / RATE
    assert LEAST <= share <= MOST * OVERHEAD
    assert counters()["dropped_packets"] <= 2 * FIRST_WINDOW
    assert pacing()["reason"] is None


@both(POLICIES)
def test_what_only_a_policy_encrypts_is_charged_as_it_leaves(scene: Scene, kind: str) -> None:
    cgroup, pair = scene.limited(RATE, bucket=str(BUCKET)), scene.pair
    before = pair.arrived()
    pair.send_udp(9 * MBIT, size=SIZE, address=target(kind), cgroup=cgroup)
    begun = when_begun(pair, before, 100_000)
    after = seen(pair, begun, 2.0)
    share = (after.bytes - begun.bytes) / (after.seconds - begun.seconds) / RATE
    assert share >= 0.9
    assert_bound(begun, after, RATE, BUCKET)


# ---- who would like to pass uncharged

# Sends more than the limit, to one address after the other through one socket: of UDP, or of a raw protocol.
ONE_SOCKET = """
import contextlib, ctypes, socket, sys, time

namespace, protocol, port, *addresses = sys.argv[1:]
with open(f"/run/netns/{namespace}") as file:
    assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0
print("ready", flush=True)
sys.stdin.readline()
if protocol == "udp":
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind(("", int(port)))
else:
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(protocol))
while True:
    for address in addresses:
        with contextlib.suppress(OSError):  # a raw socket hears of what is dropped
            sender.sendto(bytes(1400), (address, 5000))
    time.sleep(0.001)
"""


def assert_limited(scene: Scene, *sender: str) -> None:
    cgroup, pair = scene.limited(RATE, bucket=str(BUCKET)), scene.pair
    before = pair.arrived()
    with child(ONE_SOCKET, pair.sender, *sender) as process:
        (cgroup / "cgroup.procs").write_text(str(process.pid))
        process.process.stdin.write("\n")
        process.process.stdin.flush()
        begun = when_begun(pair, before, BUCKET + 50_000)
        after = seen(pair, begun, 2.0)
    assert after.bytes - begun.bytes >= 0.9 * RATE * (after.seconds - begun.seconds)
    assert_bound(begun, after, int(RATE * OVERHEAD), BUCKET)


@pytest.mark.parametrize("what", ["udp", "50", "51", "108"])
def test_what_only_looks_like_ipsec_is_charged(scene: Scene, what: str) -> None:
    """ESP in UDP, ESP, AH and IPComp, by what anybody, or who may open raw sockets, can send."""
    assert_limited(scene, what, "4500", Pair.address)


@pytest.mark.parametrize("network", ["xfrm"], indirect=True)
def test_credit_of_a_tunnel_is_not_for_what_a_policy_encrypts(scene: Scene) -> None:
    for host in hosts(scene.pair):
        for source, target in ((host.own, host.peer), (host.peer, host.own)):
            ends = ("src", source, "dst", target, "spi", "0x3000" if source < target else "0x4000")
            cipher = ("aead", "rfc4106(gcm(aes))", KEY, "128")
            host.ip("xfrm", "state", "add", *ends, "proto", "esp", "reqid", "2", "mode", "transport", *cipher)
        packets = ("src", host.own, "dst", host.peer, "proto", "udp", "dir", "out")
        host.ip("xfrm", "policy", "add", *packets, "tmpl", "proto", "esp", "reqid", "2", "mode", "transport")
    assert_limited(scene, "udp", "4000", INNER_PEER, Pair.address)
