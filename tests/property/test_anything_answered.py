# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever netlink answers, or /proc says of descriptors, some of which users shape: no traceback, and an end."""

from __future__ import annotations

import contextlib
import struct
from typing import Any
from unittest import mock

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import qdiscs
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import diag, tables
from cases import many
from hypothesis import given
from hypothesis import strategies as st

chosen = st.binary(max_size=60)
# What io_uring shows of its files, and of its other lines; a name is anything.
ring_lines = st.one_of(
    chosen,
    st.sampled_from([b"UserFiles:\t2", b"UserFiles:\t0", b"UserFiles:", b"ino:\t77", b"UserBufs:\t1", b"scm_fds: 3"]),
    st.builds(
        lambda slot, name: b"%5d: %s" % (slot, name),
        st.integers(0, 2**33),
        st.one_of(chosen, st.sampled_from([b"socket:[5]", b"socket:[]", b"TCP", b"UDPv6", b"/socket:[5]", b"TCP "])),
    ),
)


@many
@given(lines=st.lists(ring_lines, max_size=8), room=st.one_of(chosen, st.integers().map(lambda it: b"%d" % it)))
def test_what_proc_says_of_descriptors(lines: list[bytes], room: bytes) -> None:
    files = {"5": b"".join(line + b"\n" for line in lines), "status": b"Name:\tx\nFDSize:\t" + room + b"\n"}
    with mock.patch.object(processes, "read_file", lambda path: files.get(path.rpartition("/")[2])):
        table = tables.Table(77, 78)
        found = table.registered(5)
        assert found == {tables.BUSY} or len(found) <= len(lines)
        assert table.in_flight(5) in (0, 3) or b"scm_fds: " in files["5"]
        assert table.size() >= 0


def attributes(kinds: list[int]) -> st.SearchStrategy[bytes]:
    """As netlink has them, but for their lengths, which may be wrong."""
    one = st.builds(
        lambda kind, data, wrong: struct.pack("=HH", (4 + len(data) + wrong) & 0xFFFF, kind) + data,
        st.one_of(st.sampled_from(kinds), st.integers(0, 0xFFFF)),
        st.binary(max_size=24).map(lambda data: data[: len(data) & ~3]),
        st.sampled_from([0, 0, 0, -4, -3, 4, 1000]),
    )
    return st.lists(one, max_size=5).map(b"".join)


def messages(kinds: list[int], body: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Datagrams of messages, the last of which ends the answer."""
    one = st.builds(
        lambda kind, data, wrong: struct.pack("=IHHII", max(0, 16 + len(data) + wrong), kind, 0, 1, 0) + data,
        st.sampled_from(kinds),
        body,
        st.sampled_from([0, 0, 0, -16, -1000, 4, 1000]),
    )
    end = struct.pack("=IHHII", 20, 3, 0, 1, 0) + bytes(4)
    return st.lists(st.one_of(st.lists(one, max_size=4).map(b"".join), chosen), max_size=3).map(lambda all: [*all, end])


def netlink(datagrams: list[bytes]) -> Any:
    """A socket that receives these."""
    return mock.Mock(recv=lambda _most: datagrams.pop(0))


diag_bodies = st.builds(
    lambda head, family, rest: bytes([family]) + head[1:] + rest,
    st.one_of(st.binary(min_size=72, max_size=72), st.binary(min_size=1, max_size=80)),
    st.sampled_from([2, 10, 0, 255]),
    attributes([20, 20 | 0x8000, 21, 3, 1]),
)


@many
@given(datagrams=messages([20, 2, 3], diag_bodies), dumps=st.booleans())
def test_what_netlink_says_of_sockets(datagrams: list[bytes], dumps: bool) -> None:
    with contextlib.suppress(OSError):
        for answer in diag._answers(netlink(datagrams), dumps):
            assert answer.inode >= 0
            assert answer.cgroup_id is None or answer.cgroup_id >= 0
            assert answer.ends.port >= 0
            answer.stored()


@many
@given(
    datagrams=messages(
        [36, 2, 3],
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda numbers, rest: struct.pack("=BxxxiIII", 0, *numbers) + rest,
                st.tuples(st.integers(-(2**31), 2**31 - 1), *[st.integers(0, 2**32 - 1)] * 3),
                attributes([1, 2]),
            ),
        ),
    )
)
def test_what_netlink_says_of_queueing_disciplines(datagrams: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        for found in qdiscs._answers(netlink(datagrams)):
            assert isinstance(found.kind, str)
