# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's receiver and senders. Each goes to the background once it works, and writes its process id to a file.

Usage: traffic.py PID_FILE receive|tcp|udp
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

RECEIVER = ("10.255.0.2", 5001)
UDP_PAYLOAD = 1400  # bytes
UDP_OFFERED = 200_000_000 / 8  # bytes of IP packets a second
UDP_HEADERS = 28  # bytes, with IPv4's
LIFETIME = 180  # seconds: longer than any demo, so that nothing stays for ever where even the clean-up was killed


def into_background(pid_file: str) -> None:
    """Returns in a child process; the parent ends, which tells whoever started it that all is ready."""
    child = os.fork()
    if child:
        Path(pid_file).write_text(f"{child}\n", encoding="ascii")
        print(child, flush=True)
        os._exit(0)
    os.setsid()
    signal.alarm(LIFETIME)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def receive(pid_file: str) -> None:
    """Takes exactly one TCP connection, so that a sender could not make a second one unseen, and all of UDP."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(RECEIVER)  # never read: what was counted at the interface may be thrown away
    listener = socket.create_server(RECEIVER)
    into_background(pid_file)

    def swallow() -> None:
        connection = listener.accept()[0]
        listener.close()
        sink = bytearray(1 << 18)
        while connection.recv_into(sink):
            pass

    threading.Thread(target=swallow, daemon=True).start()
    signal.pause()


def send_tcp(pid_file: str) -> None:
    """Sends as fast as one connection can."""
    connection = socket.create_connection(RECEIVER)
    # The default can be another one, which would give other figures.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    into_background(pid_file)
    block = bytes(1 << 16)
    while True:
        connection.sendall(block)


def send_udp(pid_file: str) -> None:
    """Offers a constant rate, and ends at the first error that a send meets."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(RECEIVER)
    into_background(pid_file)
    payload = bytes(UDP_PAYLOAD)
    begin, sent = time.monotonic(), 0
    while True:
        due = (time.monotonic() - begin) * UDP_OFFERED
        while sent < due:
            sender.send(payload)
            sent += UDP_PAYLOAD + UDP_HEADERS
        time.sleep(0.001)


if __name__ == "__main__":
    {"receive": receive, "tcp": send_tcp, "udp": send_udp}[sys.argv[2]](sys.argv[1])
