# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd and the leaf of a rule that is in one of its units: it takes the leaf for a part of the unit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import Pair
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import Host

SERVICE = '[Service]\nExecStart=/bin/sh -c "sleep 1000 & exec sleep 1001"\nTasksMax=50'
# Opens a socket for each datagram, and has a byte in a file for each that passed or was refused.
SIZE, TELLING = 1400, 50
SENDS = f"""
import socket, time
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(bytes({SIZE}), ("{Pair.address}", 9))
            what = "passed"
        except PermissionError:
            what = "refused"
    open(f"/tmp/{{what}}", "ab").write(b"x")
    time.sleep(0.01)
"""
HOME = "/system.slice/leafy.service"
LEAF = f"{HOME}/speed_limiter.web"


def main_pid(host: Host) -> int:
    return int(host.run("systemctl", "show", "-P", "MainPID", "leafy"))


def inside(host: Host, cgroup: str) -> int:
    """How many processes are in a cgroup."""
    return len((host.cgroup(cgroup) / "cgroup.procs").read_text().split())


@pytest.fixture
def limited(host: Host) -> Iterator[int]:
    """A service whose two processes are in a rule; the pid of the first one, as the host has it."""
    host.unit("leafy.service", SERVICE)
    host.run("systemctl", "start", "leafy")
    until(lambda: inside(host, HOME) == 2)
    pid = main_pid(host)
    done = host.task("speed_limit_rule", name="web", pid=pid, rate="1m")
    assert not done["warnings"]
    yield pid
    host.run("systemctl", "stop", "leafy")
    host.task("speed_limit_purge", scope="rules")


def test_a_unit_stays_active_whatever_is_told_to_it(host: Host, limited: int) -> None:
    assert (inside(host, HOME), inside(host, LEAF)) == (0, 2)
    for command in (["daemon-reload"], ["daemon-reexec"], ["set-property", "--runtime", "leafy", "TasksMax=60"]):
        host.run("systemctl", *command)
        assert host.run("systemctl", "is-active", "leafy") == "active"
        assert inside(host, LEAF) == 2
    assert "speed_limiter.web" in host.run("systemctl", "status", "--no-pager", "leafy")
    assert not host.task("speed_limit_rule", name="web", pid=limited, rate="1m")["changed"]
    host.task("speed_limit_rule", pid=limited, state="absent")
    assert inside(host, HOME) == 2 and not host.cgroup(LEAF).exists()
    assert host.run("systemctl", "is-active", "leafy") == "active" and main_pid(host) == limited


@pytest.mark.parametrize("command", ["stop", "restart", "kill"])
def test_what_ends_a_unit_ends_what_is_in_the_leaf_and_the_leaf(host: Host, limited: int, command: str) -> None:
    host.run("systemctl", command, "leafy", *(["--signal=KILL"] if command == "kill" else []))
    until(lambda: not host.cgroup(LEAF).exists())
    if command == "restart":
        until(lambda: inside(host, HOME) == 2)
        assert main_pid(host) != limited
    else:
        until(lambda: not host.cgroup(HOME).exists())
    found = host.task("speed_limit_info", name="web", gather=["rules"])["rules"][0]
    assert found["pids"] == [] and found["members"] == ["/sys/fs/cgroup/speed_limiter/web"]
    assert len(host.task("speed_limit_purge", scope="stale", check=True)["removed"]["stale_members"]) == 1
    assert not host.task("speed_limit_rule", name="web", rate="1m")["changed"]
    assert not host.task("speed_limit_purge", scope="stale", check=True)["changed"]


def test_what_a_unit_may_not_send_to_it_may_not_send_to_in_the_leaf(host: Host, network: Pair) -> None:
    host.path("/tmp/sends").write_text(SENDS)
    host.unit("leafy.service", "[Service]\nExecStart=/usr/bin/python3 -S -E /tmp/sends\nIPAddressDeny=any")
    host.run("systemctl", "start", "leafy")

    def some(what: str) -> None:
        """As many more datagrams as tell have been refused, or have passed."""
        path = host.path(f"/tmp/{what}")
        before = path.stat().st_size if path.exists() else 0
        until(lambda: path.exists() and path.stat().st_size >= before + TELLING)

    before = network.arrived()
    some("refused")
    options = {"name": "web", "pid": main_pid(host)}
    host.task("speed_limit_rule", **options, rate="1g")
    assert inside(host, LEAF) == 1
    some("refused")
    host.task("speed_limit_rule", **options, state="absent")
    some("refused")
    assert not host.path("/tmp/passed").exists()
    assert network.arrived().bytes - before.bytes < TELLING * SIZE  # neighbours say something to each other
    host.task("speed_limit_rule", **options, rate="1g")
    host.run("systemctl", "set-property", "--runtime", "leafy", "IPAddressDeny=")
    some("passed")
    assert inside(host, LEAF) == 1 and network.arrived().bytes - before.bytes >= TELLING * SIZE
    host.run("systemctl", "stop", "leafy")
    host.task("speed_limit_purge", scope="rules")


def test_a_main_process_that_crashes_takes_its_unit_along(host: Host, limited: int) -> None:
    host.run("kill", "-KILL", str(limited))
    until(lambda: not host.cgroup(HOME).exists())
    assert host.run("systemctl", "is-active", "leafy", fails=True) == "failed"


def test_the_user_of_a_delegated_unit_leaves_the_leaf_and_puts_nobody_in(host: Host) -> None:
    """As docs/limits.md says: he owns the cgroup above it, and the limits of all cgroups above that keep holding."""
    host.user("joe", 1000)
    host.unit("leafy.service", f"{SERVICE}\nUser=joe\nDelegate=yes")
    host.run("systemctl", "start", "leafy")
    until(lambda: inside(host, HOME) == 2)
    pid = main_pid(host)
    host.task("speed_limit_rule", name="web", pid=pid, children=False, rate="1m")
    as_joe = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c")
    seen = f"/sys/fs/cgroup{LEAF}"
    assert "denied" in host.run(*as_joe, f"echo 1 >{seen}/cgroup.procs", fails=True)
    assert "denied" in host.run(*as_joe, f"mkdir {seen}/below", fails=True)
    host.run(*as_joe, f"echo {pid} >/sys/fs/cgroup{HOME}/cgroup.procs")
    host.run(*as_joe, f"rmdir {seen}")
    assert host.task("speed_limit_info", name="web", gather=["rules"])["rules"][0]["pids"] == []
    assert host.task("speed_limit_rule", name="web", pid=pid, children=False)["changed"]
    assert inside(host, LEAF) == 1
    host.task("speed_limit_purge", scope="all")
    assert inside(host, HOME) == 2
    host.run("systemctl", "stop", "leafy")
