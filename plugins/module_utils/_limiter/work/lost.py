# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limiters of this host that our pins do not hold, or not completely: they are pinned again before anything else.

There must be one limiter. Two would charge each packet twice, each with rules of its own, and no task can know which of
the two is meant: that is refused, and a purge of everything ends both.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ..core import catalog, schemas
from ..core.errors import LimiterError
from ..host.bpf import hidden, pins
from ..host.bpf.hidden import Limiter
from ..host.bpf.libbpf import Libbpf

_ENDING = 1.0  # seconds that the kernel has for that

PINNED_AGAIN = "pinned the limiter again, which runs on with all that it has"


class Lost(t.NamedTuple):
    """What of the limiter was not pinned, and is now; ``others`` are further limiters, which only a purge may end."""

    names: tuple[str, ...] = ()
    others: tuple[Limiter, ...] = ()

    @property
    def actions(self) -> tuple[str, ...]:
        return (PINNED_AGAIN,) if self.names else ()

    @property
    def before(self) -> str:
        """Its part of a diff."""
        return f"pins of the limiter: {len(self.names)} lost\n" if self.names else ""

    @property
    def after(self) -> str:
        return "pins of the limiter: complete\n" if self.names else ""

    def warnings(self, check: bool) -> list[str]:
        """``check``: of a task that changes nothing."""
        if not self.names:
            return []
        then = "The next task that changes something pins them again" if check else "They are pinned again"
        return [f"{', '.join(self.names)} of the limiter that runs were not in {pins.PIN_DIR}. {_CAUSES}. {then}."]


@contextlib.contextmanager
def pinned_again(libbpf: Libbpf, mount: str, changes: bool, purges: bool = False) -> t.Iterator[Lost]:
    """Until the end of the context, what limits is pinned: for good where ``changes`` says so, else only for this
    process (`pins.aside`). ``purges``: all of it is to be removed afterwards, whatever there is.

    Raises LimiterError ``hidden_limiter`` where that cannot be.
    """
    own, others = _settled(libbpf, mount)
    limiter = own
    if own is None and others and hidden.pinned_control(libbpf) in (None, others[0].maps[catalog.CONTROL.name]):
        limiter, others = others[0], others[1:]
    for one in (limiter, *others):
        if one is not None and one is not own and one.lacks():
            raise _unusable(one)
    if others and not purges:
        raise _several(others[0])
    names = _unpinned(limiter, limiter is own) if limiter else []
    with contextlib.ExitStack() as stack:
        if names and limiter:
            if changes and (purges or schemas.is_known(limiter.schema)):
                pins.ensure()
            else:
                stack.enter_context(pins.aside(libbpf))
            hidden.pin(libbpf, limiter, names)
        yield Lost(tuple(names), tuple(others))


@contextlib.contextmanager
def alone(libbpf: Libbpf, limiter: Limiter) -> t.Iterator[None]:
    """Meanwhile nothing but this limiter is pinned, as this process sees it."""
    with pins.aside(libbpf, empty=True):
        hidden.pin(libbpf, limiter, _unpinned(limiter, is_own=False))
        yield


def _settled(libbpf: Libbpf, mount: str) -> tuple[Limiter | None, list[Limiter]]:
    """As `_look`, but for what has just lost its last pin: for a moment the kernel still runs it, without a link."""
    deadline = time.monotonic() + _ENDING
    while True:
        own, others = _look(libbpf, mount)
        if not any(one.lacks() for one in others) or time.monotonic() > deadline:
            return own, others
        time.sleep(0.02)


def _look(libbpf: Libbpf, mount: str) -> tuple[Limiter | None, list[Limiter]]:
    """The limiter whose link is pinned, and those of ours that are not."""
    pinned = hidden.pinned_links(libbpf)
    found = [limiter for limiter in hidden.look(libbpf, mount, pinned) if limiter.ours]
    own = next((limiter for limiter in found if limiter.link in pinned), None)
    return own, [limiter for limiter in found if limiter.link not in pinned]


def _unpinned(limiter: Limiter, is_own: bool) -> list[str]:
    """In the order in which a load pins them: who is killed meanwhile leaves what is found again."""
    mounted = pins.is_mounted()
    changing = (*catalog.PASSING, *(program.moving for program in catalog.PROGRAMS if program.moving))
    if is_own and any(pins.exists(name) for name in changing):
        return []  # another task was killed in a change, which is completed first
    wanted = [row.name for row in catalog.MAPS if row.name in limiter.maps]
    wanted += [program.link for program in catalog.PROGRAMS if program.link in limiter.links]
    return [name for name in wanted if not mounted or not pins.exists(name)]


_CAUSES = (
    f"Something is mounted over {pins.BPFFS}, somebody removed them, or a task in another mount namespace loaded it"
)


def _several(other: Limiter) -> LimiterError:
    return LimiterError(
        "hidden_limiter",
        "two limiters of this collection limit on this host, each by its own rules",
        f"the one that is attached to {other.cgroup} (program id {other.program_id}) is not pinned in {pins.PIN_DIR}",
        "Run speed_limit_purge with scope=all, which ends both, then the tasks that make the rules",
    )


def _unusable(other: Limiter) -> LimiterError:
    end = f"bpftool link detach id {other.link}"
    if other.link is None:
        end = f"bpftool cgroup detach CGROUP2 egress id {other.program_id}, where CGROUP2 is where cgroup2 is mounted"
    return LimiterError(
        "hidden_limiter",
        f"a limiter of this collection that is attached to {other.cgroup} cannot be taken over",
        f"it is not pinned in {pins.PIN_DIR}, and these cannot be found: {', '.join(other.lacks())}",
        f"End it ({end}), then run the tasks that make the rules",
    )
