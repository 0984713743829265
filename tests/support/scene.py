# SPDX-License-Identifier: GPL-3.0-or-later
"""Senders under the collection's rules, and what arrives: the stage of the tests of pacing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from . import bpf, limiter
from .children import until
from .net import Arrived, Pair
from .slow import PATIENCE, SLOW

MBIT = 125_000  # bytes per second
# For TCP, in bytes per second: an emulated machine can't carry more, and answers late, so that what arrives varies.
RATE = 100 * MBIT // (10 if SLOW else 1)
# Packets of each connection that may be dropped: at a slow machine's rate the first windows of several connections,
# which they send before they hear of each other, are more than the limit gives. TCP sees these drops and sends later.
FIRST_WINDOW = 10 if SLOW else 0
# As a part of the limit, while TCP paces itself. What must never be exceeded is in assert_bound(), on any machine.
LEAST, MOST = (0.8, 1.1) if SLOW else (0.9, 1.05)
WINDOWS = 5
GSO_PACKET = 65536 + 45 * 52  # the largest ordinary one, in IP bytes on the wire
# TCP may spend what a bucket has saved, too: where the rate alone is meant, it holds this part of a second. An emulated
# machine's timers are late, and what they send at once has to fit.
SMALL = 10 if SLOW else 50
# Of the controller: the others are half as long.
_LONG_FIELDS = layout.FAIR_SHARE.size // 4 - len(layout.FairShare._fields)


class Scene:
    """A host on which nothing is limited yet, and two namespaces whose receiver counts what arrives."""

    def __init__(self, pair: Pair, cgroups: Cgroups) -> None:
        self.pair, self._cgroups = pair, cgroups
        self._made: list[Path] = []

    def cgroup(self, path: str = "paced") -> Path:
        """A new cgroup, by its path below the mount."""
        cgroup = Path(self._cgroups.absolute(f"/{path}"))
        cgroup.mkdir()
        self._made.append(cgroup)
        return cgroup

    def limited(self, rate: int, path: str = "paced", **options: Any) -> Path:
        """A new cgroup that is limited in place by a rule of its name, in bytes per second."""
        cgroup = self.cgroup(path)
        limiter.rule(name=cgroup.name, rate=str(rate), cgroup_path=f"/{path}", **options)
        return cgroup

    def clear(self) -> None:
        self.pair.stop()
        # Rules first: a rule's leaves are below the cgroups that it took processes of.
        limiter.purge()
        for cgroup in reversed(self._made):
            until(lambda cgroup=cgroup: not (cgroup / "cgroup.procs").read_text())  # type: ignore[misc]
            cgroup.rmdir()


@contextlib.contextmanager
def staged(pair: Pair, cgroups: Cgroups) -> Iterator[Scene]:
    """The program is loaded, and there is no rule. Of processes, cgroups and rules nothing stays; the program does."""
    scene = Scene(pair, cgroups)
    limiter.program()
    try:
        yield scene
    finally:
        scene.clear()


# ---- what arrives


def assert_bound(before: Arrived, after: Arrived, rate: int, bucket: int, packets: float = 1.5) -> None:
    """What the limiter promises whatever is sent: the rate, one bucket, and one and a half of the largest packets; one
    where nothing is paced.
    """
    passed, seconds = after.bytes - before.bytes, after.seconds - before.seconds
    most = 1.005 * rate * seconds + bucket + packets * GSO_PACKET
    assert passed <= most, f"{passed} bytes in {seconds:.3f} s are {passed / seconds / rate:.3f} of the limit"


def share_of(pair: Pair, rate: int, seconds: float = 1.0) -> float:
    """What arrives from now on for some time, as a part of a rate."""
    before = pair.arrived()
    pause(seconds)
    after = pair.arrived()
    share = (after.bytes - before.bytes) / (after.seconds - before.seconds) / rate
    print(f"{share:.4f} of {rate} bytes/s")
    return share


def assert_held(pair: Pair, rate: int, seconds: float = 1.0, least: float = LEAST, most: float = MOST) -> None:
    """A rate is kept from now on, in one of the next windows: what a busy machine withholds in one, TCP sends in the
    following one.
    """
    shares: list[float] = []
    while not shares or not least <= shares[-1] <= most:
        assert len(shares) < WINDOWS, f"of {rate} bytes/s, in windows of {seconds} s: {shares}"
        shares.append(share_of(pair, rate, seconds))


def pause(seconds: float) -> None:
    """Longer on an emulated machine."""
    time.sleep(seconds * PATIENCE)


def when_begun(pair: Pair, before: Arrived, size: int = 1) -> Arrived:
    """The moment at which so many bytes have arrived."""
    until(lambda: pair.arrived().bytes - before.bytes >= size)
    return pair.arrived()


# ---- what the limiter says


def counters(name: str = "paced") -> dict[str, Any]:
    found: dict[str, Any] = limiter.info(name=name, gather=["rules"])["rules"][0]["counters"]
    return found


def pacing(name: str = "paced") -> dict[str, Any]:
    """What speed_limit_info says of a rule's pacing."""
    found: dict[str, Any] = limiter.info(name=name, gather=["rules"])["rules"][0]["pacing"]
    return found


class StateEntry:
    """A rule's entry in the pinned state map, to be spoiled."""

    # Its controller's fields, and their sizes in bytes.
    CONTROLLER: ClassVar[dict[str, int]] = {
        f"fair.{name}": 8 if place < _LONG_FIELDS else 4 for place, name in enumerate(layout.FairShare._fields)
    }

    def __init__(self, name: str = "paced") -> None:
        self._map = bpf.Map(pins.path("rate_limit_state_map"), layout.STATE.size)
        self._key = layout.ID.pack(limiter.info(name=name, gather=["rules"])["rules"][0]["cgroup_id"])

    def read(self) -> dict[str, int]:
        return dict(zip(layout.STATE_FIELDS, layout.STATE.unpack(self._map[self._key])))

    def write(self, **fields: int) -> None:
        """Overwrites these fields, the controller's by names that begin with ``fair.``."""
        values = {**self.read(), **fields}
        self._map[self._key] = layout.STATE.pack(*(values[field] for field in layout.STATE_FIELDS))

    def delete(self) -> None:
        del self._map[self._key]

    def make(self) -> None:
        self._map[self._key] = bytes(layout.STATE.size)

    def close(self) -> None:
        self._map.close()


def wait_until(condition: Callable[[], bool], what: str) -> float:
    """Waits for it and says how long it took, in seconds."""
    begin = time.monotonic()
    until(condition)
    elapsed = time.monotonic() - begin
    print(f"{what}: {elapsed * 1000:.0f} ms")
    return elapsed
