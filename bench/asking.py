# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests and answers, and connections that come and go: the programs of ask.c and answer.c, and their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ansible_collections.speed_limiter.ebpf.tests.support import net

from . import traffic
from .measure import percentile

PORT = 6002
SEGMENT = 1448  # bytes of payload of a full segment, with time stamps
HEADERS = 52
PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
DONE, FAILED, WAITS = 0, 1, 2


class Visit(NamedTuple):
    """One answer, or one connection that came and went; nanoseconds."""

    at: int
    took: int
    worker: int
    what: int  # DONE, FAILED, or WAITS: it had not ended when all was stopped

    @property
    def ended(self) -> int:
        return self.at + self.took


def wire(payload: int) -> int:
    """IP bytes of so much data."""
    return payload + HEADERS * -(-payload // SEGMENT)


def payload(wire_bytes: int) -> int:
    """What can be sent with so many IP bytes."""
    return wire_bytes - HEADERS * -(-wire_bytes // (SEGMENT + HEADERS))


def many_connections(pair: traffic.Ends) -> None:
    """Lets both ends have more than 28,000 connections in a minute, from ports that no server here has."""
    for namespace in (pair.sender, pair.receiver):
        settings = "echo 10240 65000 >ip_local_port_range; echo 1 >tcp_tw_reuse; echo 8192 >tcp_max_syn_backlog"
        settings += "; echo 4096 >../core/somaxconn"
        net.run("nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", f"cd /proc/sys/net/ipv4; {settings}")


class Limited:
    """A server in a cgroup of the sending end, and clients at the other."""

    def __init__(self, link: traffic.Link, cgroup: Path, hurry: bool = True) -> None:
        self.link, self.cgroup, self.hurry = link, cgroup, str(int(hurry))
        self.address = link.pair.sender_address
        words = ("requests", self.address, str(PORT), self.hurry)
        self.program = link.start(link.pair.sender, "answer", *words, cgroup=cgroup)

    def closed(self, workers: int, size: int, kept: bool, count: int = 0) -> traffic.Program:
        """Workers that ask again as soon as they have an answer of `size` bytes; until there are `count`."""
        words = (str(workers), str(size), str(int(kept)), *([str(count)] if count else []))
        return self._ask("closed", *words)

    def open(self, per_second: int, size: int) -> traffic.Program:
        """New connections that ask for `size` bytes, or for nothing."""
        return self._ask("open", str(per_second), "0", str(size))

    def calm(self, pause_us: int, size: int) -> traffic.Program:
        """One that asks for `size` bytes, with a pause between an answer and the next."""
        return self._ask("calm", str(pause_us), str(size))

    def _ask(self, mode: str, *words: str) -> traffic.Program:
        return self.link.start(self.link.receiving, "ask", mode, self.address, str(PORT), self.hurry, *words)


def visitors(link: traffic.Link, cgroup: Path, per_second: int, size: int, hurry: bool = True) -> traffic.Program:
    """New connections from a limited cgroup to the receiver, each with `size` bytes."""
    where = (link.address, str(traffic.PORT), str(int(hurry)))
    return link.start(link.pair.sender, "ask", "open", *where, str(per_second), str(size), "0", cgroup=cgroup)


def visits(program: traffic.Program, wait: bool = False) -> list[Visit]:
    """The record of all of these; `wait`: it ends by itself."""
    if wait:
        program.process.wait(timeout=60)
    return [Visit(*line) for line in program.finish()]


class Latencies(NamedTuple):
    """Milliseconds."""

    answers: int
    failed: int
    p50: float
    p90: float
    p99: float
    longest: float
    spread: tuple[float, ...]  # at each of PERCENTILES


def latencies(found: Sequence[Visit], begin: int, end: int) -> Latencies:
    """Of what ended in a window; and of what did not end by then, if it had waited for longer than most."""
    done = [visit.took / 1e6 for visit in found if visit.what == DONE and begin <= visit.ended <= end]
    middle = percentile(done, 50)
    late = [visit.took / 1e6 for visit in found if visit.what == WAITS and not visit.took / 1e6 <= middle]
    failed = sum(visit.what == FAILED and begin <= visit.ended <= end for visit in found)
    spread = tuple(percentile(done + late, percent) for percent in PERCENTILES)
    p50, p90, p99, longest = (spread[PERCENTILES.index(percent)] for percent in (50, 90, 99, 100))
    return Latencies(len(done), failed, p50, p90, p99, longest, spread)


def answers_by_worker(found: Sequence[Visit], begin: int, end: int, workers: int) -> list[float]:
    counts = [0.0] * workers
    for visit in found:
        if visit.what == DONE and begin <= visit.ended <= end:
            counts[visit.worker] += 1
    return counts
