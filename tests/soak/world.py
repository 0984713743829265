# SPDX-License-Identifier: GPL-3.0-or-later
"""What is limited in the soak: cgroups that come and go, processes in them, and a link for each, where all that they
send is counted as it arrives.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import (
    DEADLINE,
    ETHERNET_HEADER,
    OFFLOADS_OFF,
    PORT,
    Pair,
    run,
)

from .meters import Reading
from .model import Member

SENDER = str(Path(__file__).with_name("sender.py"))
# Of one service each, by their links. Some share what is above them.
HOMES = (
    "/steady.slice/it.service",
    "/soak.slice/web.slice/svc-1.service",
    "/soak.slice/web.slice/svc-2.service",
    "/soak.slice/db.slice/svc-1.service",
    "/job.scope",
)
MOST_PROCESSES = 4  # of a service


class Service:
    """The processes of a cgroup, which all send through one link."""

    def __init__(self, world: World, link: int) -> None:
        self._world, self.link, self.home = world, link, HOMES[link]
        self.name = f"s{os.getpid()}-{link}"
        self.children: list[int] = []
        self.start()

    @property
    def directory(self) -> Path:
        return Path(self._world.cgroups.absolute(self.home))

    @property
    def pids(self) -> list[int]:
        return [*([self.process.pid] if self.process else []), *self.children]

    def members(self) -> Iterator[Member]:
        first = self.process.pid if self.process else None
        for pid in self.pids:
            yield Member(pid, self.home, None if pid == first or pid in self.orphans else first, self.name)

    def start(self) -> None:
        os.makedirs(self.directory, exist_ok=True)
        procs = self.directory / "cgroup.procs"
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self._world.pair.sender}", sys.executable, SENDER]
            + [address(self.link, 2), str(PORT), self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: procs.write_text("0", encoding="ascii") and None,
        )
        self.orphans: set[int] = set()
        assert self._answer() == "ready"

    def order(self, what: str) -> int:
        """Has its first process do something."""
        assert self.process and self.process.stdin
        self.process.stdin.write(f"{what}\n".encode())
        self.process.stdin.flush()
        answer = int(self._answer())
        if what == "fork":
            self.children.append(answer)
        return answer

    def _answer(self) -> str:
        assert self.process and self.process.stdout
        if not select.select([self.process.stdout], [], [], DEADLINE)[0]:
            raise TimeoutError(f"process {self.process.pid} of {self.home} does not answer")
        return self.process.stdout.readline().decode().strip()

    def kill(self, pid: int) -> None:
        """A process ends without a word; its children live on."""
        os.kill(pid, 9)
        if self.process and pid == self.process.pid:
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):  # its children have them, too
                assert pipe
                pipe.close()
            self.process, self.orphans = None, set(self.children)
            return
        if pid in self.orphans:
            os.waitpid(pid, 0)
        until(lambda: not os.path.exists(f"/proc/{pid}"))
        self.children.remove(pid)
        self.orphans.discard(pid)

    def end(self) -> None:
        """It stops, and its cgroup goes, with all below it, as when systemd stops a service."""
        for pid in self.pids:
            self.kill(pid)
        for directory, _below, _files in os.walk(self.directory, topdown=False):
            until(lambda directory=directory: _removed(directory))  # type: ignore[misc]


def _removed(directory: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(directory)
    return not os.path.exists(directory)


def address(link: int, host: int) -> str:
    return f"10.255.{link + 1}.{host}"


class World:
    """Use as a context manager: leaving it ends and removes all that it made."""

    def __init__(self) -> None:
        self.cgroups = Cgroups.find()
        self._undone = contextlib.ExitStack()
        self.services: list[Service] = []

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            self.pair = stack.enter_context(Pair(receivers=False))
            for link in range(len(HOMES)):
                self._make_link(link)
            self._receiver = self.pair.start(self.pair.receiver, "receive", "0.0.0.0", str(PORT))
            stack.callback(self._receiver.kill)
            stack.callback(self._end)
            self.services += [Service(self, link) for link in range(len(HOMES))]
            self._undone = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undone.close()

    def _end(self) -> None:
        for service in self.services:
            service.end()
            for above in (service.directory.parent, service.directory.parent.parent):
                with contextlib.suppress(OSError):
                    if above != Path(self.cgroups.mount):
                        above.rmdir()

    def _make_link(self, link: int) -> None:
        name, pair = f"link{link}", self.pair
        run("ip", "link", "add", name, "netns", pair.sender, "type", "veth", "peer", name, "netns", pair.receiver)
        for namespace, host in ((pair.sender, 1), (pair.receiver, 2)):
            run("nsenter", f"--net=/run/netns/{namespace}", "ethtool", "-K", name, *OFFLOADS_OFF)
            run("ip", "-n", namespace, "address", "add", f"{address(link, host)}/24", "dev", name)
            run("ip", "-n", namespace, "link", "set", name, "addrgenmode", "none", "up")

    def members(self) -> dict[int, Member]:
        return {member.pid: member for service in self.services for member in service.members()}

    def reading(self) -> Reading:
        """What has arrived on each link so far, IP bytes."""
        before = time.monotonic()
        text = Path(f"/proc/{self._receiver.pid}/net/dev").read_text(encoding="ascii")
        after = time.monotonic()
        found = {}
        for line in text.splitlines():
            name, _colon, fields = line.strip().partition(":")
            if name.startswith("link"):
                received, packets = (int(field) for field in fields.split()[:2])
                found[int(name.removeprefix("link"))] = received - ETHERNET_HEADER * packets
        return Reading(before, after, found)

    def incarnation(self, cgroup: str) -> int:
        """A cgroup that is made again is another one."""
        return os.stat(self.cgroups.absolute(cgroup)).st_ino
