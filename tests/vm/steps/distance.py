# SPDX-License-Identifier: GPL-3.0-or-later
"""The cells of tests/vm/distance, which write their own result."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

directory = Path(sys.argv[1])
options = json.loads((directory / "options.json").read_text(encoding="utf-8"))
command = [sys.executable, "tests/vm/distance/run", str(directory / "distance.json")]
if options["quick"]:
    command.append("--quick")
command += ["--only", options["cells"]]
# Compiling takes longer than a round of cells.
if Path(options["shared_object"]).exists():
    command += ["--object", options["shared_object"]]
# From a file system of the guest's own: the share's files are read a page at a time, which its clock counts.
command += ["--programs", shutil.copytree(options["programs"], "/run/programs")]
os.execv(sys.executable, command)
