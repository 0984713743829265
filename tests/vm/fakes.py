# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels for tests of the harness, in a cache as a fetch leaves it; and the harness, run with such a cache."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

RELEASE = "0.0.1-amd64"
RUN = Path(__file__).resolve().with_name("run")


def halting() -> bytes:
    """A Linux image, as far as boot loaders look, which halts the processor for good instead of booting."""
    image = bytearray(6 * 512)  # the boot sector, four more of set-up code, and one of a kernel that is never entered
    image[0x1F1] = 4
    struct.pack_into("<I", image, 0x1F4, 512 // 16)
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x206] = b"\xeb\x66HdrS"  # a jump over this header, to 0x268
    struct.pack_into("<HIHH", image, 0x206, 0x20A, 0, 0, 0x100)  # the protocol's version; the release is 0x100 on
    image[0x211] = 1
    struct.pack_into("<I", image, 0x214, 0x100000)
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<I", image, 0x230, 0x1000)
    image[0x268:0x26C] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; and again, should anything wake it
    image[0x300 : 0x300 + len(RELEASE) + 1] = RELEASE.encode() + b"\0"
    return bytes(image)


def keep(cache: Path, name: str, image: bytes) -> None:
    """Puts a kernel into a cache, as the newest of its suite and series."""
    place = cache / name
    (place / "root/boot").mkdir(parents=True)
    (place / "root/lib/modules" / RELEASE).mkdir(parents=True)
    (place / "root/boot" / f"vmlinuz-{RELEASE}").write_bytes(image)
    (place / "kernel.json").write_text(json.dumps({"release": RELEASE, "package": "0.0.1-1"}), encoding="ascii")


def harness(cache: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """The exit status, and the lines that tell of a failure; no traceback may be among the others."""
    command = [sys.executable, str(RUN), "--quick", "--cache", str(cache), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, [line for line in done.stdout.splitlines() if "FAILED:" in line]
