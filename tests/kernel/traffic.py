# SPDX-License-Identifier: GPL-3.0-or-later
"""Senders and a receiver, each a process of its own, so that it has a cgroup, a network namespace and a CPU of its own.

receive ADDRESS PORT                         swallows TCP and UDP; says "ready" first
tcp ADDRESS PORT SECONDS [CONNECTIONS [CONGESTION]]
udp ADDRESS PORT SECONDS BYTES_PER_SECOND [SIZE [OPTION]]   OPTION: recverr, gso
The senders stop after SECONDS or at SIGTERM, and print as JSON what they sent and which errors they met, by name.
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
import time

BLOCK = bytes(65536)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def receive(address: str, port: str) -> None:
    udp = socket.socket(family(address), socket.SOCK_DGRAM)
    udp.bind((address, int(port)))
    tcp = socket.socket(family(address), socket.SOCK_STREAM)
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


def report(sent: int, errors: collections.Counter[str]) -> None:
    print(json.dumps({"sent": sent, "errors": errors}), flush=True)


def send_tcp(address: str, port: str, seconds: str, connections: str = "1", congestion: str = "cubic") -> None:
    poll = select.epoll()
    sockets = {}
    for _index in range(int(connections)):
        connection = socket.socket(family(address), socket.SOCK_STREAM)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        # Closing throws away what is still queued: the next measurement begins with nothing on its way.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.connect((address, int(port)))
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLOUT)
    print("ready", flush=True)
    sent = 0
    errors: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + float(seconds)
    with contextlib.suppress(Stop):
        while (left := end - time.monotonic()) > 0:
            for descriptor, _event in poll.poll(left):
                try:
                    sent += sockets[descriptor].send(BLOCK)
                except BlockingIOError:
                    continue
                except OSError as error:
                    errors[errno.errorcode[error.errno or 0]] += 1
                    poll.unregister(descriptor)
    report(sent, errors)


def send_udp(address: str, port: str, seconds: str, rate: str, size: str = "1400", option: str = "") -> None:
    sender = socket.socket(family(address), socket.SOCK_DGRAM)
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
            while sent < due and time.monotonic() - begin < float(seconds):
                sent += len(payload)
                try:
                    sender.send(payload)
                except OSError as error:
                    errors[errno.errorcode[error.errno or 0]] += 1
            time.sleep(0.001)
            now = time.monotonic()
    report(sent, errors)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    {"receive": receive, "tcp": send_tcp, "udp": send_udp}[sys.argv[1]](*sys.argv[2:])
