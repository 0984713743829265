# SPDX-License-Identifier: GPL-3.0-or-later
"""The BPF headers in user space, with sanitizers: any packet, and any state that somebody may have left in a map.

`make fuzz RUNS=100000000` tries more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
BPF = HERE.parents[1] / "bpf"
RUNS = {"packets": 200_000, "states": 50_000, "connections": 50_000, "budgets": 20_000}


def fuzzed(program: str, bpf: Path = BPF) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "fuzz"), f"--runs={RUNS[program]}", f"--bpf={bpf}", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    return done


@pytest.mark.parametrize("program", RUNS)
def test_whatever_comes_nothing_is_computed_that_is_not_defined_and_what_must_hold_does(program: str) -> None:
    done = fuzzed(program)
    assert done.returncode == 0, done.stderr


def test_an_error_would_be_seen(tmp_path: Path) -> None:
    for header in BPF.glob("*.h"):
        text = header.read_text(encoding="ascii")
        if header.name == "wire.h":
            assert "WIRE_TCP_HEADER <= end)" in text
            text = text.replace("WIRE_TCP_HEADER <= end)", "WIRE_TCP_HEADER <= end + 8)")
        (tmp_path / header.name).write_text(text, encoding="ascii")
    done = fuzzed("packets", tmp_path)
    assert done.returncode == 1
    assert "heap-buffer-overflow" in done.stdout
