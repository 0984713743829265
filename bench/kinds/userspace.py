# SPDX-License-Identifier: GPL-3.0-or-later
"""What paces itself and is not the kernel's TCP: QUIC by aioquic, uTP by libtorrent."""

from __future__ import annotations

import select
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from .. import traffic
from ..kinds import daemons, web
from ..measure import megabits
from ..meter import Meter, metered
from ..shapers import Missing

Stored = dict[str, Any]
QUIC, UTP = "QUIC", "uTP"
_PORT, _LEECHERS = 4433, 7000
_SYSTEM = "/usr/bin/python3"
HERE = Path(__file__).resolve().parent.parent


class UserSpace(NamedTuple):
    shaper: str
    rate: int
    kind: str
    connections: int
    seconds: float = 10.0
    warm_up: float = 3.0

    @property
    def what(self) -> str:
        return f"{self.shaper}, {megabits(self.rate)} Mbit/s, {self.kind} x {self.connections}"


def measure(link: traffic.Link, cell: UserSpace) -> Stored:
    with ExitStack() as stack:
        meter = stack.enter_context(metered(link, cell.shaper, cell.rate))
        home = Path(tempfile.mkdtemp(prefix="bench-userspace-"))
        stack.callback(shutil.rmtree, home)
        # More than can be sent in the time.
        size = int(cell.rate / 8 * (cell.seconds + cell.warm_up) * 1.5)
        (_quic if cell.kind == QUIC else _utp)(stack, link, cell, meter, home, size)
        window = meter.window(cell.warm_up, cell.seconds)
    return {**cell._asdict(), "limit": cell.rate, **window.figures()}


def _quic(stack: ExitStack, link: traffic.Link, cell: UserSpace, meter: Meter, home: Path, size: int) -> None:
    if subprocess.run([sys.executable, "-c", "import aioquic"], stderr=subprocess.DEVNULL, check=False).returncode:
        raise Missing("aioquic (tools/setup --bench installs it)")
    ends, program, log = link.pair, (sys.executable, str(HERE / "quic.py")), home / "log"
    key, certificate = web.certificate(home)
    words = ("serve", ends.sender_address, str(_PORT), str(certificate), str(key))
    serving = daemons.server(ends.sender, _PORT, *program, *words, cgroup=meter.cgroup, log=log, udp=True)
    stack.enter_context(serving)
    asks = ("fetch", ends.sender_address, str(_PORT), str(cell.connections), str(size))
    _begin(stack, daemons.start(ends.receiver, *program, *asks, log=log))


def _utp(stack: ExitStack, link: traffic.Link, cell: UserSpace, meter: Meter, home: Path, size: int) -> None:
    if subprocess.run([_SYSTEM, "-c", "import libtorrent"], stderr=subprocess.DEVNULL, check=False).returncode:
        raise Missing("python3-libtorrent (tools/setup --bench installs it)")
    ends, program, log = link.pair, (_SYSTEM, str(HERE / "torrent.py")), home / "log"
    (home / "seed").mkdir()
    words = ("seed", ends.sender_address, str(_PORT), str(home / "seed"), str(size))
    _begin(stack, daemons.start(ends.sender, *program, *words, cgroup=meter.cgroup, log=log))
    for number in range(cell.connections):
        place = home / f"leech{number}"
        place.mkdir()
        seeder = (ends.sender_address, str(_PORT), str(home / "seed/torrent"))
        asks = ("leech", ends.address, str(_LEECHERS + number), str(place), *seeder)
        _begin(stack, daemons.start(ends.receiver, *program, *asks, log=log))


def _begin(stack: ExitStack, process: subprocess.Popen[str]) -> None:
    """Until it says "ready"; it ends with the stack."""
    stack.callback(daemons.end, process)
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], traffic.DEADLINE)[0] or process.stdout.readline() != "ready\n":
        raise RuntimeError(f"not ready: {process.args!r}")


def line(stored: Stored) -> str:
    return f"used {stored['used'] / stored['limit']:.3f}, {stored['drops']:.2f} drops in 1,000"
