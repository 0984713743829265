# SPDX-License-Identifier: GPL-3.0-or-later
"""What the steps share. Each is a program that a guest runs in a sandbox, from the checkout's root:
    .venv/bin/python tests/vm/steps/STEP.py DIRECTORY
It prints its progress, writes what it found to DIRECTORY/STEP.json, and ends with 0 when all is as it should be.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PINS = Path("/sys/fs/bpf/speed_limiter")
BUILT = Path("/usr/lib/speed_limiter/limiter.bpf.o")


class Wrong(Exception):
    """What is not as it should be, in one line."""


class Step:
    """One run of a step: its directory, the harness's options, and what is found meanwhile."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.options: dict[str, Any] = json.loads((directory / "options.json").read_text(encoding="utf-8"))
        self.found: dict[str, Any] = {}

    def keep(self) -> None:
        """Writes what was found so far, which is there whatever happens to the guest."""
        unfinished = self.directory / f"{self.name}.json.new"
        unfinished.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        unfinished.rename(self.directory / f"{self.name}.json")

    def playbook(self, name: str, *arguments: str, **variables: object) -> dict[str, int]:
        """Runs one of the playbooks beside the steps; gives how much each play changed, by its name, and fails where a
        task did. A task "Wait: NAME" that reads from the fifo ``fifo`` goes on when `observe` (NAME) has returned.
        """
        own = {"HOME": "/tmp/ansible", "REMOTE_TEMP": "/tmp/ansible/tmp", "NOCOLOR": "1", "PIPELINING": "1"}
        environment = {**os.environ, **{f"ANSIBLE_{key}": value for key, value in own.items()}}
        fifo = Path(tempfile.mkdtemp()) / "fifo"
        os.mkfifo(fifo)
        gate = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)  # which waits for no reader: it may have ended
        variables["fifo"] = str(fifo)
        path = f"tests/vm/steps/{name}.yml"
        command = [".venv/bin/ansible-playbook", path, "-e", json.dumps(variables), *arguments]
        self.output: list[str] = []
        changes: dict[str, int] = {}
        log = self.directory / f"{name}.log"
        with log.open("a", encoding="utf-8") as file, running(command, environment) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    self.output.append(line.rstrip())
                    file.write(line)
                    if play := re.match(r"PLAY \[(.*)\]", line):
                        changes[play[1]] = 0
                    elif line.startswith("changed: "):
                        changes[list(changes)[-1]] += 1
                    if re.match(r"PLAY|TASK|fatal|ERROR", line):
                        print(line.rstrip(" *\n"), flush=True)
                    if waiting := re.match(r"TASK \[Wait: (.*)\]", line):
                        self.observe(waiting[1])
                        os.write(gate, b"\n")
            finally:
                process.kill()
                os.close(gate)
        if process.returncode or not changes:
            raise Wrong(f"ansible-playbook {name} {' '.join(arguments)} ended with {process.returncode}: {self.last()}")
        return changes

    def observe(self, when: str) -> None:
        """What a step looks at while a playbook waits."""

    def last(self) -> str:
        """What Ansible said of the task that failed, or the last that it said."""
        said = [line for line in self.output if re.match(r"fatal|ERROR|\[ERROR", line)] or self.output[-1:]
        return " ".join(said)[:2000]


def running(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def main(name: str, work: Callable[[Any], None], kind: type[Step] = Step) -> None:
    """Runs a step to its end and writes its result, whatever happens in it."""
    step = kind(name, Path(sys.argv[1]))
    try:
        work(step)
        step.found["wrong"] = None
    except Wrong as error:
        step.found["wrong"] = str(error)
    except Exception as error:
        traceback.print_exc()
        step.found["wrong"] = f"{type(error).__name__}: {error}"
    step.keep()
    if step.found["wrong"]:
        print(f"FAILED: {step.found['wrong']}", flush=True)
    sys.exit(bool(step.found["wrong"]))
