# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to sock_diag(7) about the sockets of this thread's network namespace; the kernel locks none for the answer.

The kernel may load its modules tcp_diag and udp_diag for it, as for ss(8).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import typing as t

from ...core.connections import Ends

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ERROR_SIZE = _HEADER.size + 4  # and the number of the error
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 before its struct inet_diag_sockid
_ANSWER_SIZE = 72  # struct inet_diag_msg
_INODE = struct.Struct("=I")  # its last field
_ENDS = struct.Struct("!HH16s16s")  # the ports and addresses of its struct inet_diag_sockid
_ENDS_AT = 4
_ATTRIBUTE = struct.Struct("=HH")
_ANY_COOKIE = b"\xff" * 8
_NESTED = 0x8000

_INET_DIAG_REQ_SK_BPF_STORAGES = 2
_SK_DIAG_BPF_STORAGE_REQ_MAP_FD = 1
_INET_DIAG_SK_BPF_STORAGES = 20
_SK_DIAG_BPF_STORAGE_MAP_VALUE = 3
_INET_DIAG_CGROUP_ID = 21
_ID = struct.Struct("=Q")

ESTABLISHED, CLOSE_WAIT = 1, 8
_SENDING = (ESTABLISHED, 2, 3, 4, CLOSE_WAIT, 9, 11)  # SYN_SENT, SYN_RECV, FIN_WAIT1; LAST_ACK, CLOSING
_TIMEOUT = 1.0  # seconds; the kernel answers at once


class Answer(t.NamedTuple):
    """A socket, with what the kernel says of it."""

    head: bytes  # struct inet_diag_msg
    attributes: dict[int, bytes]

    @property
    def inode(self) -> int:
        """0: no descriptor leads to it, as while a connection waits to be accepted."""
        return int(_INODE.unpack_from(self.head, _ANSWER_SIZE - _INODE.size)[0])

    @property
    def ends(self) -> Ends:
        local_port, port, local, remote = _ENDS.unpack_from(self.head, _ENDS_AT)
        return Ends(self._address(local), local_port, self._address(remote), port)

    def _address(self, data: bytes) -> str:
        if self.head[0] == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, data[:4])
        return socket.inet_ntop(socket.AF_INET6, data)

    @property
    def cgroup_id(self) -> int | None:
        """The cgroup that it belongs to; None before Linux 5.9."""
        found = self.attributes.get(_INET_DIAG_CGROUP_ID)
        return None if found is None or len(found) != _ID.size else int(_ID.unpack(found)[0])

    def stored(self) -> bytes | None:
        """Its value in the map that was asked about."""
        for _kind, storage in _attributes(self.attributes.get(_INET_DIAG_SK_BPF_STORAGES, b"")):
            for kind, value in _attributes(storage):
                if kind == _SK_DIAG_BPF_STORAGE_MAP_VALUE:
                    return value
        return None


def udp_to_itself(address: bytes, port: int) -> Answer | None:
    """An IPv4 socket that is connected to itself; None where the kernel does not tell."""
    ends = struct.pack("!HH", port, port) + 2 * address.ljust(16, b"\0") + struct.pack("=I", 0) + _ANY_COOKIE
    body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_UDP, 0, 0xFFFFFFFF) + ends
    with contextlib.suppress(OSError):
        return next(_ask(body, 0), None)
    return None


def tcp_at(family: int, port: int, states: t.Iterable[int], storage: int) -> list[Answer]:
    """All TCP sockets with this port of ours, in these states, with what they have in the socket storage map that is
    open as ``storage``. OSError where the kernel does not tell.
    """
    return list(_with_storage(family, port, states, storage))


def connections(storage: int) -> t.Iterator[Answer]:
    """All TCP sockets that may have something to send, as `tcp_at`."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            yield from _with_storage(family, 0, _SENDING, storage)
        except OSError as error:
            if family != socket.AF_INET6 or error.errno != errno.ENOENT:  # ENOENT: a kernel without IPv6
                raise


def _with_storage(family: int, port: int, states: t.Iterable[int], storage: int) -> t.Iterator[Answer]:
    body = _all_of(family, socket.IPPROTO_TCP, port, sum(1 << state for state in states))
    wanted = _ATTRIBUTE.pack(8, _SK_DIAG_BPF_STORAGE_REQ_MAP_FD) + struct.pack("=I", storage)
    body += _ATTRIBUTE.pack(4 + len(wanted), _INET_DIAG_REQ_SK_BPF_STORAGES | _NESTED) + wanted
    return _ask(body, _NLM_F_DUMP)


def everything() -> list[Answer]:
    """All TCP and UDP sockets that have an address, as far as the kernel tells."""
    found: list[Answer] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            with contextlib.suppress(OSError):
                found += _ask(_all_of(family, protocol, 0, 0xFFFFFFFF), _NLM_F_DUMP)
    return found


def _all_of(family: int, protocol: int, port: int, states: int) -> bytes:
    """A question for those with this port of ours; 0: any."""
    ends = struct.pack("!HH", port, 0) + bytes(32) + struct.pack("=I", 0) + _ANY_COOKIE
    return _REQUEST.pack(family, protocol, 0, states) + ends


def _ask(body: bytes, flags: int) -> t.Iterator[Answer]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT)
        head = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
        netlink.sendto(head + body, (0, 0))
        yield from _answers(netlink, bool(flags))


def _answers(netlink: socket.socket, dumps: bool) -> t.Iterator[Answer]:
    """``dumps``: until the kernel says that this was all."""
    while True:
        data = netlink.recv(65536)
        while len(data) >= _HEADER.size:
            length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR and len(data) >= _ERROR_SIZE:  # no module for it, or the socket is hidden from us
                raise OSError(-struct.unpack_from("=i", data, _HEADER.size)[0], "sock_diag")
            if kind == _NLMSG_ERROR or length < _HEADER.size:
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
            if length >= _HEADER.size + _ANSWER_SIZE <= len(data):
                yield _answer(data[_HEADER.size : length])
            data = data[(length + 3) & ~3 :]
        if not dumps:
            return


def _answer(body: bytes) -> Answer:
    return Answer(body[:_ANSWER_SIZE], dict(_attributes(body[_ANSWER_SIZE:])))


def _attributes(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : size]
        data = data[max(_ATTRIBUTE.size, (size + 3) & ~3) :]
