# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other programs of the host that are asked for something; none may keep a task waiting.

shutil and subprocess are imported where they are used: that takes time, and most tasks ask nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import typing as t

from ..core.errors import LimiterError

SECONDS = 20.0  # for all that a task asks
# sbin: where some distributions have what root uses, and where a task's PATH may not lead
_PLACES = "/usr/local/bin:/usr/bin:/usr/sbin:/sbin"


class Patience:
    """The time for all questions of a task. Each may take half of what is left: who does not answer leaves time for
    those who are asked next.
    """

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS

    def ask(self, arguments: t.Sequence[str]) -> tuple[int, str, str]:
        """As `ask`."""
        return ask(arguments, max(0.0, self._end - time.monotonic()) / 2)


def find(command: str) -> str | None:
    """The path of a program."""
    import shutil

    return shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:{_PLACES}")


def ask(arguments: t.Sequence[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Runs a program, without a shell: exit code, output, errors. It is ended if it does not answer in time.

    Raises LimiterError ``no_answer``.
    """
    import subprocess

    name = os.path.basename(arguments[0])
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', os.defpath)}:{_PLACES}"},
        )
    except OSError as error:
        raise LimiterError("no_answer", f"{name} cannot be run", error.strerror or "", f"Run {arguments[0]}") from None
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Also what it has started: that may keep the pipes open.
        os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a disk, say
            process.wait(1)
        raise LimiterError(
            "no_answer",
            f"{name} does not answer",
            f"it was ended after {seconds:.3g} seconds",
            f"Run it yourself: {' '.join(arguments[:3])} ...",
        ) from None
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
    return process.returncode, os.fsdecode(output), os.fsdecode(errors)


def lines(text: str) -> list[str]:
    """What a program said, each line short enough for an error."""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return [line if len(line) <= 200 else f"{line[:197]}..." for line in found]
