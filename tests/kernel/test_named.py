# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of units, users and their sockets on a host with systemd: they hold over restarts and logouts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused, until
from ansible_collections.speed_limiter.ebpf.tests.support.net import Arrived, Pair
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT, WINDOWS, assert_held, pause
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import Host

RATE, BUCKET, SIZE = 8 * MBIT, 20_000, 1400
NOISE = 64_000  # what systemd itself and neighbours say to each other
RESTARTS = 20 if SLOW else 100
PYTHON = "/usr/bin/python3 -S -E"
# Sends datagrams as fast as it can, and says after the first that it does, by a byte in a file.
FLOOD = f"""
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("{Pair.address}", 9))
told = False
while True:
    try:
        sender.send(bytes({SIZE}))
        if not told:
            open("/tmp/begun", "ab").write(b"x")
            told = True
    except OSError:
        pass
"""
# Sends all that the first connection takes, which comes by a socket of systemd's.
SERVE = """
import socket
connection = socket.socket(fileno=3).accept()[0]
while True:
    connection.sendall(bytes(65536))
"""
RECEIVE = f"""
import socket
connection = socket.create_connection(("{Pair.sender_address}", 7000))
while connection.recv(1 << 20):
    pass
"""


@pytest.fixture
def files(host: Host) -> Iterator[None]:
    """The programs of the units, and no rule before and after."""
    for name, text in (("flood", FLOOD), ("serve", SERVE)):
        host.path(f"/root/{name}").write_text(text)
    host.path("/root").chmod(0o755)
    host.path("/tmp/begun").unlink(missing_ok=True)
    yield
    host.run("systemctl", "stop", "--all", "flood*", "serve*")
    host.task("speed_limit_purge", scope="all")


def begun(host: Host) -> int:
    """How many senders have begun to send."""
    file = host.path("/tmp/begun")
    return file.stat().st_size if file.exists() else 0


def assert_bound(before: Arrived, after: Arrived, rate: int = RATE, bucket: int = BUCKET) -> None:
    """Datagrams of one size: no more than the rate, a bucket and the one that ran into debt."""
    passed, seconds = after.bytes - before.bytes, after.seconds - before.seconds
    print(f"{passed} bytes in {seconds:.2f} s, {passed / seconds / rate:.3f} of the limit")
    assert passed <= 1.005 * rate * seconds + bucket + SIZE + 28


def assert_all_of_it(network: Pair, bucket: int = BUCKET) -> None:
    """No more than the limit, and next to all of it in one of the next windows: a busy machine delays senders."""
    passed = [0.0]
    while passed[-1] < 0.9:
        assert len(passed) <= WINDOWS, f"of {RATE} bytes/s, in windows of a second: {passed[1:]}"
        before = network.arrived()
        pause(1)
        after = network.arrived()
        assert_bound(before, after, bucket=bucket)
        passed.append((after.bytes - before.bytes) / (after.seconds - before.seconds) / RATE)


def limit(host: Host, **options: object) -> dict[str, object]:
    options = {"name": "named", "rate": str(RATE), "bucket": str(BUCKET), **options}
    made: dict[str, object] = host.task("speed_limit_rule", **options)
    assert made["unenforced"] == []
    return made


def unit_of(program: str) -> str:
    return f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart={PYTHON} /root/{program}"


@pytest.mark.parametrize(("each", "bucket"), [(False, BUCKET), (True, RATE // 2)], ids=["together", "each"])
def test_a_service_that_restarts_a_hundred_times_stays_limited(
    host: Host, network: Pair, files: None, each: bool, bucket: int
) -> None:
    """With each, it has one bucket for all its cgroups, one after the other."""
    host.unit("flood.service", unit_of("flood"))
    options = {"units": ["flood"], "each": each, "bucket": str(bucket)}
    made = limit(host, **options)
    assert made["rule"]["waiting"] == ["/sys/fs/cgroup/system.slice/flood.service"]  # type: ignore[index]
    before = network.arrived()
    for number in range(RESTARTS):
        if number % (RESTARTS // 4) == 0:
            host.run("systemctl", "daemon-reexec" if number % (RESTARTS // 2) == 0 else "daemon-reload")
        host.run("systemctl", "restart", "flood")
        until(lambda number=number: begun(host) > number)  # type: ignore[misc]
    host.run("systemctl", "daemon-reexec")
    after = network.arrived()
    assert_bound(before, after, bucket=bucket)
    [rule] = host.task("speed_limit_info", gather=["rules"])["rules"]
    assert rule["counters"]["bytes"] + NOISE >= after.bytes - before.bytes
    assert rule["counters"]["dropped_packets"] > 0
    assert_all_of_it(network, bucket)
    assert not limit(host, **options)["changed"]


def test_instances_of_a_template_are_found_by_their_names_escapes_and_all(
    host: Host, network: Pair, files: None
) -> None:
    host.unit("flood-all@.service", unit_of("flood"))
    instance = r"flood-all@a\x2db-\xc3\xa4.service"
    host.run("systemctl", "start", instance)
    until(lambda: begun(host) == 1)
    for named in (["flood-all@"], [instance]):
        limit(host, units=named)
        assert host.cgroup(rf"/system.slice/system-flood\x2dall.slice/{instance}").is_dir()
        before = network.arrived()
        assert_all_of_it(network)
        host.run("systemctl", "restart", instance)
        assert_bound(before, network.arrived())
        host.task("speed_limit_purge", scope="rules")


def test_a_user_stays_limited_from_one_login_to_the_next(host: Host, network: Pair, files: None) -> None:
    users = Path(str(host.path("/etc/systemd/user")))
    (users / "default.target.wants").mkdir(parents=True, exist_ok=True)
    (users / "flood.service").write_text(unit_of("flood"))
    (users / "default.target.wants/flood.service").symlink_to("/etc/systemd/user/flood.service")
    host.user("joe", 1500)
    slice_of_joe = host.cgroup("/user.slice/user-1500.slice")
    made = limit(host, users=["joe"])
    assert made["rule"]["waiting"] == ["/sys/fs/cgroup/user.slice/user-1500.slice"]  # type: ignore[index]
    before, ids = network.arrived(), []
    for login in range(3):
        host.run("loginctl", "enable-linger", "joe")
        until(lambda login=login: begun(host) > login)  # type: ignore[misc]
        ids.append(slice_of_joe.stat().st_ino)
        assert_all_of_it(network)
        host.run("loginctl", "disable-linger", "joe")
        until(lambda: not slice_of_joe.exists())
    assert_bound(before, network.arrived())
    assert len(set(ids)) == 3
    (users / "default.target.wants/flood.service").unlink()


def test_a_service_is_limited_on_sockets_that_systemd_has_opened(host: Host, network: Pair, files: None) -> None:
    host.unit("serve.service", unit_of("serve"))
    host.unit("serve.socket", "[Socket]\nListenStream=0.0.0.0:7000")
    made = limit(host, units=["serve"])
    assert [member.rpartition("/")[2] for member in made["rule"]["members"]] == [  # type: ignore[index]
        "named",
        "serve.service",
        "serve.socket",
    ]
    host.run("systemctl", "start", "serve.socket")
    client = subprocess.Popen(["nsenter", f"--net=/run/netns/{network.receiver}", sys.executable, "-c", RECEIVE])
    try:
        until(lambda: host.run("systemctl", "is-active", "serve.service", fails=None) == "active")
        assert_held(network, RATE)
    finally:
        client.kill()
        client.wait()


def test_a_unit_that_changes_its_slice_is_limited_where_it_is_and_where_it_will_be(
    host: Host, network: Pair, files: None
) -> None:
    host.unit("flood.service", unit_of("flood"))
    host.run("systemctl", "start", "flood")
    host.unit("flood.service", f"{unit_of('flood')}\nSlice=other-place.slice")
    limit(host, units=["flood"])
    before = network.arrived()
    assert_all_of_it(network)
    host.run("systemctl", "restart", "flood")
    assert host.cgroup("/other.slice/other-place.slice/flood.service").is_dir()
    assert_all_of_it(network)
    assert_bound(before, network.arrived())
    said = host.task("speed_limit_rules", rules=[{"name": "named", "units": ["flood"]}])
    assert said["changed"] and "/system.slice/flood.service" not in str(said["rules"])


def test_what_is_named_is_taken_out_again(host: Host, files: None) -> None:
    host.unit("flood.service", unit_of("flood"))
    limit(host, units=["flood"], users=["1500"])
    left = host.task("speed_limit_rule", name="named", unit="flood", state="absent")
    assert left["changed"] and left["rule"]["members"][1:] == ["/sys/fs/cgroup/user.slice/user-1500.slice"]
    host.path("/etc/systemd/system/flood.service").unlink()
    host.run("systemctl", "daemon-reload")
    gone = host.task("speed_limit_rule", name="named", unit="flood", state="absent")
    assert not gone["changed"] and not gone["warnings"]
    left = host.task("speed_limit_rules", rules=[{"name": "named", "units": []}])
    assert left["changed"] and left["rules"][0]["members"][1:] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": ["none"]}, "unknown_unit: units: none.service does not exist on this host"),
        ({"users": ["nobody-of-that-name"]}, "unknown_user: users: 'nobody-of-that-name' is not known"),
        ({"containers": ["none"]}, "unknown_container: containers: none is not known on this host"),
        ({"units": ["user.slice"]}, "holds_connection: /user.slice is refused"),
        ({"units": ["-.slice"]}, "holds_connection: / is refused"),
        ({"units": ["init.scope"]}, "holds_connection: /init.scope is refused"),
        ({"units": ["a.timer"]}, "bad_unit: units: 'a.timer' is refused"),
    ],
)
def test_what_cannot_be_limited_is_an_error_and_nothing_is_made(
    host: Host, options: dict[str, list[str]], words: str
) -> None:
    assert host.refused("speed_limit_rule", name="named", rate="1m", **options).startswith(words)
    assert not host.cgroup("/speed_limiter").exists()


def test_without_systemd_units_and_users_are_an_error_that_says_so() -> None:
    for options in ({"unit": ["a"]}, {"user": ["0"]}):
        with refused("no_systemd", "cannot be looked up: systemd does not run on this host"):
            limiter.rule(name="named", rate="1m", **options)
