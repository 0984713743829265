# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether packets may wait stays as it was said, also while no program is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import limiter

ON, OFF = "switched departure times on", "switched departure times off"
RELOAD = """
import sys
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.main import main
sys.exit(main(["reload"]))
"""


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    """A host with a rule, no program, and departure times off."""
    with limiter.clean_host():
        limiter.rule(name="web", rate="1m")
        assert limiter.program(departure="off", check=True)["actions"] == [OFF]
        limiter.program(departure="off")
        limiter.program(state="absent")
        yield


def state() -> str:
    return str(limiter.info(gather=["program"])["program"]["departure"]["state"])


def test_a_check_says_what_a_load_then_switches() -> None:
    for wanted, last in (("off", "loaded"), ("auto", ON)):
        foretold = limiter.program(departure=wanted, check=True)["actions"]
        done = limiter.program(departure=wanted)["actions"]
        assert (OFF in foretold, ON in foretold) == (OFF in done, ON in done) == (False, last == ON)
        limiter.program(state="absent")


def test_a_task_of_a_rule_and_a_command_that_load_leave_it_off() -> None:
    limiter.rule(name="web", rate="2m")
    assert state() == "off"
    limiter.program(state="absent")
    subprocess.run([sys.executable, "-c", RELOAD], check=True)
    assert state() == "off"
