# SPDX-License-Identifier: GPL-3.0-or-later
"""A command in a terminal of its own, whose screen can be read."""

from __future__ import annotations

import contextlib
import curses
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator, Sequence

import pyte

from .children import until

KEYS = {"enter": "\r", "escape": "\x1b"}
_NAMED = {"down": "kcud1", "end": "kend", "home": "khome"}  # in terminfo(5)
TERM = "linux"  # others repeat characters, scroll and tab back by commands that pyte does not know


class Terminal:
    """What somebody would see, and press."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, columns: int, rows: int, term: str) -> None:
        self.process, self._master, self._term = process, master, term
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.seen = b""  # all that was written

    def read(self) -> list[str]:
        """The screen now, without what is behind the last letter of a line."""
        while select.select([self._master], [], [], 0.05)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: the command has ended
                break
            if not data:
                break
            self.seen += data
            self._stream.feed(data)
        return [line.rstrip() for line in self.screen.display]

    def until(self, shown: Callable[[list[str]], object]) -> list[str]:
        """The screen when this is so."""
        found: list[str] = []

        def is_shown() -> bool:
            found[:] = self.read()
            return bool(shown(found))

        try:
            until(is_shown)
        except TimeoutError:
            raise AssertionError("\n".join(found)) from None
        return found

    def shows(self, text: str) -> list[str]:
        return self.until(lambda lines: text in "\n".join(lines))

    def press(self, *keys: str) -> None:
        for key in keys:
            os.write(self._master, self._sent_by(_NAMED[key]) if key in _NAMED else KEYS.get(key, key).encode())

    def _sent_by(self, key: str) -> bytes:
        with open(os.devnull, "w") as nowhere:
            curses.setupterm(self._term, nowhere.fileno())
        return curses.tigetstr(key) or b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def hang_up(self) -> None:
        with open(os.devnull, "rb") as nowhere:
            os.dup2(nowhere.fileno(), self._master)

    def ended(self) -> int:
        """Its status, when it has ended."""

        def has_ended() -> bool:
            self.read()
            return self.process.poll() is not None

        until(has_ended)
        return self.process.returncode


@contextlib.contextmanager
def terminal(
    command: Sequence[str], columns: int = 80, rows: int = 24, term: str = TERM, **environment: str
) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        env={**inherited, "LC_ALL": "C.UTF-8", **environment, "TERM": term},
    )
    os.close(slave)
    try:
        yield Terminal(process, master, columns, rows, term)
    finally:
        process.kill()
        process.wait()
        os.close(master)
