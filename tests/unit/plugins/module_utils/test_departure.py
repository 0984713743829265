# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which devices hold packets until their time, as user space sees it."""

from __future__ import annotations

import socket
import struct
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import departure
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.departure import ROOT, Qdisc
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Program
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import qdiscs

MQ = 0x80010000
PROGRAM = Program("source:01", "/", 1, 1)


def leaves(*kinds: str, handle: int = MQ) -> list[Qdisc]:
    below = [Qdisc("eth0", 0, handle + number, kind) for number, kind in enumerate(kinds, 1)]
    return [Qdisc("eth0", handle, ROOT, "mq"), *below]


@pytest.mark.parametrize(
    ("found", "devices"),
    [
        ([Qdisc("eth0", 1 << 16, ROOT, "fq")], ["eth0"]),
        ([Qdisc("eth0", 1 << 16, ROOT, "fq_codel")], []),
        ([Qdisc("eth0", 1 << 16, ROOT, "htb"), Qdisc("eth0", 2 << 16, 1 << 16 | 1, "fq")], []),
        (leaves("fq", "fq"), ["eth0"]),
        (leaves("fq", "fq", handle=0), ["eth0"]),  # as the kernel makes them
        (leaves("fq", "fq_codel"), []),
        (leaves(), []),
        ([Qdisc("b", 0, ROOT, "fq"), Qdisc("a", 0, ROOT, "fq"), Qdisc("b", 0, 0xFFFFFFF1, "clsact")], ["a", "b"]),
    ],
)
def test_devices_that_hold_packets(found: list[Qdisc], devices: list[str]) -> None:
    assert departure.holding(found) == devices


def test_what_is_told_of_the_program() -> None:
    assert departure.about(PROGRAM) == {"state": "on", "reason": None}
    assert departure.about(PROGRAM, earlier=True)["state"] == "off"
    assert departure.about(PROGRAM._replace(departure="off", blind=True))["state"] == "off"
    assert departure.about(PROGRAM._replace(blind=True))["state"] == "refused"


class Route:
    """A netlink socket that answers with these bytes."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)

    def __enter__(self) -> Route:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def settimeout(self, _seconds: float) -> None:
        return

    def send(self, request: bytes) -> int:
        return len(request)

    def recv(self, _most: int) -> bytes:
        if not self._answers:
            raise socket.timeout
        return self._answers.pop(0)


def message(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body + bytes(-len(body) % 4)


def told(index: int, parent: int, kind: bytes) -> bytes:
    attribute = struct.pack("=HH", 5 + len(kind), 1) + kind + b"\0"
    other = struct.pack("=HH", 8, 2) + bytes(4)
    return message(
        36, struct.pack("=BxxxiIII", 0, index, 0, parent, 0) + other + attribute + bytes(-len(attribute) % 4)
    )


DONE = message(3)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((told(1, ROOT, b"fq") + told(1, 5, b"pfifo"), DONE), [("fq", ROOT), ("pfifo", 5)]),
        ((message(2, bytes(4)),), None),  # an error
        ((), None),  # no answer
        ((message(36, bytes(3)), struct.pack("=IHHII", 3, 36, 0, 1, 0)), []),  # garbage
        ((told(1 << 30, ROOT, b"fq"), DONE), []),  # a device that has gone
        ((message(36, struct.pack("=BxxxiIII", 0, 1, 0, ROOT, 0) + bytes(4)), DONE), []),
    ],
)
def test_answers_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[bytes, ...], expected: list[tuple[str, int]] | None
) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_arguments: t.cast(t.Any, Route(*answers)))
    found = qdiscs.read()
    assert (None if found is None else [(one.kind, one.parent) for one in found]) == expected


def test_the_running_kernel_answers() -> None:
    assert all(one.device and one.kind for one in qdiscs.read() or ())


def test_where_the_kernel_does_not_tell_no_devices_are_known() -> None:
    assert departure.holding(None) is None
