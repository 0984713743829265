# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that somebody else can hold up, done by a child process.

A user can make whoever reads his command line, or locks his socket, wait for ever, by a page that never comes (FUSE,
userfaultfd). So a child process does such work. The task waits for a limited time, tells the child to end,
and goes on. Where the kernel cannot interrupt the child, it stays until the user lets it go. It holds nothing of the
task: no lock, no pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time
import typing as t

from . import memory

# Seconds that a task waits in all for what others can hold up; and without a word from one child.
IN_ALL = 8.0
SILENCE = 2.5
_LAST_WAIT = 0.2  # for a child that was told to end

_PR_SET_PDEATHSIG = 1

Tell = t.Callable[[t.Any], None]

_spent = 0.0


class Outcome(t.NamedTuple):
    """``said`` is what the child told, in order."""

    said: list[t.Any]
    complete: bool  # it has done all of its work
    why: str = ""  # it has not
    late: bool = False  # it did not end in time
    left: int | None = None  # the child, where it could not be ended


def begin() -> None:
    """A task begins, with all its patience."""
    global _spent
    _spent = 0.0


def patience(most: float = IN_ALL) -> float:
    """Seconds that this task may wait still."""
    return max(0.0, min(most, IN_ALL - _spent))


def run(
    work: t.Callable[[Tell], None], keep: t.Iterable[int | None] = (), most: float = IN_ALL, silence: float = SILENCE
) -> Outcome:
    """Runs ``work`` in a child that has no open descriptors but ``keep``; what it tells must be fit for JSON.

    It is ended after ``most`` seconds, or when nothing was heard of it for ``silence`` seconds. An error in it is no
    error here: the outcome says why it is not complete.
    """
    global _spent
    began = time.monotonic()
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        return Outcome([], False, f"no process could be made: {error.strerror}")
    if child == 0:
        _work(work, writing, {fd for fd in (*keep, writing) if fd is not None})
    os.close(writing)
    said: list[t.Any] = []
    heard = False
    try:
        heard = _listen(reading, said, began + patience(most), silence)
    finally:
        os.close(reading)
        left = _end(child, heard)
        _spent += time.monotonic() - began
    if said and said[-1] is None:  # on a busy host it may take longer to end than to say so
        return Outcome(said[:-1], True, left=left)
    failed = said.pop() if heard and said and isinstance(said[-1], dict) else {}
    why = failed.get("failed", "a child process ended early") if heard else "a child process did not end in time"
    return Outcome(said, False, str(why), not heard, left)


def _listen(reading: int, said: list[t.Any], deadline: float, silence: float) -> bool:
    """Whether the child closed its end, by ending or on purpose."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    rest = b""
    while True:
        left = min(silence, deadline - time.monotonic())
        if left <= 0 or not poll.poll(left * 1000):
            return False
        chunk = os.read(reading, 65536)
        if not chunk:
            return True
        *lines, rest = (rest + chunk).split(b"\n")
        said += map(json.loads, lines)


def _end(child: int, heard: bool) -> int | None:
    if not heard:
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + _LAST_WAIT
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            return child
        time.sleep(0.001)
    return None


def _work(work: t.Callable[[Tell], None], writing: int, keep: set[int]) -> t.NoReturn:
    """The child's whole life. Its last word is None, or an object that says what failed."""
    try:
        import ctypes  # 2 ms that a task need not spend

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but(keep)

        def tell(what: t.Any) -> None:
            data = json.dumps(what).encode() + b"\n"
            while data:
                data = data[os.write(writing, data) :]

        try:
            work(tell)
            tell(None)
        except BaseException as error:
            tell({"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _close_all_but(keep: set[int]) -> None:
    """All of the task's, also its output: who waits for its end would wait for the child's."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd in keep or fd == null:
            continue
        if fd <= 2:
            os.dup2(null, fd)
        else:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)


class HeldError(Exception):
    """The child of an earlier task, ``pid``, still does this work."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        super().__init__(pid)


@contextlib.contextmanager
def only_one(name: str, make: bool = True) -> t.Iterator[int | None]:
    """A descriptor for a child to keep: as long as any has it, nobody else gets one for this work. So no more than one
    is ever left behind. ``name``: memory.SETTLING or READING; None on a host on which we never were, without ``make``.

    Raises HeldError; LimiterError as memory.open_directory.
    """
    fd = memory.open_claim(name, make)
    if fd is None:
        yield None
        return
    try:
        deadline = time.monotonic() + _LAST_WAIT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HeldError(_pid(os.pread(fd, 32, 0))) from None
                time.sleep(0.01)
        yield fd
    finally:
        os.close(fd)


def sign(claim: int | None) -> None:
    """The child says who it is, for who finds it later."""
    if claim is None:
        return
    with contextlib.suppress(OSError):
        os.ftruncate(claim, 0)
        os.pwrite(claim, b"%d\n" % os.getpid(), 0)


def _pid(text: bytes) -> int:
    return int(text) if text.strip().isdigit() else 0


Item = t.TypeVar("Item")


def each(
    items: t.Sequence[Item],
    look: t.Callable[[Item], t.Any],
    most: float = 3.0,
    silence: float = 0.1,
    keep: t.Sequence[int] = (),
    claim: int | None = None,
) -> tuple[list[tuple[Item, t.Any]], list[Item]]:
    """What ``look`` says of each item, in their order; and the items of which nothing was heard in time.

    Who makes one look wait holds up that one only: the next child goes on behind it. It is asked once more at the end,
    and waited for longer, since the machine may be busy. A look that the kernel may not be able to interrupt needs a
    ``claim``, from `only_one`: with it, the first child that is left behind is the last one.
    """
    deadline = time.monotonic() + most
    found: list[tuple[Item, t.Any]] = []
    waiting = list(items)
    for quiet in (silence, 5 * silence):
        held_up: list[Item] = []
        while waiting and deadline > time.monotonic() and patience() > 0:

            def work(tell: Tell, asked: t.Sequence[Item] = tuple(waiting)) -> None:
                sign(claim)
                for item in asked:
                    tell([look(item)])

            outcome = run(work, [*keep, claim], deadline - time.monotonic(), quiet)
            answered = len(outcome.said)
            found += [(item, answer[0]) for item, answer in zip(waiting, outcome.said)]
            held_up += [] if outcome.complete else waiting[answered : answered + 1]
            waiting = waiting[answered + 1 :]
            if claim is not None and outcome.left:
                return found, [*held_up, *waiting]
        waiting = [*waiting, *held_up]
    return found, waiting
