# SPDX-License-Identifier: GPL-3.0-or-later
"""Senders and a receiver, each a process of its own, so that it has a cgroup, a network namespace and a CPU of its own.

receive ADDRESS PORT [PROTOCOL]              swallows TCP (or the protocol of that number) and UDP; says "ready" first
tcp ADDRESS PORT SECONDS [CONNECTIONS [CONGESTION [PACING [PROTOCOL]]]]     PACING: its own, in bytes per second;
                                             PROTOCOL: its number, or of TCP: fastopen (the SYN carries data), lowat
                                             (TCP_NOTSENT_LOWAT), keys (as many TCP_MD5SIG keys as it can have)
serve ADDRESS PORT SECONDS [CONGESTION [PACING]]                sends all it can to each that connects
fetch ADDRESS PORT SECONDS [CONNECTIONS]     swallows what a server sends
hold ADDRESS PORT SECONDS [CONNECTIONS]      opens connections and leaves them idle
trickle ADDRESS PORT SECONDS CONNECTIONS BYTES_PER_SECOND   of each; never has more to send than that
short ADDRESS PORT CONNECTIONS BYTES [PARALLEL]             one connection after the other, each until all has arrived
echo ADDRESS PORT                            sends back what it gets
ping ADDRESS PORT SECONDS [BYTES]            some there and back, again and again
udp ADDRESS PORT SECONDS BYTES_PER_SECOND [SIZE [OPTION]]   OPTION: recverr, gso, raw (TCP's protocol),
                                             clumps (25 at a time)
answer ADDRESS PORT                          gives each that connects what it asks for
ask ADDRESS PORT SECONDS KIND WORKERS BYTES [COUNT]         asks again at once. KIND: kept, or for each request a new
                                             connection: new, fastopen; COUNT: of all requests, 0: without end
churn ADDRESS PORT SECONDS PER_SECOND BYTES [WANTED]        new connections, each closed when it has sent so many
                                             bytes, or has asked for so many and has them
syn ADDRESS PORT SECONDS PER_SECOND          tries to connect, and gives up at once
The senders stop after SECONDS or at SIGTERM, and print as JSON what they sent and which errors they met, by name; ping
and ask also their round trips in milliseconds, ask's with the time that it has waited for what has not come.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from . import asking

BLOCK = bytes(65536)
SO_MAX_PACING_RATE, TCP_MD5SIG, TCP_NOTSENT_LOWAT = 47, 14, 25  # Python has no names for them
LOWAT = 2048
CLUMP = 25


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def receive(address: str, port: str, protocol: str = "6") -> None:
    udp = socket.socket(family(address), socket.SOCK_DGRAM)
    udp.bind((address, int(port)))
    tcp = socket.socket(family(address), socket.SOCK_STREAM, int(protocol))
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind((address, int(port)))
    tcp.listen(128)
    sockets = {tcp.fileno(): tcp}
    # The UDP socket is never read: what its buffer cannot take, the kernel throws away after it crossed the interface.
    poll = select.epoll()
    poll.register(tcp, select.EPOLLIN)
    sink = bytearray(1 << 20)
    print("ready", flush=True)
    while True:
        for descriptor, _event in poll.poll():
            connection = sockets[descriptor]
            if connection is tcp:
                accepted = tcp.accept()[0]
                sockets[accepted.fileno()] = accepted
                poll.register(accepted, select.EPOLLIN)
                continue
            try:
                more = connection.recv_into(sink)
            except OSError:
                more = 0
            if not more:
                poll.unregister(connection)
                sockets.pop(descriptor).close()


class Stop(Exception):
    """SIGTERM has come."""


def stop(*_: object) -> None:
    raise Stop


def report(sent: int, errors: collections.Counter[str], round_trips: list[float] | None = None) -> None:
    print(json.dumps({"sent": sent, "errors": errors, "round_trips": round_trips or []}), flush=True)


def stream(address: str, congestion: str, pacing: str, protocol: str = "6") -> socket.socket:
    """A socket of TCP; what a listener has of this, what it accepts inherits."""
    number = int(protocol) if protocol.isdecimal() else socket.IPPROTO_TCP
    made = socket.socket(family(address), socket.SOCK_STREAM, number)
    if protocol == "fastopen":
        made.setsockopt(socket.IPPROTO_TCP, asking.TCP_FASTOPEN_CONNECT, 1)
    elif protocol == "lowat":
        made.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, LOWAT)
    elif protocol == "keys":
        fill_with_keys(made)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    # Closing throws away what is still queued: the next measurement begins with nothing on its way.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    if pacing:
        made.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("@L", int(pacing)))
    return made


def fill_with_keys(made: socket.socket) -> None:
    """Takes all the memory that a socket may have for options, with keys for peers that nobody has."""
    with contextlib.suppress(OSError):
        for number in range(65536):
            peer = struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton(f"10.254.{number >> 8}.{number & 255}"))
            key = struct.pack("=BBHi80s", 0, 0, 1, 0, b"k")
            made.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, peer + key)


def connect(address: str, port: str, *kind: str) -> socket.socket:
    connection = stream(address, *kind)
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        connection.connect((address, int(port)))
    return connection


def send_tcp(
    address: str,
    port: str,
    seconds: str,
    connections: str = "1",
    congestion: str = "cubic",
    pacing: str = "",
    protocol: str = "6",
) -> None:
    opened = [connect(address, port, congestion, pacing, protocol) for _index in range(int(connections))]
    _pump(opened, seconds, block=BLOCK[:LOWAT] if protocol == "lowat" else BLOCK)


def serve(address: str, port: str, seconds: str, congestion: str = "cubic", pacing: str = "") -> None:
    server = stream(address, congestion, pacing)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, int(port)))
    server.listen(128)
    _pump([], seconds, server)


def _pump(
    connections: list[socket.socket], seconds: str, server: socket.socket | None = None, block: bytes = BLOCK
) -> None:
    """Sends all it can through these, and through what the server accepts."""
    poll = select.epoll()
    sockets = {connection.fileno(): connection for connection in connections}
    for descriptor in sockets:
        poll.register(descriptor, select.EPOLLOUT)
    if server is not None:
        poll.register(server, select.EPOLLIN)
    print("ready", flush=True)
    sent = 0
    errors: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + float(seconds)
    with contextlib.suppress(Stop):
        while (left := end - time.monotonic()) > 0:
            for descriptor, _event in poll.poll(left):
                if server is not None and descriptor == server.fileno():
                    accepted = server.accept()[0]
                    accepted.setblocking(False)
                    sockets[accepted.fileno()] = accepted
                    poll.register(accepted, select.EPOLLOUT)
                    continue
                try:
                    sent += sockets[descriptor].send(block)
                except BlockingIOError:
                    continue
                except OSError as error:
                    errors[errno.errorcode[error.errno or 0]] += 1
                    poll.unregister(descriptor)
    report(sent, errors)


def fetch(address: str, port: str, seconds: str, connections: str = "1") -> None:
    poll = select.epoll()
    sockets = {}
    for _index in range(int(connections)):
        connection = socket.create_connection((address, int(port)))
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    print("ready", flush=True)
    sink = bytearray(1 << 20)
    end = time.monotonic() + float(seconds)
    with contextlib.suppress(Stop, ConnectionResetError):
        while (left := end - time.monotonic()) > 0:
            for descriptor, _event in poll.poll(left):
                if not sockets[descriptor].recv_into(sink):
                    poll.unregister(descriptor)
    report(0, collections.Counter())


def hold(address: str, port: str, seconds: str, connections: str = "1") -> None:
    kept = [socket.create_connection((address, int(port))) for _index in range(int(connections))]
    print("ready", flush=True)
    with contextlib.suppress(Stop):
        time.sleep(float(seconds))
    report(0, collections.Counter())
    del kept


def trickle(address: str, port: str, seconds: str, connections: str, rate: str) -> None:
    kept = [socket.create_connection((address, int(port))) for _index in range(int(connections))]
    print("ready", flush=True)
    begin = now = time.monotonic()
    sent = 0
    with contextlib.suppress(Stop):
        while now - begin < float(seconds):
            due = int((now - begin) * int(rate)) - sent
            for connection in kept:
                connection.sendall(bytes(due))
            sent += due
            time.sleep(0.02)
            now = time.monotonic()
    report(sent * len(kept), collections.Counter())


def short(address: str, port: str, connections: str, size: str, parallel: str = "16") -> None:
    """`sent` is what has arrived: the receiver closes a connection once it has read all of it."""
    left = iter(range(int(connections)))
    lock = threading.Lock()
    completed: collections.Counter[str] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()

    def work() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            try:
                with socket.create_connection((address, int(port))) as connection:
                    connection.sendall(bytes(int(size)))
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)
                with lock:
                    completed["bytes"] += int(size)
            except OSError as error:
                with lock:
                    errors[errno.errorcode.get(error.errno or 0, str(error))] += 1

    print("ready", flush=True)
    threads = [threading.Thread(target=work) for _index in range(int(parallel))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report(completed["bytes"], errors)


def echo(address: str, port: str) -> None:
    server = socket.create_server((address, int(port)), family=family(address))
    print("ready", flush=True)
    while True:
        connection = server.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(4096):
            connection.sendall(data)


def ping(address: str, port: str, seconds: str, size: str = "1") -> None:
    connection = socket.create_connection((address, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    round_trips = []
    begin = now = time.monotonic()
    with contextlib.suppress(Stop):
        while now - begin < float(seconds):
            connection.sendall(bytes(int(size)))
            connection.recv(int(size), socket.MSG_WAITALL)
            after = time.monotonic()
            round_trips.append((after - now) * 1000)
            time.sleep(0.002)
            now = time.monotonic()
    report(len(round_trips), collections.Counter(), round_trips)


def send_udp(address: str, port: str, seconds: str, rate: str, size: str = "1400", option: str = "") -> None:
    sender = socket.socket(family(address), socket.SOCK_DGRAM)
    if option == "raw":
        sender = socket.socket(family(address), socket.SOCK_RAW, socket.IPPROTO_TCP)
    if option == "recverr":
        sender.setsockopt(socket.IPPROTO_IP, 11, 1)
    payload = bytes(int(size))
    if option == "gso":
        sender.setsockopt(socket.IPPROTO_UDP, 103, 1400)
    sender.connect((address, int(port)))
    print("ready", flush=True)
    sent = 0
    errors: collections.Counter[str] = collections.Counter()
    begin = now = time.monotonic()
    with contextlib.suppress(Stop):
        while now - begin < float(seconds):
            due = int((now - begin) * int(rate))
            if option == "clumps":
                due -= due % (CLUMP * len(payload))
            while sent < due and time.monotonic() - begin < float(seconds):
                sent += len(payload)
                try:
                    sender.send(payload)
                except OSError as error:
                    errors[errno.errorcode[error.errno or 0]] += 1
            time.sleep(0.001)
            now = time.monotonic()
    report(sent, errors)


def answer(address: str, port: str) -> None:
    server = socket.create_server((address, int(port)), family=family(address), backlog=1024)
    print("ready", flush=True)
    asking.answer(server)


def ask(address: str, port: str, seconds: str, kind: str, workers: str, size: str, count: str = "0") -> None:
    them = asking.Asking(address, int(port), kind, int(size), int(count))
    print("ready", flush=True)
    with contextlib.suppress(Stop):
        them.run(int(workers), float(seconds))
    report(len(them.round_trips) * int(size), collections.Counter(), them.waits())


def churn(address: str, port: str, seconds: str, per_second: str, size: str, wanted: str = "0") -> None:
    them = asking.Churn(address, int(port), int(size), int(wanted))
    print("ready", flush=True)
    with contextlib.suppress(Stop):
        them.run(int(per_second), float(seconds))
    report(them.closed, collections.Counter())


def tiny(address: str, port: str, seconds: str, connections: str) -> None:
    """Segments of a byte, each as soon as it can be sent: nothing asks for more acknowledgements."""
    them = [connect(address, port, "cubic", "") for number in range(int(connections))]
    for made in them:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
    print("ready", flush=True)
    sent, end = 0, time.monotonic() + float(seconds)
    with contextlib.suppress(Stop):
        while time.monotonic() < end:
            for made in them:
                with contextlib.suppress(BlockingIOError):
                    sent += made.send(b"x")
    report(sent, collections.Counter())


def syn(address: str, port: str, seconds: str, per_second: str) -> None:
    print("ready", flush=True)
    sent, begin = 0, time.monotonic()
    with contextlib.suppress(Stop):
        while (now := time.monotonic()) - begin < float(seconds):
            while sent < (now - begin) * int(per_second):
                connect(address, port, "cubic", "").close()
                sent += 1
            time.sleep(0.002)
    report(sent, collections.Counter())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    kinds: dict[str, Callable[..., object]] = {
        "receive": receive,
        "tcp": send_tcp,
        "serve": serve,
        "fetch": fetch,
        "hold": hold,
        "trickle": trickle,
        "short": short,
        "echo": echo,
        "ping": ping,
        "udp": send_udp,
        "answer": answer,
        "ask": ask,
        "churn": churn,
        "tiny": tiny,
        "syn": syn,
    }
    kinds[sys.argv[1]](*sys.argv[2:])
