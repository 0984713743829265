#!/usr/bin/env python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends TCP to itself for some seconds and prints how many bytes arrived, and in how many seconds.

Usage: traffic.py PID_FILE GO_FILE SECONDS      It writes its process id first, and waits until GO_FILE exists.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time


def main() -> None:
    pid_file, go_file, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    with open(pid_file + ".new", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(pid_file + ".new", pid_file)
    while not os.path.exists(go_file):
        time.sleep(0.1)
    listener = socket.create_server(("127.0.0.1", 0))
    start = time.monotonic()
    sender = threading.Thread(target=send, args=(listener.getsockname()[1],), daemon=True)
    sender.start()
    receiver, _address = listener.accept()
    receiver.settimeout(0.2)
    received = 0
    while time.monotonic() - start < seconds:
        try:
            received += len(receiver.recv(1 << 20))
        except socket.timeout:  # its name until Python 3.10
            continue
    print(received, time.monotonic() - start)


def send(port: int) -> None:
    # The receiver ends it.
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            connection.sendall(bytes(1 << 16))


if __name__ == "__main__":
    main()
