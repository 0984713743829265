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
import yaml

ROOT = Path(__file__).parents[3]
# The newest and the oldest ansible-core, as tools/setup made them.
PLAYBOOKS = sorted(ROOT.glob(".venv*/bin/ansible-playbook"))


class Fleet:
    """Two hosts that are hostile, and a directory from which playbooks are run."""

    def __init__(self, directory: Path, playbook: Path) -> None:
        self._playbook = playbook
        self.here, self._sent, self._files = directory / "here", directory / "sent", directory / "tmp"
        self.here.mkdir()
        self._answer, self._python = directory / "answer.json", directory / "python"
        self._python.write_text(f"#!/bin/sh\ncat >>'{self._sent}'\ncat '{self._answer}'\n")
        self._python.chmod(0o755)
        self.variables: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": str(self._python),
            "ansible_remote_tmp": str(self._files),
        }
        self.environment = {
            **os.environ,
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
            "ANSIBLE_INVENTORY": str(directory / "hosts.json"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_KEEP_REMOTE_FILES": "1",
            "ANSIBLE_NOCOLOR": "1",
        }
        (directory / "ansible.cfg").write_text("[defaults]\n")

    def answers(self, **facts: object) -> None:
        """From now on all hosts say this of every module."""
        host = {"missing": [], "libbpf": "1.1.2", "clang": "/usr/bin/clang"}
        answer = {
            "changed": False,
            "rules": [{"name": "x"}],
            "host": host,
            "stat": {"exists": False},
            "ansible_facts": facts,
        }
        self._answer.write_text(json.dumps(answer))

    def play(self, *words: str) -> tuple[int, str]:
        inventory = {"all": {"hosts": {"one": None, "two": None}, "vars": self.variables}}
        Path(self.environment["ANSIBLE_INVENTORY"]).write_text(json.dumps(inventory))
        done = subprocess.run(
            [self._playbook, *words], cwd=self.here, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def has(self, content: bytes) -> bool:
        """Whether this was sent to a host: with a module, or as a file."""
        files = [path for path in (self._sent, *self._files.rglob("*")) if path.is_file()]
        return any(content in path.read_bytes() for path in files)


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


SECRET = b"what only the controller has"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def prepare(fleet: Fleet, gather_facts: bool = False, **variables: object) -> tuple[int, str]:
    role = {"role": "speed_limiter.ebpf.setup", "vars": {"setup_manage_packages": False, **variables}}
    play = {"name": "Prepare the hosts", "hosts": "all", "gather_facts": gather_facts, "roles": [role]}
    (fleet.here / "setup.yml").write_text(json.dumps([play]))
    return fleet.play("setup.yml")


def test_a_host_is_sent_the_object_that_was_asked_for_and_no_file_that_it_names(fleet: Fleet, secret: Path) -> None:
    wanted = secret.with_name("limiter.bpf.o")
    wanted.write_bytes(b"the object")
    cases: tuple[dict[str, Any], ...] = ({}, {"setup_object_from": "file", "setup_object": str(wanted)})
    for variables in cases:
        fleet.answers(setup_object_from="file", setup_object=str(secret), setup_copied_object=str(secret))
        status, said = prepare(fleet, **variables)
        assert not fleet.has(SECRET), said
        assert fleet.has(b"the object") == bool(variables), said


def test_a_host_does_not_name_the_host_that_compiles_for_all(fleet: Fleet) -> None:
    fleet.answers(setup_object_from="builder", setup_build_host="two")
    _status, said = prepare(fleet)
    assert "Load the program" in said and "Fetch the object" not in said and "-> two" not in said, said


def test_a_host_that_gives_variables_of_the_role_before_it_begins_is_refused(fleet: Fleet, secret: Path) -> None:
    fleet.answers(setup_object_from="file", setup_object=str(secret))
    status, said = prepare(fleet, gather_facts=True)
    assert status == 2 and not fleet.has(SECRET)
    assert "one has facts that are called like variables of this role (setup_object, setup_object_from)" in said
    assert "Load the program" not in said


def test_the_role_keeps_all_its_variables() -> None:
    def part(name: str) -> Any:
        return yaml.safe_load((ROOT / "roles" / "setup" / name).read_text(encoding="utf-8"))

    options = set(part("meta/argument_specs.yml")["argument_specs"]["main"]["options"])
    assert set(part("vars/main.yml")["setup_variables"]) == options
    assert part("tasks/main.yml")[-1]["vars"] == {name: f"{{{{ setup_asked.{name} }}}}" for name in options}
