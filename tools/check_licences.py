# SPDX-License-Identifier: GPL-3.0-or-later
"""Fails where files do not say their licence: SPDX line at the top; for C GPL-2.0-or-later or else GPL-3.0-or-later.

Python below plugins/ begins with the full three lines that ansible-test and the community's rules want.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

# Documents and data that have no place for a comment, or that a tool writes; REUSE.toml states their licence.
STATED_IN_REUSE = {".md", ".rst", ".json"}
STATED_IN_REUSE_FILES = {"changelogs/changelog.yaml"}
PLUGIN_HEADER = (
    "# Copyright (c) 2026, the speed_limiter.ebpf contributors",
    "# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "# SPDX-License-Identifier: GPL-3.0-or-later",
)


def complaint(path: pathlib.Path) -> str | None:
    """Says what is wrong with the header of one file, if anything is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    licence = "GPL-2.0-or-later" if path.suffix in (".c", ".h") else "GPL-3.0-or-later"
    found = [line for line in lines[:5] if "SPDX-License-Identifier:" in line]
    if not found:
        return f"no SPDX-License-Identifier in the first five lines, {licence} is expected"
    if found[0].split("SPDX-License-Identifier:")[1].split()[0] != licence:
        return f"{found[0]!r}, {licence} is expected"
    if path.parts[0] == "plugins" and path.suffix == ".py":
        begin = 1 if lines[0].startswith("#!") or "coding" in lines[0] else 0
        if tuple(lines[begin : begin + 3]) != PLUGIN_HEADER:
            return "does not begin with the three header lines of core/errors.py"
    return None


def main() -> int:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    bad = 0
    for path in map(pathlib.Path, sorted(filter(None, names))):
        stated = path.suffix in STATED_IN_REUSE or str(path) in STATED_IN_REUSE_FILES or path.parts[0] == "LICENSES"
        if stated or not path.is_file() or path.stat().st_size == 0:
            continue
        wrong = complaint(path)
        if wrong:
            print(f"{path}: {wrong}")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
