# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL and Redis in a rule: many small answers, a large one beside them, and someone who asks for little."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ansible_collections.speed_limiter.ebpf.tests.support.children import until

from .. import asking, traffic
from ..kinds import daemons
from ..measure import SECOND, megabits, percentile
from ..meter import metered
from ..shapers import NONE

Stored = dict[str, Any]
PGBENCH, COPY, REDIS = "pgbench -S", "pgbench -S beside COPY", "redis-benchmark GET"
# Of who asks for little: microseconds between an answer and the next request, and bytes.
_PAUSE, _LITTLE = 5000, 500
_ROWS = "COPY (SELECT generate_series(1, 1000000000), repeat('x', 200)) TO STDOUT"
_POSTGRES, _REDIS = 5432, 6379
_VALUE = 1000  # bytes of a value in Redis
_AROUND = 60  # of an answer, with its headers
_PLACES = "/usr/lib/postgresql/*/bin"


class Database(NamedTuple):
    shaper: str
    rate: int
    kind: str
    clients: int
    seconds: float = 10.0
    warm_up: float = 2.0

    @property
    def what(self) -> str:
        limit = f"{megabits(self.rate)} Mbit/s, " if self.shaper != NONE else ""
        return f"{self.shaper}, {limit}{self.kind}, {self.clients} clients"


@contextmanager
def _postgres(namespace: str, address: str, cgroup: Path) -> Iterator[None]:
    """A cluster of its own, in memory where that is /run."""
    binaries = {name: daemons.find(name, f"{_PLACES}/{name}") for name in ("initdb", "postgres")}
    home = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
    try:
        shutil.chown(home, "postgres", "postgres")
        as_user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        made = (binaries["initdb"], "-D", f"{home}/data", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        subprocess.run([*as_user, *made], check=True, stdout=subprocess.DEVNULL, cwd=home)
        with open(home / "data/pg_hba.conf", "a", encoding="utf-8") as access:
            access.write("host all all 10.0.0.0/8 trust\n")
        log = home / "log"
        log.touch()
        words = ["-D", f"{home}/data", "-c", f"listen_addresses={address}", "-c", "unix_socket_directories="]
        words += ["-c", "fsync=off", "-c", "shared_buffers=64MB", "-c", "autovacuum=off"]
        command, kindly = (binaries["postgres"], *words), signal.SIGINT
        with daemons.server(namespace, _POSTGRES, *command, cgroup=cgroup, user="postgres", log=log, kindly=kindly):
            asks = [daemons.find("pg_isready", f"{_PLACES}/pg_isready"), "-q", "-h", address]
            until(
                lambda: not subprocess.run(["nsenter", f"--net=/run/netns/{namespace}", *asks], check=False).returncode
            )
            yield
    finally:
        shutil.rmtree(home)


def measure(link: traffic.Link, cell: Database) -> Stored:
    return (_redis if cell.kind == REDIS else _pgbench)(link, cell)


def _pgbench(link: traffic.Link, cell: Database) -> Stored:
    ends = link.pair
    pgbench = daemons.find("pgbench", f"{_PLACES}/pgbench")
    psql = daemons.find("psql", f"{_PLACES}/psql")
    where = ("-h", ends.sender_address, "-U", "postgres")
    with metered(link, cell.shaper, cell.rate) as meter, _postgres(ends.sender, ends.sender_address, meter.cgroup):
        daemons.result(daemons.start(ends.receiver, pgbench, *where, "-i", "-q", "postgres"), 60)
        beside = asking.Limited(link, meter.cgroup)
        running, latencies = [], Path(tempfile.mkdtemp(prefix="bench-pgbench-"))
        try:
            if cell.kind == COPY:
                copy = (psql, *where, "-X", "-o", "/dev/null", "-c", _ROWS, "postgres")
                running.append(daemons.start(ends.receiver, *copy))
            logged = ("--log", f"--log-prefix={latencies}/log")
            asks = (pgbench, *where, "-n", "-S", "-c", str(cell.clients), "-T", "60", *logged, "postgres")
            running.append(daemons.start(ends.receiver, *asks))
            calm = beside.calm(_PAUSE, _LITTLE)
            window = meter.window(cell.warm_up, cell.seconds)
            little = asking.latencies(asking.visits(calm), window.begin, window.end)
        finally:
            for process in running:
                daemons.end(process)
            began = time.time() - (time.monotonic_ns() - window.begin) / SECOND
            took = _milliseconds(latencies, began, began + cell.seconds)
            shutil.rmtree(latencies)
    return {
        **cell._asdict(),
        "limit": cell.rate,
        **window.figures(),
        "per_second": len(took) / cell.seconds,
        "p50": percentile(took, 50),
        "p99": percentile(took, 99),
        "little": little._asdict(),
    }


def _milliseconds(logs: Path, begin: float, end: float) -> list[float]:
    """What each transaction took that ended in a window, by pgbench's logs."""
    took = []
    for log in logs.iterdir():
        for words in map(str.split, log.read_text(encoding="ascii").splitlines()):
            if len(words) == 6 and begin <= int(words[4]) + int(words[5]) / 1e6 <= end:
                took.append(int(words[2]) / 1000)
    return took


def _redis(link: traffic.Link, cell: Database) -> Stored:
    ends, benchmark = link.pair, daemons.find("redis-benchmark")
    words = ("--bind", ends.sender_address, "--port", str(_REDIS), "--save", "", "--protected-mode", "no")
    where = (benchmark, "-h", ends.sender_address, "-p", str(_REDIS))
    per_second = (cell.rate or 100_000_000) / 8 / (_VALUE + _AROUND)
    with (
        metered(link, cell.shaper, cell.rate) as meter,
        daemons.server(ends.sender, _REDIS, daemons.find("redis-server"), *words, cgroup=meter.cgroup),
    ):
        daemons.result(daemons.start(ends.receiver, *where, "-n", "1", "-c", "1", "SET", "key", "x" * _VALUE), 30)
        # The first ones spend the bucket, and are not looked at.
        for seconds in (cell.warm_up, cell.seconds + 2):
            asks = ("-n", str(int(per_second * seconds)), "-c", str(cell.clients), "--csv", "GET", "key")
            asking = daemons.start(ends.receiver, *where, *asks)
            if seconds == cell.warm_up:
                daemons.result(asking, 60)
        window = meter.window(0.5, cell.seconds)
        output = daemons.result(asking, 60)
    heads, values = [row for row in csv.reader(output.splitlines()) if len(row) > 1][-2:]
    found = dict(zip(heads, values))
    return {
        **cell._asdict(),
        "limit": cell.rate,
        **window.figures(),
        "per_second": float(found["rps"]),
        "p50": float(found["p50_latency_ms"]),
        "p99": float(found["p99_latency_ms"]),
        "little": None,
    }


def line(stored: Stored) -> str:
    used = f"used {stored['used'] / stored['limit']:.3f}" if stored["limit"] else f"{stored['used'] / 1e6:.1f} Mbit/s"
    little = stored["little"]
    beside = f"; {_LITTLE} B beside it p50 {little['p50']:.1f}, p99 {little['p99']:.1f} ms" if little else ""
    return (
        f"{used}, {stored['per_second']:.0f} a second, p50 {stored['p50']:.1f}, p99 {stored['p99']:.1f} ms{beside}, "
        f"{stored['drops']:.2f} drops in 1,000"
    )
