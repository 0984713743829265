# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that docs/troubleshooting.md shows, run on a host with systemd whose services send; and their outputs,
put into the page.

In the page, a block that is written here follows a line `<!-- run: NAME -->`. `form()` is what a block has in common
with the same block of any other run.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import systemd
from .children import until
from .net import PORT, Pair

PAGE = systemd.CHECKOUT / "docs" / "troubleshooting.md"
COLUMNS = 110  # of the terminal that the commands write to
PINS = "/sys/fs/bpf/speed_limiter"

INFO = "ansible db1 -b -m speed_limiter.ebpf.speed_limit_info"

BLOCKS: dict[str, Sequence[str]] = {
    "held": ["limiter why {backup}"],
    "not-held": ["limiter why {mirror}"],
    "no-rule": ["limiter why {web}"],
    "list": ["limiter list"],
    "hook": ["limiter list --bpf"],
    "which": ["limiter list -p {backup}"],
    "passed": ["limiter trace --unit backup --reason passed --max-events 1"],
    "dropped": ["limiter trace --unit stats --reason empty --max-events 1"],
    "top": ["limiter top --once"],
    "use": ["""limiter list --name backup --json | grep -A 5 '"use"'"""],
    "connection": ["""limiter why {backup} --json | grep -m 1 -A 11 '"address"'"""],
    "drops-now": ["limiter why {stats}"],
    "drops": ["""limiter metrics | grep 'dropped_packets.*rule="stats"' | grep -v ' 0$'"""],
    "exempt": ["limiter trace --unit web --max-events 1"],
    "boot": [f"""{INFO} -a gather=boot | grep -A 3 '"problems"'"""],
    "restore": ["limiter restore --check"],
    "host": [f"""{INFO} -a gather=host | grep -A 12 '"host"'"""],
    "error": ["limiter set -p 4194304 -r 5m"],
    "by-hand": [
        "grep ^0:: /proc/{backup}/cgroup",
        "bpftool cgroup show /sys/fs/cgroup",
        f"bpftool map dump pinned {PINS}/rate_limit_config_map | head -n 6",
        f"bpftool map dump pinned {PINS}/rate_limit_state_map | head -n 5",
        f"bpftool map show pinned {PINS}/rate_limit_config_map",
        "bpftool prog show id {program}",
    ],
    "idle": ["limiter unload", "limiter list --name backup"],
}

UNORDERED = {"top"}  # by use, which changes
STORED = {"boot", "restore"}  # what is wrong with stored rules
EMPTY = "/etc/speed_limiter/rules.d/logs.json"  # as a file is that somebody began to write on a full disk


class Placed(NamedTuple):
    """What stands for names in braces: the processes of the services, and the id of the program."""

    backup: str
    mirror: str
    stats: str
    web: str
    program: str


_SENDS_ALL = f"""#!/usr/bin/python3
import socket, threading
def send():
    connection = socket.create_connection(("{Pair.address}", {PORT}))
    while True:
        connection.sendall(bytes(65536))
for _connection in range(4):
    threading.Thread(target=send).start()
"""
_SENDS_LITTLE = f"""#!/usr/bin/python3
import socket, time
connection = socket.create_connection(("{Pair.address}", {PORT}))
while True:
    connection.sendall(bytes(4000))
    time.sleep(0.04)
"""
_SENDS_DATAGRAMS = f"""#!/usr/bin/python3
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _datagram in range(20):
        sender.sendto(bytes(1400), ("{Pair.address}", {PORT}))
    time.sleep(0.01)
"""


class Service(NamedTuple):
    program: str
    slice: str
    rule: str  # options of `limiter set`


SERVICES = {
    "backup": Service(_SENDS_ALL, "batch.slice", "-r 20mbit"),
    "mirror": Service(_SENDS_LITTLE, "batch.slice", "-r 2mbit"),
    "stats": Service(_SENDS_DATAGRAMS, "system.slice", "-r 8mbit -b 20k"),
    "web": Service(_SENDS_LITTLE, "system.slice", ""),
}


class Guided:
    """A host whose services send under rules, and whoever is called because one of them is slow."""

    def __init__(self, host: systemd.Host) -> None:
        self._host = host
        pids = {}
        host.path("/tmp/inventory").write_text("db1 ansible_connection=local\n")
        host.task("speed_limit_command")
        self.make("limiter set --name batch -r 100mbit --cgroup-path /batch.slice")
        for name, service in SERVICES.items():
            program = Path("/usr/local/bin", name)
            program.write_text(service.program)
            program.chmod(0o755)
            host.unit(f"{name}.service", f"[Service]\nSlice={service.slice}\nExecStart={program}")
            if service.rule:
                self.make(f"limiter set --name {name} {service.rule} --unit {name}")
            host.run("systemctl", "start", name)
            pids[name] = host.run("systemctl", "show", "-p", "MainPID", "--value", name)
        (ours,) = [one for one in host.task("speed_limit_info", gather=["hook"])["hook"] if one["ours"]]
        self._placed = Placed(**pids, program=str(ours["id"]))
        until(self._is_limited)

    def block(self, name: str) -> str:
        """What a terminal shows of a block's commands."""
        shown = []
        with self._stored() if name in STORED else contextlib.nullcontext():
            for template in BLOCKS[name]:
                command = template.format(**self._placed._asdict())
                prompt = "$" if command.startswith("ansible") else "#"
                shown.append(f"{prompt} {command}\n{self._shown(command)}")
        if name == "idle":
            self.make("limiter reload")
            until(self._is_limited)
        return "\n".join(shown)

    @contextlib.contextmanager
    def _stored(self) -> Iterator[None]:
        """A rule is stored, and a file that is broken; and no unit applies either."""
        rule = f"limiter set --name mirror {SERVICES['mirror'].rule} --unit mirror"
        self.make(f"{rule} --persistent")
        self._host.run("touch", EMPTY)
        try:
            yield
        finally:
            self._host.run("rm", EMPTY)
            self.make(f"{rule} --no-persistent")

    def command(self, *words: str) -> list[str]:
        """What to run for a command on the host."""
        return [*self._host.prefix, *words]

    def make(self, command: str) -> None:
        self._host.run(*command.split())

    def _is_limited(self) -> bool:
        """The rule of each kind of traffic holds it back."""
        rows = [line.split() for line in self._host.run("limiter", "list").splitlines()]
        return {"backup", "stats"} <= {row[0] for row in rows if "yes" in row}

    def _shown(self, command: str) -> str:
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin"
        settings = [f"PATH={path}", f"COLUMNS={COLUMNS}", "LANG=C.UTF-8", "HOME=/root", "ANSIBLE_NOCOLOR=1"]
        settings += ["ANSIBLE_INVENTORY=/tmp/inventory", "ANSIBLE_PYTHON_INTERPRETER=/usr/bin/python3"]
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*self._host.prefix, "env", "-i", *settings, "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ):
            os.close(theirs)
            text = b""
            with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
                while piece := os.read(ours, 65536):
                    text += piece
        os.close(ours)
        assert b"(defect)" not in text, text.decode()
        return "\n".join(line.rstrip() for line in text.decode().splitlines())


@contextlib.contextmanager
def guided() -> Iterator[Guided]:
    with Pair() as pair, systemd.booted(pair.sender) as host:
        yield Guided(host)


# ---- the page

_BLOCK = re.compile(r"(?<=^<!-- run: )([\w-]+)( -->\n```console\n)(.*?)(?=\n```$)", re.MULTILINE | re.DOTALL)


def shown(page: str) -> dict[str, str]:
    """The blocks of a page."""
    return {name: text for name, _between, text in _BLOCK.findall(page)}


def written(page: str, blocks: dict[str, str]) -> str:
    return _BLOCK.sub(lambda found: f"{found[1]}{found[2]}{blocks[found[1]]}", page)


_VARIES = (
    (r'": (?:"[^"]*"|null)', '": S'),  # texts in JSON
    (r"loaded_at \S+", "loaded_at T"),
    (r"\b0x[0-9a-f]+\b|\b[0-9a-f]{16,}\b", "N"),  # addresses of the kernel, tags, identities
    (r"-?\d[\d.,]*\d|-?\d", "N"),
    (r"N (?:[kMG]?bit/s|[KMG]i?B|B)(?!\w)", "N"),
    (r"[\u2580-\u258f\u00b7]+", "BAR"),
    (r"\s+", " "),
    # A busy machine withholds from a sender what it would use.
    (r"\b(?:yes|no)(?= N /)", "BINDS"),
    (r"for (?:N h )?N (?:s|min) without a break", "FOR"),
)


def form(text: str) -> str:
    """What does not vary from run to run: no numbers, ids and times, and no widths."""
    for pattern, stays in _VARIES:
        text = re.sub(pattern, stays, text)
    return text


def alike(name: str, one: str, other: str) -> bool:
    """Whether two are the same block of two runs."""
    if name in UNORDERED:
        one, other = ("\n".join(sorted(text.splitlines())) for text in (one, other))
    return form(one) == form(other)
