# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP sockets of other processes, borrowed (pidfd_getfd, kernel 5.6): what they are told, and what TCP says of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

UNPACED = (1 << 64) - 1  # SO_MAX_PACING_RATE of a socket that has none
SO_MAX_PACING_RATE = 47
_PIDFD_GETFD = 438
_ESTABLISHED, _LISTEN = 1, 10
_INFO = struct.Struct("=8B24I4QI")  # struct tcp_info up to segs_out (kernel 4.2)
HEADERS = {socket.AF_INET: 52, socket.AF_INET6: 72}  # IP and TCP, with time stamps


class Info(NamedTuple):
    """Of one connection: bytes of data that its peer has, and segments."""

    acknowledged: int
    segments: int
    retransmits: int
    segment_size: int
    max_pacing_rate: int


class Connection:
    """Our own descriptor of somebody's socket; what is sent through it is charged as if its owner did."""

    def __init__(self, borrowed: socket.socket) -> None:
        self.socket = borrowed

    @property
    def pacing(self) -> int:
        """SO_MAX_PACING_RATE, bytes per second; UNPACED where it has none."""
        return int(struct.unpack("@L", self.socket.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0])

    @pacing.setter
    def pacing(self, rate: int) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("@L", rate))

    @property
    def info(self) -> Info:
        fields = _INFO.unpack(self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
        return Info(fields[34], fields[36], fields[31], fields[10], fields[33])

    @property
    def wire_bytes(self) -> int:
        """What was acknowledged so far, with the headers of full segments: IP bytes that have arrived."""
        info, headers = self.info, HEADERS[socket.AddressFamily(self.socket.family)]
        return info.acknowledged * (info.segment_size + headers) // info.segment_size


@contextlib.contextmanager
def borrowed(*pids: int, listening: bool = False) -> Iterator[list[Connection]]:
    """All established TCP sockets (or the listeners) of these processes."""
    wanted = _LISTEN if listening else _ESTABLISHED
    with contextlib.ExitStack() as stack:
        found = []
        for pid in pids:
            for candidate in _sockets(pid, stack):
                if candidate.type == socket.SOCK_STREAM and candidate.family in HEADERS:
                    state = candidate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                    if state == wanted:
                        found.append(Connection(candidate))
        yield found


def _sockets(pid: int, stack: contextlib.ExitStack) -> Iterator[socket.socket]:
    pidfd = os.pidfd_open(pid)
    stack.callback(os.close, pidfd)
    for entry in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{entry}").startswith("socket:"):
            descriptor = ctypes.CDLL(None).syscall(_PIDFD_GETFD, pidfd, int(entry), 0)
            yield stack.enter_context(socket.socket(fileno=descriptor))


def jain(amounts: list[int]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has all."""
    return sum(amounts) ** 2 / (len(amounts) * sum(amount**2 for amount in amounts))
