# SPDX-License-Identifier: GPL-3.0-or-later
"""One process of the soak: sender.py ADDRESS PORT NAME

Offers datagrams and a TCP connection a steady rate, whatever comes of them, until it is killed. Each line on its
standard input is an order, and is answered by a number: ``fork`` makes a child that sends likewise through sockets of
its own, and gives its pid; ``renew`` opens both sockets anew.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys

TICK = 0.01  # seconds
DATAGRAM, DATAGRAMS = bytes(1400), 5  # of a tick
STREAM = bytes(8192)


class Sockets:
    def __init__(self, address: str, port: int) -> None:
        self._to = (address, port)
        self._opened: list[socket.socket] = []
        self.renew()

    def renew(self) -> None:
        for old in self._opened:
            old.close()
        self._opened = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        for made in self._opened:
            made.setblocking(False)
            # What is queued goes with its process: it would be nobody's whom a rule knows.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            with contextlib.suppress(OSError):
                made.connect(self._to)

    def send(self) -> None:
        datagrams, stream = self._opened
        with contextlib.suppress(OSError):
            for _number in range(DATAGRAMS):
                datagrams.send(DATAGRAM)
        try:
            stream.send(STREAM)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.renew()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that are killed leave nothing
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(sys.argv[3])
    sockets = Sockets(sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    orders: list[int] = [0]
    while True:
        if not select.select(orders, [], [], TICK)[0]:
            sockets.send()
            continue
        order = os.read(0, 100).decode().strip()
        if not order:  # whoever gave them is gone
            return
        if order == "renew":
            sockets.renew()
        child = os.fork() if order == "fork" else 0
        if order == "fork" and not child:
            orders = []
            sockets.renew()
            continue
        os.write(1, b"%d\n" % child)


if __name__ == "__main__":
    main()
