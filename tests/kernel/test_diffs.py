# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever changes shows in the diff, foretold or done."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.tests.support import limiter


@pytest.fixture(autouse=True)
def loaded() -> Iterator[None]:
    with limiter.clean_host():
        limiter.program()
        yield


def assert_told(before: str, after: str, **options: object) -> None:
    foretold, done = (limiter.task("speed_limit_program", check=check, **options) for check in (True, False))
    assert foretold["changed"] and done["changed"]
    assert foretold["diff"] == done["diff"]
    sides = done["diff"]["before"], done["diff"]["after"]
    assert sides[0] != sides[1]
    assert (before in sides[0], after in sides[1]) == (True, True), sides


def test_the_same_program_loaded_again() -> None:
    assert_told("pacing on", "pacing on, loaded again", state="reloaded")


def test_maps_removed_after_the_program() -> None:
    limiter.rule(name="web", rate="1m")
    limiter.program(state="absent")
    limiter.purge()
    assert os.path.isdir(pins.PIN_DIR)
    assert_told("maps: without a rule", "maps: absent", state="absent")
