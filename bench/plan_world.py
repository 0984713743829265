# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cells of requests, pages and short connections are measured: of what bench/world can, some of each axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

from . import traffic
from .kinds import attacks, changes, churn, databases, datagrams, loops, nesting, pages, userspace, web
from .kinds.churn import CLIENT, SERVER, Churn
from .kinds.loops import Loop
from .shapers import FQ, HTB, NONE, OURS, TBF

MBIT = 1_000_000
PEERS = (HTB, TBF)
QUICK, FULL = (2.0, 1.0), (10.0, 2.0)  # seconds of the window, and before it
_SET_UP = 1.5  # seconds for a shaper, a receiver, and all that ends with them
_DAEMON = 3.0  # for a server of real programs
_PAGES, _PAGE = 10 * MBIT, 2.1  # their rate, and seconds for one
_BUCKETS = (_PAGES // 8 * 20 // 1000, None)  # 20 ms of the rate, and the default one
Stored = dict[str, Any]


class Measured(NamedTuple):
    """A cell, and what a plan needs to know of it: `store` names the list of results."""

    store: str
    cell: Any
    run: Callable[[traffic.Link, Any], Stored]
    line: Callable[[Stored], str]
    seconds: float


def _timed(store: str, module: Any, cell: Any, more: float = _SET_UP) -> Measured:
    return Measured(store, cell, module.measure, module.line, cell.seconds + cell.warm_up + more)


def measured(quick: bool) -> Iterator[Measured]:
    """All of them; quick: the worst of each kind."""
    time = QUICK if quick else FULL
    yield from made(quick, time)
    yield from _programs(quick, time)


def made(quick: bool, time: tuple[float, float]) -> Iterator[Measured]:
    """Those that need no other programs than those of bench/."""
    for cell in _churn_quick(time) if quick else _churn(time):
        yield _timed("churn", churn, cell)
    for loop in _loops_quick(time) if quick else _loops(time):
        yield _timed("loops" if loop.kept else "requests_new", loops, loop)
    yield from _pages(quick)
    yield from _nested(quick, time)
    yield from _datagrams(quick, time)
    yield from _changes(quick)
    yield from _attacks(quick, time)


# ---- connections that come and go


def _churn_quick(time: tuple[float, float]) -> Iterator[Churn]:
    for shaper in (HTB, OURS):
        yield Churn(shaper, 100 * MBIT, CLIENT, 500, 0, 1, "cubic", *time)
        yield Churn(shaper, 20 * MBIT, SERVER, 50, 100, 1, "cubic", *time)
    yield Churn(OURS, 100 * MBIT, CLIENT, 500, 2000, 1, "cubic", *time)
    yield Churn(OURS, 100 * MBIT, SERVER, 2000, 0, 1, "cubic", *time)


def _churn(time: tuple[float, float]) -> Iterator[Churn]:
    """Two rows in full, for they are drawn; of the others what was worst, and one of each axis."""
    fast, slow, fastest = 100 * MBIT, 20 * MBIT, 1000 * MBIT
    for number in (0, 2, 10, 50, 200, 500, 2000):
        for shaper in (*(PEERS if number in (0, 50, 500, 2000) else ()), OURS):
            yield Churn(shaper, fast, CLIENT, number, 0, 1, "cubic", *time)
    for number in (2, 10, 50, 200, 2000):
        for shaper in (*(PEERS if number in (2, 50, 2000) else ()), OURS):
            yield Churn(shaper, slow, SERVER, number, 100, 1, "cubic", *time)
    yield Churn(NONE, 0, CLIENT, 2000, 0, 1, "cubic", *time)
    others = (
        (fast, CLIENT, 500, 100),
        (fast, CLIENT, 500, 2000),
        (fast, CLIENT, 2000, 2000),
        (fast, SERVER, 200, 0),
        (fast, SERVER, 2000, 0),
        (fast, SERVER, 2000, 2000),
        (2 * MBIT, SERVER, 10, 100),
        (2 * MBIT, SERVER, 50, 2000),
        (2 * MBIT, CLIENT, 200, 0),
        (fastest, CLIENT, 2000, 0),
        (fastest, SERVER, 2000, 2000),
    )
    for rate, where, number, size in others:
        yield Churn(OURS, rate, where, number, size, 1, "cubic", *time)
    for rate, where, number, size in ((fast, CLIENT, 200, 0), (slow, SERVER, 50, 100)):
        yield Churn(OURS, rate, where, number, size, 4, "cubic", *time)
        yield Churn(OURS, rate, where, number, size, 1, "bbr", *time)
        yield Churn(OURS, rate, where, number, size, 4, "bbr", *time)


# ---- closed loops, on kept connections and on new ones


def _loops_quick(time: tuple[float, float]) -> Iterator[Loop]:
    for shaper in (HTB, OURS):
        yield Loop(shaper, 2 * MBIT, 20, 60, True, *time)
        yield Loop(shaper, 20 * MBIT, 8, 10_000, False, *time)
    yield Loop(OURS, 2 * MBIT, 20, 1000, True, *time)
    yield Loop(OURS, 20 * MBIT, 32, 10_000, False, *time)


def _loops(time: tuple[float, float]) -> Iterator[Loop]:
    """Of the kept ones those that a machine of two CPUs can do: one worker makes 5,000 requests a second at most."""
    kept = [(2, 20, size) for size in (60, 100, 300, 1000, 20_000)]
    kept += [(20, 20, size) for size in (300, 1000, 20_000)]
    kept += [(2, 1, 60), (100, 1, 20_000), (2, 8, 300), (100, 8, 20_000)]
    kept += [(2, 64, 60), (20, 64, 300), (100, 64, 1000), (100, 64, 20_000)]
    compared = ((2, 20, 60), (2, 20, 1000), (20, 20, 1000), (100, 64, 1000))
    for size in (60, 1000):
        yield Loop(NONE, 0, 20, size, True, *time)
    yield Loop(NONE, 0, 8, 10_000, False, *time)
    for rate, workers, size in kept:
        for shaper in (*(PEERS if (rate, workers, size) in compared else ()), OURS):
            yield Loop(shaper, rate * MBIT, workers, size, True, *time)
    for rate, workers, size in _new():
        for shaper in (HTB, *((TBF,) if (workers, size) == (8, 10_000) else ()), OURS):
            yield Loop(shaper, rate * MBIT, workers, size, False, *time)


def _new() -> Iterator[tuple[int, int, int]]:
    """Those whose cycle is under a second."""
    for rate in (2, 20, 100):
        for workers in (8, 32):
            for size in (10_000, 50_000):
                if Loop(OURS, rate * MBIT, workers, size, False).cycle < 1000:
                    yield rate, workers, size


def with_fq(time: tuple[float, float]) -> Iterator[Measured]:
    """What has to be dropped elsewhere. Not every kernel has fq, so these are measured in virtual machines."""
    for rate, workers in ((2, 2), (2, 8), (2, 16), (20, 8), (20, 32)):
        # One of those is measured without fq in any case.
        for shaper in (FQ,) if (rate, workers) == (20, 8) else (HTB, OURS, FQ) if rate == 2 else (HTB, FQ):
            cell = Loop(shaper, rate * MBIT, workers, 10_000, False, *time)
            yield _timed("requests_new", loops, cell)
    for rate, workers in ((2, 8), (20, 32)):
        for shaper in (HTB, FQ):
            yield _timed("requests_new", loops, Loop(shaper, rate * MBIT, workers, 10_000, False, *time, rtt=10))
    for connections in (1, 6):
        page = pages.Page(FQ, _PAGES, connections, False, _BUCKETS[0])
        yield Measured("pages", page, pages.measure, pages.line, _PAGE + _SET_UP)
    for factor in (1, 2, 10):
        for shaper in (OURS, FQ):
            beside = datagrams.Datagrams(shaper, 10 * MBIT, 1400, factor, *time, connections=4)
            yield _timed("datagrams", datagrams, beside)
    for connections in (1, 4):
        for shaper in (HTB, OURS, FQ):
            quic = userspace.UserSpace(shaper, 2 * MBIT, userspace.QUIC, connections, *time)
            yield _timed("userspace", userspace, quic, _SET_UP + _DAEMON)


# ---- pages


def _pages(quick: bool) -> Iterator[Measured]:
    rate, times = _PAGES, 1 if quick else 2
    for bucket in _BUCKETS:
        # What it takes at the ideal; with a bucket as large as the page it takes next to nothing.
        for kept in (True, False):
            for connections in (1, 6):
                if quick and (kept, connections) == (True, 1):
                    continue
                for shaper in (HTB, OURS) if quick else (NONE, *PEERS, OURS):
                    if shaper == NONE and bucket or quick and shaper != OURS and (kept or connections == 1):
                        continue
                    cell = pages.Page(shaper, rate if shaper != NONE else 0, connections, kept, bucket, times=times)
                    yield Measured("pages", cell, pages.measure, pages.line, times * _PAGE + _SET_UP)


# ---- rules above each other, other traffic, changes, attacks


def _nested(quick: bool, time: tuple[float, float]) -> Iterator[Measured]:
    pairs = [(50, 1000), (1000, 50), (50, 50), (50, 60)]
    three = [(50, 1000, 1000), (1000, 50, 1000), (1000, 1000, 50), (50, 60, 50)]
    for rates in pairs[:1] if quick else pairs + three:
        for shaper in (*((HTB,) if rates == (50, 1000) and not quick else ()), OURS):
            cell = nesting.Nest(shaper, tuple(rate * MBIT for rate in rates), *time)
            yield _timed("nested", nesting, cell)


def _datagrams(quick: bool, time: tuple[float, float]) -> Iterator[Measured]:
    full: list[tuple[int, int, float]] = [(100, size, 10) for size in (100, 1400, 20_000, 65_000, datagrams.GSO)]
    full += [(rate, size, 10) for rate in (1, 10, 500) for size in (1400, 65_000, datagrams.GSO)]
    full += [(10, size, factor) for size in (100, 65_000) for factor in (0.5, 2)]
    compared = ((100, 1400, 10), (10, 65_000, 10))
    for rate, size, factor in [(10, 65_000, 10), (100, datagrams.GSO, 10)] if quick else full:
        for shaper in (*((HTB,) if (rate, size, factor) in compared and not quick else ()), OURS):
            cell = datagrams.Datagrams(shaper, rate * MBIT, size, factor, *time)
            yield _timed("datagrams", datagrams, cell)


def _changes(quick: bool) -> Iterator[Measured]:
    lists = [(50, 1), (50, 0.5), (10, 1), (50, 0.2, 150), (0.5, 40)]
    for rates in [(50, 0.2, 150)] if quick else lists:
        for shaper, congestion in ((OURS, "cubic"),) if quick else ((HTB, "cubic"), (OURS, "cubic"), (OURS, "bbr")):
            if congestion == "bbr" and rates != (50, 0.2, 150):
                continue
            cell = changes.Change(
                shaper, tuple(round(rate * MBIT) for rate in rates), congestion, 3.0 if quick else 4.0
            )
            yield Measured("changes", cell, changes.measure, changes.line, cell.seconds * len(rates) + _SET_UP)


def _attacks(quick: bool, time: tuple[float, float]) -> Iterator[Measured]:
    for kind in (attacks.KEYS, attacks.ACKS) if quick else attacks.KINDS:
        for shaper in (*((HTB,) if kind == attacks.ACKS and not quick else ()), OURS):
            yield _timed("attacks", attacks, attacks.Attack(shaper, 20 * MBIT, kind, *time))
    if not quick:
        yield _timed("attacks", attacks, attacks.Attack(OURS, 2 * MBIT, attacks.ACKS, *time))


# ---- real programs


def _programs(quick: bool, time: tuple[float, float]) -> Iterator[Measured]:
    rate, times = 20 * MBIT, 1 if quick else 2
    for bucket in _BUCKETS:
        for shaper in (OURS,) if quick else (*PEERS, OURS):
            page = web.Page(shaper, _PAGES, bucket, times=times)
            yield Measured("pages", page, web.page, pages.line, times * _PAGE + _SET_UP + _DAEMON)
    for shaper in (OURS,) if quick else (*PEERS, OURS):
        for workers, size in ((8, 10_000),) if quick else ((8, 10_000), (32, 50_000)):
            cell = web.Requests(shaper, rate, workers, size, *time)
            yield Measured("web", cell, web.requests, web.line, sum(time) + 1 + _SET_UP + _DAEMON)
    for kind in (databases.COPY,) if quick else (databases.COPY, databases.REDIS):
        for shaper in (OURS,) if quick else (*PEERS, OURS):
            yield _timed("databases", databases, databases.Database(shaper, rate, kind, 8, *time), _SET_UP + _DAEMON)
    for kind in (userspace.UTP,) if quick else (userspace.QUIC, userspace.UTP):
        for connections in (1,) if quick else (1, 4):
            for shaper in (TBF, OURS):
                seconds, warm_up = time
                # uTP takes its time to find out how much it may send.
                used = userspace.UserSpace(shaper, rate, kind, connections, seconds, warm_up + 1)
                yield _timed("userspace", userspace, used, _SET_UP + _DAEMON)
