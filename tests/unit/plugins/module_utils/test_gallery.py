# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of docs/gallery.md are of this version."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import gallery


@pytest.mark.parametrize("name", gallery.SOURCES)
def test_a_picture_is_of_what_is_drawn_here(name: str) -> None:
    """Otherwise run the command again that makes it."""
    path = gallery.PICTURES / name
    assert gallery.said_by(path) == gallery.drawn_by(name), gallery.SOURCES[name][1]


def test_the_gallery_shows_these_pictures_and_says_how_each_is_made() -> None:
    page = gallery.PICTURES.with_name("gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(pictures/([\w.-]+)\)", page)
    assert sorted(shown) == sorted(gallery.SOURCES) == sorted(path.name for path in gallery.PICTURES.iterdir())
    for name, (_sources, command) in gallery.SOURCES.items():
        assert f"`{command}`" in page[: page.index(f"pictures/{name}")]


def test_a_picture_that_is_signed_is_still_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    path.write_bytes((gallery.PICTURES / "report.png").read_bytes())
    gallery.sign(path)
    data, place = path.read_bytes(), 8
    kinds = []
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunk = data[place + 4 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(chunk)
        kinds.append(chunk[:4])
        place += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-2:] == [b"tEXt", b"IEND"]
