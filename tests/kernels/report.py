# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found, as a table on the terminal and as docs/kernels.md, which is made of docs/kernels/*.json alone."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from machine import CHECKOUT

STORED = CHECKOUT / "docs/kernels"
PAGE = CHECKOUT / "docs/kernels.md"

Results = dict[str, dict[str, Any]]


def passed(results: Results, steps: list[str]) -> bool:
    """Whether every step on every kernel was run and was as it should be."""
    return all(not why(result, step) for result in results.values() for step in steps)


def why(result: dict[str, Any], step: str) -> str | None:
    """Why a step failed; a step that was not run has failed."""
    if result["wrong"]:
        return str(result["wrong"])
    found = result["steps"].get(step)
    return "it was not run" if found is None else found.get("wrong")


def table(results: Results, steps: list[str]) -> str:
    """Kernel x step, and below it a line for each failure."""
    rows = [["kernel", "release", *steps]]
    rows += [
        [name, result.get("release", "-"), *(cell(result, step) for step in steps)] for name, result in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["", *("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)]
    failures = {
        f"{name}: {why(result, step)}" for name, result in results.items() for step in steps if why(result, step)
    }
    return "\n".join([*lines, *(f"FAILED {failure}" for failure in sorted(failures))])


def cell(result: dict[str, Any], step: str) -> str:
    """One step on one kernel, in a few words."""
    if why(result, step):
        return "FAILED"
    found = result["steps"][step]
    counts = f"{found['passed']} of {found['tests']}" if step == "tests" else "passed"
    return f"{counts}, {found['seconds']} s"
