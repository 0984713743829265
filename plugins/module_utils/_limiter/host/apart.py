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

import collections
import contextlib
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
_STARVED = 5  # times that, while it is ready to run and gets no processor
_AWAKE = 0.05  # who says something as often as that keeps nobody waiting
_TURN = 0.25  # of one owner's items, before those of the others
_OTHER_TASK = 0.5  # for one that asks the same now
MOST_LEFT = 16  # children for owners who are no users of the system's own: one may have as many numbers as he likes
_PEOPLE = 1000  # and greater numbers

# Seconds that a task has in all for looks at descriptors: of a processor, and by the clock.
LOOKS, LOOKS_BY_CLOCK = 1.5, 6.0
_COST_OF_A_CHILD = 0.05  # by the clock: a task that needs many short looks is not a slow one

_PR_SET_PDEATHSIG = 1

Tell = t.Callable[[t.Any], None]

_spent = 0.0
_looked = 0.0
_looked_by_clock = 0.0


class Outcome(t.NamedTuple):
    """``said`` is what the child told, in order."""

    said: list[t.Any]
    complete: bool  # it has done all of its work
    why: str = ""  # it has not
    late: bool = False  # it did not end in time
    left: int | None = None  # the child, where it could not be ended


def begin() -> None:
    """A part of a task begins, with all its patience: what comes before the lock, and what is done with it."""
    global _spent, _looked, _looked_by_clock
    _spent = _looked = _looked_by_clock = 0.0


def patience(most: float = IN_ALL) -> float:
    """Seconds that this task may wait still."""
    return max(0.0, min(most, IN_ALL - _spent))


def looks() -> float:
    """Seconds of a processor that this task may look at descriptors still, however many rules want it."""
    return max(0.0, LOOKS - _looked)


def looks_by_clock() -> float:
    """A child that keeps talking takes no patience, and may take no processor either."""
    return max(0.0, LOOKS_BY_CLOCK - _looked_by_clock)


def has_looked(of_a_processor: float, by_clock: float) -> None:
    global _looked, _looked_by_clock
    _looked += of_a_processor
    _looked_by_clock += max(0.0, by_clock - _COST_OF_A_CHILD)


def run(
    work: t.Callable[[Tell], None], keep: t.Iterable[int | None] = (), most: float = IN_ALL, silence: float = SILENCE
) -> Outcome:
    """Runs ``work`` in a child that has no open descriptors but ``keep``; what it tells must be fit for JSON.

    It is ended after ``most`` seconds, or when nothing was heard of it for ``silence`` seconds; some times that while
    it waits for nothing but a processor. An error in it is no error here: the outcome says why it is not complete.
    """
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
        heard = _listen(child, reading, said, began + patience(most), silence)
    finally:
        os.close(reading)
        ending = time.monotonic()
        left = _end(child, heard)
        _spend(time.monotonic() - ending)
    if said and said[-1] is None:  # on a busy host it may take longer to end than to say so
        return Outcome(said[:-1], True, left=left)
    failed = said.pop() if heard and said and isinstance(said[-1], dict) else {}
    why = failed.get("failed", "a child process ended early") if heard else "a child process did not end in time"
    return Outcome(said, False, str(why), not heard, left)


def _listen(child: int, reading: int, said: list[t.Any], deadline: float, silence: float) -> bool:
    """Whether the child closed its end, by ending or on purpose."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    rest, starved = b"", 0
    while True:
        left = min(silence, deadline - time.monotonic())
        began = time.monotonic()
        spoke = left > 0 and bool(poll.poll(left * 1000))
        _spend(time.monotonic() - began)
        if not spoke:
            starved += 1
            if left > 0 and starved < _STARVED and _is_runnable(child):
                continue
            return False
        starved = 0
        chunk = os.read(reading, 65536)
        if not chunk:
            return True
        *lines, rest = (rest + chunk).split(b"\n")
        said += map(json.loads, lines)


def _is_runnable(child: int) -> bool:
    try:
        with open(f"/proc/{child}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"R"
    except OSError:
        return False


def _spend(waited: float) -> None:
    """Work that goes on takes no patience, however much there is of it: what bounds it is told to `run`."""
    global _spent
    if waited > _AWAKE:
        _spent += waited


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


@contextlib.contextmanager
def afterwards(work: t.Callable[[], None]) -> t.Iterator[None]:
    """At the end of the context ``work`` is done, and also where this process is killed before: by a child that waits
    for its end. It may be done twice.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _outlive(work, reading)
    os.close(reading)
    try:
        yield
    finally:
        try:
            work()
        finally:
            os.close(writing)
            os.waitpid(child, 0)


def _outlive(work: t.Callable[[], None], reading: int) -> t.NoReturn:
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but({reading})
        os.read(reading, 1)
        work()
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
def only_one(name: str, make: bool = True, owner: int = 0, wait: float = _LAST_WAIT) -> t.Iterator[int | None]:
    """A descriptor for a child to keep: as long as any has it, nobody else gets one for this work. So no more than one
    is ever left behind, or one for each ``owner``. ``name``: memory.SETTLING or READING; None on a host on which we
    never were, without ``make``.

    Raises HeldError; LimiterError as memory.open_directory.
    """
    fd = memory.open_claim(name, make)
    if fd is None:
        yield None
        return
    try:
        deadline = time.monotonic() + wait
        while (owner >= _PEOPLE and memory.claims(fd) >= MOST_LEFT) or not memory.claim(fd, owner):
            if time.monotonic() >= deadline:
                raise HeldError(_pid(os.pread(fd, 32, 0)))
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


class _Share(t.Generic[Item]):
    """What is still to be asked of one owner's items."""

    def __init__(self, owner: int, items: list[Item], silence: float) -> None:
        self.owner, self.waiting, self.silence = owner, items, silence
        self.held_up: list[Item] = []
        self.last = False

    def ask(
        self, look: t.Callable[[Item], t.Any], keep: t.Iterable[int | None], most: float
    ) -> tuple[list[tuple[Item, t.Any]], bool]:
        """What one child found, and whether it was left behind in the middle."""
        asked = tuple(self.waiting)

        def work(tell: Tell) -> None:
            end = time.monotonic() + _TURN
            for item in asked:
                tell([look(item)])
                if time.monotonic() > end:
                    return

        outcome = run(work, keep, most, self.silence)
        rest = self.waiting[len(outcome.said) :]
        if not outcome.complete:
            self.held_up += rest[:1]
            rest = rest[1:]
        if not rest and not self.last:
            # Once more, and longer: the machine may be busy.
            rest, self.held_up, self.silence, self.last = self.held_up, [], 5 * self.silence, True
        self.waiting = rest
        stuck = outcome.left is not None and not outcome.complete
        return [(item, answer[0]) for item, answer in zip(asked, outcome.said)], stuck

    def undecided(self) -> list[Item]:
        return [*self.waiting, *self.held_up]


def each(
    items: t.Iterable[Item],
    look: t.Callable[[Item], t.Any],
    most: float = 3.0,
    silence: float = 0.1,
    keep: t.Sequence[int] = (),
    owner: t.Callable[[Item], int] | None = None,
    claim: t.Callable[[int], t.ContextManager[int | None]] = lambda owner: contextlib.nullcontext(),
) -> tuple[list[tuple[Item, t.Any]], list[Item]]:
    """What ``look`` says of each item; and the items of which nothing was heard in time.

    Who makes one look wait holds up that one only: the next child goes on behind it. It is asked once more at the end.
    Owners take turns, those with small numbers first: who has many items that wait, or take long, uses up his own time.
    A look that the kernel may not be able to interrupt needs a ``claim``, from `only_one`: of an owner for whom a child
    was left behind, nothing more is asked.
    """
    deadline = time.monotonic() + most
    by_owner: dict[int, list[Item]] = {}
    for item in items:
        by_owner.setdefault(owner(item) if owner else 0, []).append(item)
    shares = collections.deque(_Share(number, by_owner[number], silence) for number in sorted(by_owner))
    found: list[tuple[Item, t.Any]] = []
    undecided: list[Item] = []
    went_on = time.monotonic()
    while shares and deadline > time.monotonic() and patience() > 0:
        share = shares.popleft()
        try:
            with claim(share.owner) as claimed:
                answers, left = share.ask(look, [*keep, claimed], deadline - time.monotonic())
        except HeldError:
            if time.monotonic() < went_on + _OTHER_TASK:
                shares.append(share)
                time.sleep(0.01)
            else:
                undecided += share.undecided()
            continue
        found += answers
        went_on = time.monotonic()
        if share.waiting and not (left and claimed is not None):
            shares.append(share)
        else:
            undecided += share.undecided()
    return found, [*undecided, *(item for share in shares for item in share.undecided())]
