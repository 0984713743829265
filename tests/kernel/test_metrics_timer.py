# SPDX-License-Identifier: GPL-3.0-or-later
"""The timer that the role installs for metrics, on a host with systemd."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
from ansible_collections.speed_limiter.ebpf.tests.support.children import until
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import CHECKOUT, UNITS, Host
from prometheus_client.parser import text_string_to_metric_families

# As awkward as a directory may be for systemd.
DIRECTORY = '/var/lib/text "file" 100% $HOME'
TEMPLATES = CHECKOUT / "roles/setup/templates"
NAMES = ("speed_limiter_metrics.service", "speed_limiter_metrics.timer")


def unit(name: str, directory: str) -> str:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["to_json"] = json.dumps
    template = environment.from_string((TEMPLATES / f"{name}.j2").read_text(encoding="utf-8"))
    return template.render(setup_metrics_file=f"{directory}/speed_limiter.prom")


@pytest.fixture(scope="module")
def prepared(host: Host) -> Host:
    """As the role leaves it."""
    host.task("speed_limit_program")
    host.task("speed_limit_command")
    host.run("mkdir", "-p", DIRECTORY)
    for name in NAMES:
        host.unit(name, unit(name, DIRECTORY))
    host.run("systemctl", "enable", NAMES[1])
    return host


def written(host: Host) -> Path:
    """The file, by a path of this boot."""
    return host.path(f"{DIRECTORY}/speed_limiter.prom")


def figures(host: Host) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(written(host).read_text(encoding="utf-8")):
        found.update({sample.name: sample.value for sample in family.samples})
    return found


def test_the_units_are_as_systemd_wants_them(prepared: Host) -> None:
    paths = [f"{UNITS}/{name}" for name in NAMES]
    assert prepared.run("systemd-analyze", "verify", "--man=no", *paths) == ""


def test_figures_are_written_and_written_again_after_a_boot(prepared: Host) -> None:
    prepared.run("systemctl", "restart", NAMES[1])
    until(lambda: written(prepared).exists())
    assert figures(prepared)["speed_limiter_rules"] == 0
    prepared.task("speed_limit_rule", name="backup", rate="1m")
    prepared.run("systemctl", "start", NAMES[0])
    assert figures(prepared)["speed_limiter_rule_limit_bytes_per_second"] == 2**20
    written(prepared).unlink()
    prepared.reboot()
    until(lambda: written(prepared).exists())
    assert figures(prepared)["speed_limiter_rules"] == 0
