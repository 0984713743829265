# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md shows what its commands print: anew, each prints the same but for numbers, ids and times."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pyte
import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import guide, picture
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

pytestmark = pytest.mark.skipif(SLOW, reason="an emulated machine's senders are behind their limits")
TRIES = 5  # a busy machine withholds from a sender what it would use


@pytest.fixture(scope="module")
def guided() -> Iterator[guide.Guided]:
    with guide.guided() as it:
        yield it


@pytest.mark.parametrize("name", guide.BLOCKS)
def test_the_guide_shows_what_its_commands_print(guided: guide.Guided, name: str) -> None:
    wanted = guide.shown(guide.PAGE.read_text(encoding="utf-8"))[name]
    printed: list[str] = []
    while not printed or not guide.alike(name, printed[-1], wanted):
        assert len(printed) < TRIES, f"run `make guide`; it would be:\n{printed[-1]}"
        printed.append(guided.block(name))


def test_a_picture_of_a_terminal_has_its_text_in_place_and_in_colour() -> None:
    screen = pyte.Screen(20, 5)
    pyte.Stream(screen).feed("\x1b[7m<a & b>\x1b[0m \x1b[31mred\x1b[0m\r\n\r\nlast")
    drawn = ElementTree.fromstring(picture.svg(screen, "what it shows"))
    texts = {one.text: one.attrib for one in drawn if one.tag.endswith("text")}
    assert [*texts] == ["<a\u00a0&\u00a0b>", "red", "last"]
    assert texts["<a\u00a0&\u00a0b>"]["fill"] == picture.PAPER
    assert texts["red"]["fill"] == picture.COLOURS["red"]
    assert int(texts["red"]["x"]) == picture.MARGIN + 8 * picture.WIDTH
    assert int(drawn.attrib["height"]) == 3 * picture.HEIGHT + 2 * picture.MARGIN
