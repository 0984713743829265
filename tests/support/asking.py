# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests and answers, and connections that come and go. A request is the number of bytes that are wanted."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time

REQUEST = struct.Struct("=I")
BLOCK = memoryview(bytes(65536))
TCP_FASTOPEN_CONNECT = 30  # Python has no name for it


def answer(listener: socket.socket) -> None:
    """Gives each that connects what it asks for, until it closes."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    wanted: dict[int, int] = {}
    while True:
        for descriptor, events in poll.poll():
            if descriptor == listener.fileno():
                accepted = listener.accept()[0]
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                descriptor, events = accepted.fileno(), 0
                connections[descriptor], wanted[descriptor] = accepted, 0
                poll.register(accepted, select.EPOLLIN)
            try:
                if events & ~select.EPOLLOUT:
                    (more,) = REQUEST.unpack(connections[descriptor].recv(REQUEST.size))
                    wanted[descriptor] += more
                while wanted[descriptor]:
                    wanted[descriptor] -= connections[descriptor].send(BLOCK[: wanted[descriptor]])
                poll.modify(descriptor, select.EPOLLIN)
            except BlockingIOError:
                poll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
            except (OSError, struct.error):  # it was closed
                poll.unregister(descriptor)
                connections.pop(descriptor).close()


class Asking:
    """Workers that ask again as soon as they have their answer: on one connection, on a new one each time, or on a new
    one whose SYN carries the request.
    """

    def __init__(self, address: str, port: int, kind: str, size: int, count: int) -> None:
        self.address, self.port, self.kind, self.size = address, port, kind, size
        self.left = iter(range(count)) if count else iter(int, 1)
        self.lock = threading.Lock()
        self.round_trips: list[float] = []  # milliseconds
        self.begun: dict[int, float] = {}

    def run(self, workers: int, seconds: float) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _index in range(workers)]
        end = time.monotonic() + seconds
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def waits(self) -> list[float]:
        """How long each answer took, and how long those that have not come were waited for."""
        now = time.monotonic()
        return self.round_trips + [(now - begun) * 1000 for begun in list(self.begun.values())]

    def _work(self) -> None:
        connection = None
        me = threading.get_ident()
        while self._next():
            self.begun[me] = begin = time.monotonic()
            connection = connection or self._connect()
            connection.sendall(REQUEST.pack(self.size))
            left = self.size
            while left:
                left -= len(connection.recv(left))
            del self.begun[me]
            self.round_trips.append((time.monotonic() - begin) * 1000)
            if self.kind != "kept":
                connection.close()
                connection = None

    def _next(self) -> bool:
        with self.lock:
            return next(self.left, None) is not None

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.kind == "fastopen":
            made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        made.connect((self.address, self.port))
        return made


class Churn:
    """New connections at a rate, however long each lasts: it sends, waits for an answer if it asks for one, closes."""

    def __init__(self, address: str, port: int, size: int, wanted: int) -> None:
        self.address, self.port = address, port
        self.data = REQUEST.pack(wanted) if wanted else bytes(size)
        self.wanted = wanted
        self.poll = select.epoll()
        self.open: dict[int, socket.socket] = {}
        self.made = self.closed = 0

    def run(self, per_second: int, seconds: float) -> None:
        begin = now = time.monotonic()
        while now - begin < seconds:
            while self.made < (now - begin) * per_second:
                self._connect()
            for descriptor, _event in self.poll.poll(0.002):
                with contextlib.suppress(OSError):
                    self._serve(descriptor)
            now = time.monotonic()

    def _connect(self) -> None:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            made.connect((self.address, self.port))
        self.open[made.fileno()] = made
        self.poll.register(made, select.EPOLLOUT | select.EPOLLONESHOT)
        self.made += 1

    def _serve(self, descriptor: int) -> None:
        connection = self.open[descriptor]
        if self.wanted:
            with contextlib.suppress(BlockingIOError):
                connection.recv(self.wanted)
                self._close(descriptor)
                return
        if self.data:
            connection.sendall(self.data)
        if self.wanted:
            self.poll.modify(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        else:
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self.open.pop(descriptor).close()
        self.closed += 1
