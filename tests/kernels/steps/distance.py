# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of tests/kernels/distance, which write their own result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

directory = Path(sys.argv[1])
options = json.loads((directory / "options.json").read_text(encoding="utf-8"))
command = [sys.executable, "tests/kernels/distance/run", str(directory / "distance.json")]
if options["quick"]:
    command.append("--quick")
# Compiling takes longer than a round of cells.
if Path(options["shared_object"]).exists():
    command += ["--object", options["shared_object"]]
os.execv(sys.executable, command)
