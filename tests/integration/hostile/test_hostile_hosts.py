# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller does with hosts that answer anything at all, as whoever is root on them can.

Needs no root and changes nothing: in place of a host's Python, a script keeps what it is sent and prints the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

# The newest and the oldest ansible-core, as tools/setup made them.
PLAYBOOKS = sorted(Path(__file__).parents[3].glob(".venv*/bin/ansible-playbook"))


class Fleet:
    """Two hosts that are hostile, and a directory from which playbooks are run."""

    def __init__(self, directory: Path, playbook: Path) -> None:
        self._playbook = playbook
        self.here, self.sent = directory / "here", directory / "sent"
        self.here.mkdir()
        self._answer, self._python = directory / "answer.json", directory / "python"
        self._python.write_text(f"#!/bin/sh\ncat >>'{self.sent}'\ncat '{self._answer}'\n")
        self._python.chmod(0o755)
        self.variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": str(self._python),
            "ansible_remote_tmp": str(directory / "tmp"),
        }
        self.environment = {
            **os.environ,
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
            "ANSIBLE_INVENTORY": str(directory / "hosts.json"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
        }
        (directory / "ansible.cfg").write_text("[defaults]\n")

    def answers(self, **facts: object) -> None:
        """From now on all hosts say this of every module."""
        answer = {"changed": False, "rules": [{"name": "x"}], "ansible_facts": facts}
        self._answer.write_text(json.dumps(answer))

    def play(self, *words: str) -> tuple[int, str]:
        inventory = {"all": {"hosts": {"one": None, "two": None}, "vars": self.variables}}
        Path(self.environment["ANSIBLE_INVENTORY"]).write_text(json.dumps(inventory))
        done = subprocess.run(
            [self._playbook, *words], cwd=self.here, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout


@pytest.fixture(params=PLAYBOOKS, ids=[path.parts[-3] for path in PLAYBOOKS])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, request.param)


def test_a_host_names_no_file_that_the_report_writes(fleet: Fleet, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    fleet.answers(**{f"speed_limiter_report_{form}": str(victim) for form in ("file", "json", "html")})
    fleet.variables.update(speed_limiter_rules={}, speed_limiter_report_json="")
    status, said = fleet.play("speed_limiter.ebpf.report")
    assert status == 0 and victim.read_text() == "untouched", said
    # What the inventory has for all holds, and the option over it.
    assert [path.name for path in sorted(fleet.here.iterdir())] == [
        "speed_limiter_report.html",
        "speed_limiter_report.txt",
    ]
    assert "2 hosts: 0 as wanted, 2 differ" in (fleet.here / "speed_limiter_report.txt").read_text()
    status, said = fleet.play(
        "speed_limiter.ebpf.report", "--limit", "two", "-e", "speed_limiter_report_file=named.txt"
    )
    assert status == 0 and (fleet.here / "named.txt").exists() and (fleet.here / "named.html").exists(), said


def test_a_host_does_not_say_what_is_a_failure(fleet: Fleet) -> None:
    fleet.answers(speed_limiter_report_fail=[])
    fleet.variables.update(speed_limiter_rules={}, speed_limiter_report_fail="drift")
    status, said = fleet.play("speed_limiter.ebpf.report")
    assert status == 2 and "2 of 2 hosts differ from what is wanted." in said
