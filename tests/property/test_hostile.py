# SPDX-License-Identifier: GPL-3.0-or-later
"""The BPF headers in user space, with sanitizers: any packet, and any state that somebody may have left in a map.

HOSTILE_CASES=35000000 pytest tests/property/test_hostile.py tries more than a hundred million packets.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CASES = int(os.environ.get("HOSTILE_CASES", "100000"))
SEED = os.environ.get("HOSTILE_SEED", "1")


def survives(program: str, place: Path) -> None:
    """An access beyond memory, or what C does not define, ends the program with an error that says where."""
    command = ["gcc", "-O1", "-g", "-Wall", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-I", str(HERE.parents[1] / "bpf"), "-o", str(place / program), str(HERE / "hostile" / f"{program}.c")]
    subprocess.run(command, check=True)
    done = subprocess.run([place / program, str(CASES), SEED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_header_is_measured_without_an_error_of_memory(tmp_path: Path) -> None:
    survives("packets", tmp_path)


def test_hostile_states_break_no_rule_of_the_language(tmp_path: Path) -> None:
    """And pass no more than the limit."""
    survives("states", tmp_path)


def test_an_error_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "bpf").mkdir()
    for header in (HERE.parents[1] / "bpf").glob("*.h"):
        text = header.read_text(encoding="ascii")
        if header.name == "wire.h":
            assert "WIRE_TCP_HEADER <= end)" in text
            text = text.replace("WIRE_TCP_HEADER <= end)", "WIRE_TCP_HEADER <= end + 8)")
        (tmp_path / "bpf" / header.name).write_text(text, encoding="ascii")
    program = tmp_path / "broken"
    command = ["gcc", "-O1", "-fsanitize=address", "-I", str(tmp_path / "bpf"), "-o", str(program)]
    subprocess.run([*command, str(HERE / "hostile" / "packets.c")], check=True)
    done = subprocess.run([program, str(CASES), SEED], capture_output=True, text=True, check=False)
    assert "heap-buffer-overflow" in done.stderr
