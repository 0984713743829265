# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with systemd boots: what is stored holds before the network is up."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.generated.version import VERSION
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import command
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.boot_unit import UNIT
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.net import PORT, TRAFFIC, Pair
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import CHECKOUT, UNITS, Host

RATE, BUCKET = 1_000_000, 20_000
RULES = "/etc/speed_limiter/rules.d"
TEMPLATE = CHECKOUT / "roles/setup/templates/speed_limiter.service.j2"
SENDER = f"""\
[Unit]
Wants=network.target
After=network.target
[Service]
ExecStart={shlex.join([*TRAFFIC, "udp", Pair.address, str(PORT), "300", str(100 * RATE), "1000", ""])}
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def prepared(host: Host) -> Host:
    """As the role leaves it: with the command, the object and the unit."""
    host.task("speed_limit_program")
    host.task("speed_limit_command")
    host.unit(UNIT, TEMPLATE.read_text().replace("{{ setup_restore_options }}", ""))
    host.run("systemctl", "enable", UNIT)
    host.unit("sender.service", SENDER)
    return host


def boot(host: Host) -> dict[str, object]:
    found: dict[str, object] = host.task("speed_limit_info", gather=["boot"])["boot"]
    return found


def store(host: Host) -> None:
    """A rule, if none is there yet."""
    host.task("speed_limit_rule", name="sender", rate=str(RATE), bucket=str(BUCKET), persistent=True)


def entered(host: Host, unit: str) -> int:
    """When a unit became active, in microseconds of the monotonic clock."""
    return int(host.run("systemctl", "show", "--value", "--property=ActiveEnterTimestampMonotonic", unit))


def test_the_unit_is_as_systemd_wants_it(prepared: Host) -> None:
    assert prepared.run("systemd-analyze", "verify", "--man=no", f"{UNITS}/{UNIT}") == ""
    assert prepared.run("systemctl", "is-enabled", UNIT) == "enabled"


def test_where_the_command_comes_over_the_network_nothing_waits_for_itself(prepared: Host) -> None:
    prepared.unit("usr-local.mount", "[Mount]\nWhat=server:/local\nWhere=/usr/local\nType=nfs\nOptions=_netdev")
    prepared.unit(
        "net.service", "[Unit]\nAfter=network-pre.target\nBefore=network-online.target\n[Service]\nExecStart=true"
    )
    prepared.run("systemctl", "add-wants", "network-online.target", "net.service")
    try:
        said = prepared.run("systemd-analyze", "verify", "--man=no", f"{UNITS}/{UNIT}", fails=None)
        assert "cycle" not in said
    finally:
        prepared.run("systemctl", "disable", "net.service", fails=None)
        for name in ("usr-local.mount", "net.service", "network-online.target.wants/net.service"):
            prepared.path(f"{UNITS}/{name}").unlink(missing_ok=True)
        prepared.run("systemctl", "daemon-reload")


def test_who_stores_a_rule_is_warned_where_no_boot_makes_it(prepared: Host) -> None:
    prepared.run("systemctl", "disable", UNIT)
    try:
        options = {"name": "web", "rate": "1m", "persistent": True}
        (problem,) = prepared.task("speed_limit_rule", **options)["warnings"]
        assert problem.startswith("nothing applies what is stored") and boot(prepared)["problems"] == [problem]
    finally:
        prepared.run("systemctl", "enable", UNIT)
    assert not prepared.task("speed_limit_rule", **options)["warnings"]
    prepared.task("speed_limit_rule", name="web", state="absent")


def test_where_nothing_is_stored_a_boot_starts_nothing(prepared: Host) -> None:
    prepared.reboot()
    assert prepared.run("systemctl", "show", "--value", "--property=ConditionResult", UNIT) == "no"
    assert boot(prepared) == {"unit": "inactive", "enabled": True, "stored": [], "problems": [], "version": VERSION}
    assert prepared.task("speed_limit_info", gather=["program"])["program"] is None


def test_who_sends_from_the_network_on_is_never_unlimited(prepared: Host, network: Pair) -> None:
    prepared.task(
        "speed_limit_rule",
        name="sender",
        rate=str(RATE),
        bucket=str(BUCKET),
        cgroup_paths=["/system.slice/sender.service"],
        persistent=True,
    )
    prepared.run("systemctl", "enable", "sender")
    before, begun = network.arrived(), time.monotonic()
    prepared.reboot()
    until(lambda: network.arrived().packets > before.packets + 100)
    now = network.arrived()
    allowed = (
        RATE * (now.seconds - begun) + BUCKET + 64_000
    )  # with what systemd itself and neighbours say to each other
    assert now.bytes - before.bytes <= allowed
    order = [entered(prepared, unit) for unit in (UNIT, "network-pre.target", "network.target", "sender.service")]
    assert order[0] > 0 and order == sorted(order)
    (rule,) = prepared.task("speed_limit_info", gather=["rules"])["rules"]
    assert (rule["rate"], rule["bucket"], rule["persistent"]) == (RATE, BUCKET, True)
    until(lambda: prepared.task("speed_limit_info", gather=["rules"])["rules"][0]["counters"]["dropped_packets"] > 0)
    assert boot(prepared) == {
        "unit": "active",
        "enabled": True,
        "stored": ["sender"],
        "problems": [],
        "version": VERSION,
    }
    prepared.run("systemctl", "disable", "--now", "sender")
    assert "stored rules: 1 applied (1 changed), 0 refused" in prepared.run("journalctl", "-b", "-u", UNIT)


def test_a_restart_of_the_unit_changes_nothing_and_its_end_neither(prepared: Host) -> None:
    prepared.run("systemctl", "restart", UNIT)
    assert "1 applied (0 changed), 0 refused" in prepared.run("journalctl", "-b", "-u", UNIT)
    prepared.run("systemctl", "stop", UNIT)
    assert len(prepared.task("speed_limit_info", gather=["rules"])["rules"]) == 1


def test_a_bad_file_fails_the_unit_where_everybody_sees_it(prepared: Host) -> None:
    prepared.path(f"{RULES}/bad.json").write_text("{")
    prepared.reboot()
    assert prepared.run("systemctl", "is-failed", UNIT) == "failed"
    said = prepared.run("journalctl", "-b", "-u", UNIT)
    assert f"limiter: {RULES}/bad.json: it is no JSON" in said and "1 applied (1 changed), 1 refused" in said
    assert [rule["name"] for rule in prepared.task("speed_limit_info", gather=["rules"])["rules"]] == ["sender"]
    found = boot(prepared)
    assert found["unit"] == "failed" and len(list(found["problems"])) == 2  # type: ignore[call-overload]
    prepared.path(f"{RULES}/bad.json").unlink()


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (command.STARTER, "status=203/EXEC"),
        ("/usr/lib/speed_limiter/limiter.bpf.o", "built /usr/lib/speed_limiter/limiter.bpf.o"),
    ],
    ids=["command", "object"],
)
def test_what_the_boot_needs_and_lacks_is_told(prepared: Host, lost: str, words: str) -> None:
    store(prepared)
    away = Path(f"{lost}.away")
    Path(lost).rename(away)
    try:
        prepared.reboot()
        # Not by the journal alone: what systemd itself says before journald runs goes to the kernel's log.
        until(lambda: words in prepared.run("systemctl", "status", "--no-pager", "--full", UNIT, fails=None))
        failed = prepared.run("systemctl", "show", "--value", "--property=ActiveState", UNIT) == "failed"
        assert failed == any("has failed" in problem for problem in boot(prepared)["problems"])  # type: ignore[attr-defined]
    finally:
        away.rename(lost)


def test_the_command_says_what_it_stores(prepared: Host) -> None:
    store(prepared)
    limiter = (command.STARTER,)
    prepared.run(*limiter, "set", "--name", "web", "-r", "1m", "--persistent")
    assert json.loads(prepared.path(f"{RULES}/web.json").read_text())["rate"] == 1 << 20
    prepared.path(f"{RULES}/bad.json").write_text("[]")
    text = prepared.run(*limiter, "restore", fails=True)
    assert text.splitlines() == [
        f"limiter: {RULES}/bad.json: it holds no JSON object. (bad_file)",
        "stored rules: 2 applied (0 changed), 1 refused",
    ]
    prepared.path(f"{RULES}/bad.json").unlink()
    assert "persistent" in prepared.run(*limiter, "set", "--name", "web", "--no-persistent", "--diff")
    assert not prepared.path(f"{RULES}/web.json").exists()
