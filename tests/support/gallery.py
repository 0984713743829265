# SPDX-License-Identifier: GPL-3.0-or-later
"""What draws each picture of docs/pictures, written into it, so that an old picture is found."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from .systemd import CHECKOUT

PICTURES = CHECKOUT / "docs" / "pictures"
_REPORT = [CHECKOUT / "plugins" / "plugin_utils" / "_report" / f"page.{part}" for part in ("css", "html", "js")]
_TOP = [CHECKOUT / "plugins" / "module_utils" / "_limiter" / "front" / "cli" / "top" / "lines.py"]
# What draws it, and the command that makes it anew.
SOURCES: dict[str, tuple[Sequence[Path], str]] = {
    "dashboard.svg": ([CHECKOUT / "docs" / "metrics" / "dashboard.json"], "make dashboard"),
    "report.png": (_REPORT, "make pictures"),
    "report-hosts.png": (_REPORT, "make pictures"),
    "report-phone.png": (_REPORT, "make pictures"),
    "top.svg": (_TOP, "make guide"),
    "top-connections.svg": (_TOP, "make guide"),
}
_PNG_END = struct.pack(">I", 0) + b"IEND"
_KEYWORD = b"Description"  # of PNG's own list


def drawn_by(name: str) -> str:
    """What the picture of this name is to have in it."""
    sources, _command = SOURCES[name]
    checksum = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return f"{' '.join(source.name for source in sources)} {checksum}"


def said_by(path: Path) -> str:
    """What the picture has in it, or nothing."""
    data = path.read_bytes()
    pattern = rb"tEXt" + _KEYWORD + rb"\0([ -~]*[0-9a-f]{64})" if path.suffix == ".png" else rb"<desc>([^<]*)</desc>"
    found = re.search(pattern, data)
    return found[1].decode() if found else ""


def sign(path: Path) -> None:
    """Writes it into a PNG: a chunk of text before its end."""
    data = path.read_bytes()
    text = b"tEXt" + _KEYWORD + b"\0" + drawn_by(path.name).encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    body, end, rest = data.rpartition(_PNG_END)
    path.write_bytes(body + chunk + end + rest)
