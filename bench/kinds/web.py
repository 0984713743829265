# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx in a rule: ab with a connection for each request, and a page over HTTP/2 and TLS."""

from __future__ import annotations

import csv
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .. import asking, traffic
from ..kinds import daemons, loops, pages
from ..measure import SECOND, Curve, megabits, percentile
from ..meter import metered
from ..shapers import NONE, OURS

Stored = dict[str, Any]
_HTTP, _HTTPS = 80, 443
_CONFIGURATION = """
daemon off; worker_processes 1; user root; pid {home}/pid; error_log {home}/log;
events {{ worker_connections 4096; }}
http {{
    access_log off; tcp_nodelay on; keepalive_requests 1000000;
    client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3;
    uwsgi_temp_path {home}/4; scgi_temp_path {home}/5;
    server {{
        listen {address}:{http} backlog=4096; listen {address}:{https} ssl http2;
        ssl_certificate {home}/certificate; ssl_certificate_key {home}/key; root {home}/pages;
    }}
}}
"""
# Beside the answer and what a connection costs: the head of an answer over HTTP.
_HEAD = 240


class Requests(NamedTuple):
    """ab: `workers` of them, a connection for each request of `size` bytes."""

    shaper: str
    rate: int
    workers: int
    size: int
    seconds: float = 10.0
    warm_up: float = 2.0

    @property
    def cycle(self) -> float:
        each = asking.wire(self.size + _HEAD) + loops.AROUND
        return 8000 * self.workers * each / self.rate if self.rate else float("nan")

    @property
    def what(self) -> str:
        limit = f"{megabits(self.rate)} Mbit/s, " if self.shaper != NONE else ""
        return f"{self.shaper}, {limit}nginx, ab -c {self.workers}, {self.size} B"


class Page(NamedTuple):
    """h2load: `objects` at once over one connection."""

    shaper: str
    rate: int
    bucket: int | None = None
    objects: int = 100
    size: int = 10_000
    times: int = 3

    @property
    def what(self) -> str:
        limit = f"{megabits(self.rate)} Mbit/s, " if self.shaper != NONE else ""
        bucket = "default bucket" if self.bucket is None else f"bucket of {8000 * self.bucket / self.rate:g} ms"
        return f"{self.shaper}, {limit}{bucket}, {self.objects} x {self.size} B, HTTP/2 over TLS"


def certificate(home: Path) -> tuple[Path, Path]:
    """A key, and a certificate of its own."""
    words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=bench", "-days", "2")
    made = (home / "key", home / "certificate")
    command = [daemons.find("openssl"), *words, "-keyout", str(made[0]), "-out", str(made[1])]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return made


@contextmanager
def nginx(namespace: str, address: str, cgroup: Path, size: int) -> Iterator[None]:
    """Serves one file, /object."""
    program, home = daemons.find("nginx"), Path(tempfile.mkdtemp(prefix="bench-nginx-"))
    try:
        (home / "pages").mkdir()
        (home / "pages/object").write_bytes(b"x" * size)
        certificate(home)
        text = _CONFIGURATION.format(home=home, address=address, http=_HTTP, https=_HTTPS)
        (home / "configuration").write_text(text, encoding="utf-8")
        command = (program, "-c", f"{home}/configuration", "-p", str(home), "-e", f"{home}/log")
        with daemons.server(namespace, _HTTP, *command, cgroup=cgroup, log=home / "log"):
            yield
    finally:
        shutil.rmtree(home)


def requests(link: traffic.Link, cell: Requests) -> Stored:
    ends, ab = link.pair, daemons.find("ab")
    with (
        metered(link, cell.shaper, cell.rate) as meter,
        nginx(ends.sender, ends.sender_address, meter.cgroup, cell.size),
    ):
        table = Path(tempfile.mkstemp(prefix="bench-ab-")[1])
        try:
            whole = int(cell.warm_up + cell.seconds + 1)
            words = ("-q", "-c", str(cell.workers), "-t", str(whole), "-n", "1000000", "-s", "60", "-g", str(table))
            asked = daemons.start(ends.receiver, ab, *words, f"http://{ends.sender_address}/object")
            window = meter.window(cell.warm_up, cell.seconds)
            said = daemons.result(asked, 60)
            began = time.time() - (time.monotonic_ns() - window.begin) / SECOND
            took = _milliseconds(table, began, began + cell.seconds)
        finally:
            table.unlink()
    return {
        **cell._asdict(),
        "limit": cell.rate,
        "cycle": cell.cycle,
        **window.figures(),
        "answers": len(took),
        "failed": int(_figure(r"Failed requests:\s+(\d+)", said)),
        **{f"p{percent}": percentile(took, percent) for percent in (50, 90, 99)},
        "longest": max(took),
    }


def line(stored: Stored) -> str:
    used = f"used {stored['used'] / stored['limit']:.3f}" if stored["limit"] else f"{stored['used'] / 1e6:.1f} Mbit/s"
    return (
        f"{used}, cycle {stored['cycle']:.1f} ms, p50 {stored['p50']:.0f}, p90 {stored['p90']:.0f}, "
        f"p99 {stored['p99']:.0f}, max {stored['longest']:.0f} ms of {stored['answers']}, {stored['failed']} failed, "
        f"{stored['drops']:.2f} drops in 1,000"
    )


def _milliseconds(table: Path, begin: float, end: float) -> list[float]:
    """What each request took that ended in a window, by ab's table, which knows of whole seconds when it began."""
    with table.open(encoding="ascii") as file:
        rows = [(int(row["seconds"]), float(row["ttime"])) for row in csv.DictReader(file, delimiter="\t")]
    return [took for began, took in rows if begin <= began + 0.5 + took / 1000 <= end]


def _figure(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"no {pattern} in {text!r}")
    return found[1]


def page(link: traffic.Link, cell: Page) -> Stored:
    """As pages.measure(): the time is h2load's, from before its handshake to its last byte."""
    ends, h2load, taken, sizes = link.pair, daemons.find("h2load"), [], []
    bucket = cell.rate // 8 if cell.bucket is None and cell.shaper != OURS else cell.bucket
    with (
        metered(link, cell.shaper, cell.rate, bucket) as meter,
        nginx(ends.sender, ends.sender_address, meter.cgroup, cell.size),
    ):
        moments = []
        for _time in range(cell.times):
            time.sleep(pages.IDLE)
            begin = time.monotonic_ns()
            words = ("-n", str(cell.objects), "-c", "1", "-m", str(cell.objects))
            said = daemons.result(daemons.start(ends.receiver, h2load, *words, _url(ends.sender_address)), 60)
            time.sleep(0.05)
            moments.append((begin, time.monotonic_ns()))
            number, unit = re.search(r"finished in ([\d.]+)(us|ms|s),", said).groups()  # type: ignore[union-attr]
            taken.append(float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit])
        curve = Curve(traffic.counts(meter.counter, link.header))
    sizes = [curve.at(end) - curve.at(begin) for begin, end in moments]
    ideal = 8000 * statistics.median(sizes) / cell.rate if cell.rate else float("nan")
    return {**cell._asdict(), "limit": cell.rate, "taken": taken, "took": statistics.median(taken), "ideal": ideal}


def _url(address: str) -> str:
    return f"https://{address}/object"
