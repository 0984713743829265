# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiles the programs of traffic into a directory, where traffic.Link finds them: bench/programs.py DIRECTORY"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def compile_into(directory: Path) -> None:
    """Raises CalledProcessError; the compiler has said why by then."""
    for name in ("send", "receive", "ask", "answer", "attack"):
        subprocess.run(["cc", "-O2", "-o", directory / name, HERE / f"{name}.c"], check=True)


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]))
