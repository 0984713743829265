# SPDX-License-Identifier: GPL-3.0-or-later
"""What the programs cost a packet, and a process without a rule, in nanoseconds and per second.

Times are the kernel's own run-time statistics of BPF programs. They include what taking the time costs, so only the
differences to the program that returns 1 mean something. Programs take turns, each figure is the median of its rounds.
Cold: before each packet a buffer larger than the caches is read.
"""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, dataplane

HERE = Path(__file__).resolve().parent
EVICT_BYTES = 8 << 20
BATCH = 100  # packets a system call, so that what is hot is the kernel and not this program
LIMIT = 125_000_000  # bytes per second, never reached: what is measured is the way of a packet that passes
RULES = (1, 10_000)
Stored = dict[str, Any]


@contextmanager
def in_cgroup(cgroup: Path) -> Iterator[None]:
    """This process in a cgroup: sockets made inside belong to it."""
    own = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()[-1]
    home = dataplane.cgroup2() / own[len("0::/") :]
    (cgroup / "cgroup.procs").write_text("0", encoding="ascii")
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text("0", encoding="ascii")


class Datagrams:
    """BATCH packets of one byte in one sendmmsg(2): an array of struct mmsghdr that all point to one struct iovec."""

    def __init__(self) -> None:
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", 0))
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.connect(self.receiver.getsockname())
        self._byte = ctypes.create_string_buffer(1)
        self._vector = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(self._byte), 1))
        message = struct.pack("=QIIQQQQIIII", 0, 0, 0, ctypes.addressof(self._vector), 1, 0, 0, 0, 0, 0, 0)
        self._messages = ctypes.create_string_buffer(message * BATCH)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def send(self, packets: int) -> None:
        if self._libc.sendmmsg(self.sender.fileno(), self._messages, packets, 0) != packets:
            raise OSError(ctypes.get_errno(), "sendmmsg")

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


class Segments:
    """Segments of one byte on a TCP connection, each sent at once."""

    def __init__(self) -> None:
        with in_cgroup(dataplane.cgroup2()):
            listener = socket.create_server(("127.0.0.1", 0))
        self.sender = socket.create_connection(listener.getsockname())
        self.receiver = listener.accept()[0]
        listener.close()
        self.sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, packets: int) -> None:
        for _packet in range(packets):
            self.sender.send(b"x")
        self.receiver.recv(BATCH)

    close = Datagrams.close


class Costs:
    """The program, attached only while it is measured, and the one that returns 1."""

    def __init__(self, directory: Path, paced: bool) -> None:
        self.root = dataplane.cgroup2() / "cost"
        self.unlimited, self.limited = self.root / "unlimited", self.root / "limited"
        for cgroup in (self.root, self.unlimited, self.limited):
            cgroup.mkdir()
        compiled = dataplane.compile_object(dataplane.SOURCE / "limiter.bpf.c", directory / "limiter.bpf.o")
        self.plane = dataplane.Dataplane(compiled, self.root, paced=paced)
        bpf.detach(str(self.root), self.plane.program)
        compiled = dataplane.compile_object(HERE / "pass.bpf.c", directory / "pass.bpf.o")
        self.least = dataplane.load_program(compiled, "pass")
        self.plane.set_rule(self.limited, LIMIT, LIMIT)
        self.evict = bytearray(EVICT_BYTES)

    def close(self) -> None:
        bpf.attach(str(self.root), self.plane.program)
        self.plane.close()
        os.close(self.least)
        for cgroup in (self.limited, self.unlimited, self.root):
            cgroup.rmdir()

    @contextmanager
    def attached(self, program: int | None) -> Iterator[None]:
        if program is not None:
            bpf.attach(str(self.root), program)
        try:
            yield
        finally:
            if program is not None:
                bpf.detach(str(self.root), program)

    def packet(self, program: int, cgroup: Path, traffic: Callable[[], Any], packets: int, cold: bool) -> float:
        """Nanoseconds a packet."""
        with self.attached(program), in_cgroup(cgroup):
            sending = traffic()
            sending.send(1)
            before = bpf.cost(program)
            for _batch in range(packets if cold else packets // BATCH):
                if cold:
                    self.evict.count(1)
                sending.send(1 if cold else BATCH)
            after = bpf.cost(program)
            sending.close()
        return (after.nanoseconds - before.nanoseconds) / (after.runs - before.runs)

    def fill_rules(self, count: int) -> None:
        """Rules of cgroups that do not exist, until there are `count`."""
        for number in range(1, count):
            key = (1 << 60 | number).to_bytes(8, sys.byteorder)
            self.plane.state[key] = bytes(layout.STATE.size)
            self.plane.config[key] = self.plane.config[dataplane.key_of(self.limited)]
            self.plane.member[key] = key
        self.plane.changed_members()


@contextmanager
def loaded(paced: bool) -> Iterator[Costs]:
    with tempfile.TemporaryDirectory() as directory:
        costs = Costs(Path(directory), paced)
        try:
            yield costs
        finally:
            costs.close()


def packets(quick: bool) -> Stored:
    """Nanoseconds a packet: UDP without a controller, and TCP with it; one rule and many; hot and cold."""
    rows = []
    rounds, hot, cold = (3, 2000, 10) if quick else (15, 20000, 30)
    for kind, traffic in (("UDP", Datagrams), ("TCP", Segments)):
        with loaded(paced=kind == "TCP") as costs:
            on = bpf.enable_statistics()
            ours = costs.plane.program
            for rules in RULES[:1] if quick else RULES:
                costs.fill_rules(rules)
                for is_cold in (False, True):
                    count = cold if is_cold else hot
                    taken: dict[str, list[float]] = {"least": [], "unlimited": [], "limited": []}
                    for _round in range(rounds):
                        taken["least"].append(costs.packet(costs.least, costs.limited, traffic, count, is_cold))
                        taken["unlimited"].append(costs.packet(ours, costs.unlimited, traffic, count, is_cold))
                        taken["limited"].append(costs.packet(ours, costs.limited, traffic, count, is_cold))
                    medians = {name: statistics.median(values) for name, values in taken.items()}
                    rows.append({"kind": kind, "rules": rules, "cold": is_cold, "rounds": rounds, **medians})
            os.close(on)
    return {"rows": rows}


def sockets(quick: bool) -> Stored:
    """What a process without a rule makes in a second: without a program, with the least one, with ours."""
    rounds, seconds = (3, 0.1) if quick else (15, 0.2)
    made: dict[str, list[list[float]]] = {"UDP, one-shot sockets": [[], [], []], "TCP connections": [[], [], []]}
    with loaded(paced=True) as costs, socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        for _round in range(rounds):
            for index, program in enumerate((None, costs.least, costs.plane.program)):
                with costs.attached(program), in_cgroup(costs.unlimited):
                    made["UDP, one-shot sockets"][index].append(_per_second(_one_shot, listener, seconds))
                    made["TCP connections"][index].append(_per_second(_connection, listener, seconds))
    return {"rows": [{"what": what, "made": [statistics.median(one) for one in all_]} for what, all_ in made.items()]}


def _per_second(work: Callable[[socket.socket], None], listener: socket.socket, seconds: float) -> float:
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        work(listener)
        count += 1
    return count / seconds


def _one_shot(listener: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", listener.getsockname())


def _connection(listener: socket.socket) -> None:
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    server.close()
