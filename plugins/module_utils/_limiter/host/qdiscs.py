# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The queueing disciplines of this network namespace's devices, by rtnetlink: tc need not be installed."""

from __future__ import annotations

import contextlib
import socket
import struct
import typing as t

from ..core.departure import Qdisc

_NETLINK_ROUTE = 0
_RTM_GETQDISC, _NLMSG_ERROR, _NLMSG_DONE = 38, 2, 3
_REQUEST_DUMP = 0x301
_TCA_KIND = 1
_HEADER, _TC, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII"), struct.Struct("=HH")
_MOST = 1 << 16


def read() -> list[Qdisc] | None:
    """None where the kernel does not tell."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as route:
        route.settimeout(5)
        route.send(_HEADER.pack(_HEADER.size + _TC.size, _RTM_GETQDISC, _REQUEST_DUMP, 1, 0) + _TC.pack(0, 0, 0, 0, 0))
        return list(_answers(route))
    return None


def _answers(route: socket.socket) -> t.Iterator[Qdisc]:
    while True:
        data = route.recv(_MOST)
        while len(data) >= _HEADER.size:
            length, kind = _HEADER.unpack_from(data)[:2]
            if kind == _NLMSG_ERROR:
                raise OSError("netlink has refused a look at queueing disciplines")
            if kind == _NLMSG_DONE or length < _HEADER.size:
                return
            yield from _qdisc(data[_HEADER.size : length])
            data = data[_aligned(length) :]


def _qdisc(body: bytes) -> t.Iterator[Qdisc]:
    if len(body) < _TC.size:
        return
    _family, index, handle, parent, _info = _TC.unpack_from(body)
    attributes = body[_TC.size :]
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if length < _ATTRIBUTE.size:
            return
        if kind == _TCA_KIND:
            name = attributes[_ATTRIBUTE.size : length].rstrip(b"\0").decode("ascii", "replace")
            with contextlib.suppress(OSError, OverflowError):  # the device has gone meanwhile
                yield Qdisc(socket.if_indextoname(index), handle, parent, name)
        attributes = attributes[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
