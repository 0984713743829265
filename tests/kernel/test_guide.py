# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md shows what its commands print: anew, each prints the same but for numbers, ids and times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import guide
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

pytestmark = pytest.mark.skipif(SLOW, reason="an emulated machine's senders are behind their limits")
TRIES = 5  # a busy machine withholds from a sender what it would use


@pytest.fixture(scope="module")
def guided() -> Iterator[guide.Guided]:
    with guide.guided() as it:
        yield it


@pytest.mark.parametrize("name", guide.BLOCKS)
def test_the_guide_shows_what_its_commands_print(guided: guide.Guided, name: str) -> None:
    wanted = guide.form(guide.shown(guide.PAGE.read_text(encoding="utf-8"))[name])
    printed: list[str] = []
    while not printed or guide.form(printed[-1]) != wanted:
        assert len(printed) < TRIES, f"run `make guide`; wanted {wanted!r}, printed {guide.form(printed[-1])!r}"
        printed.append(guided.block(name))
