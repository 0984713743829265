# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Regular expressions over text that any user of the host may write, such as the command line of his process.

Python's `re` may take for ever over some text, and nothing interrupts it: while it searches, no signal handler runs. So
a child process searches, which the kernel ends when it has used its time.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
import typing as t

MOST_CHARACTERS = 131_072  # of a text; what follows is not looked at
SECONDS = 5.0  # for one expression over all texts
# Of the processor, for one text: first a little, so that slow texts keep nothing from the others, then more.
_ROUNDS = (0.05, 1.0)


class Found(t.NamedTuple):
    """Keys of the texts in which the expression was found, and of those for which there was no time."""

    matched: list[int]
    undecided: list[int]


def search(
    expression: re.Pattern[str],
    texts: t.Mapping[int, str],
    owners: t.Mapping[int, int] | None = None,
    seconds: float = SECONDS,
) -> Found:
    """Search every text. It takes ``seconds`` at most, whatever the texts are.

    After a slow text the others of its owner come last: he uses up nobody else's time.
    """
    owner = (owners or {}).get
    deadline = time.monotonic() + seconds
    matched: list[int] = []
    undecided = list(texts)
    for share in _ROUNDS:
        slow: list[int] = []
        while undecided:
            answers = _ask(expression, [texts[key] for key in undecided], share, deadline)
            matched += [key for key, answer in zip(undecided, answers) if answer]
            slow += undecided[len(answers) : len(answers) + 1]
            undecided = undecided[len(answers) + 1 :]
            if slow:
                undecided.sort(key=lambda key: owner(key) == owner(slow[-1]))
            if time.monotonic() >= deadline:
                slow, undecided = slow + undecided, []
        undecided = slow
    return Found(matched, undecided)


def _ask(expression: re.Pattern[str], texts: t.Sequence[str], share: float, deadline: float) -> bytes:
    """A byte for each text, 1 where it was found; fewer bytes where the next text takes too long."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # ends the process, whatever Python does
            for text in texts:
                signal.setitimer(signal.ITIMER_VIRTUAL, share)
                found = expression.search(text, 0, MOST_CHARACTERS) is not None
                os.write(writing, b"\1" if found else b"\0")
        finally:
            os._exit(0)
    os.close(writing)
    answers = b""
    try:
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = os.read(reading, 65536)
            if not chunk:
                break
            answers += chunk
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return answers
