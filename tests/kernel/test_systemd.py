# SPDX-License-Identifier: GPL-3.0-or-later
"""The host with systemd that other tests use."""

from __future__ import annotations

from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import Host

SLEEP = "[Service]\nExecStart=/bin/sleep infinity"


def test_it_runs_services_in_cgroups_that_a_test_sees(host: Host) -> None:
    host.unit("a.service", SLEEP)
    host.run("systemctl", "start", "a")
    assert host.run("systemctl", "is-system-running") == "running"
    cgroup = host.cgroup("/system.slice/a.service")
    assert host.cgroup_of(int((cgroup / "cgroup.procs").read_text())) == "/system.slice/a.service"
    assert "0::/init.scope" in host.run("cat", "/proc/self/cgroup")
    host.run("systemctl", "stop", "a")
    assert not cgroup.exists()


def test_users_have_slices_while_they_are_logged_in(host: Host) -> None:
    host.user("joe", 1000)
    host.run("loginctl", "enable-linger", "joe")
    until(host.cgroup("/user.slice/user-1000.slice/user@1000.service/init.scope").exists)
    host.run("loginctl", "disable-linger", "joe")
    until(lambda: not host.cgroup("/user.slice/user-1000.slice").exists())


def test_modules_run_inside(host: Host) -> None:
    made = host.task("speed_limit_rule", name="a", rate="1m")
    assert made["rule"]["cgroup_path"] == "/sys/fs/cgroup/speed_limiter/a"
    assert host.cgroup("/speed_limiter/a").is_dir()
    assert host.refused("speed_limit_rule", name="b").startswith("rate_needed: ")


def test_a_reboot_keeps_files_and_enabled_units_and_nothing_else(host: Host) -> None:
    host.unit("b.service", f"{SLEEP}\n[Install]\nWantedBy=multi-user.target")
    host.run("systemctl", "enable", "b")
    host.path("/run/trace").touch()
    host.task("speed_limit_rule", name="a", rate="1m")
    host.reboot()
    assert host.cgroup("/system.slice/b.service").is_dir()
    assert not host.path("/run/trace").exists() and not host.cgroup("/speed_limiter").exists()
    assert host.task("speed_limit_info", gather=["rules"])["rules"] == []
