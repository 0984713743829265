# SPDX-License-Identifier: GPL-3.0-or-later
"""Queueing disciplines of a sender's device."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from .net import Pair, run


def tc(pair: Pair, *arguments: str) -> None:
    run("tc", "-n", pair.sender, "qdisc", *arguments)


def queue(pair: Pair, *words: str) -> None:
    """In place of what the device has."""
    tc(pair, "replace", "dev", "veth0", "root", *words)


@contextmanager
def queued(pair: Pair, *words: str) -> Iterator[None]:
    """RuntimeError where the kernel has no such queue."""
    queue(pair, *words)
    try:
        yield
    finally:
        # A test may have deleted it.
        subprocess.run(["tc", "-n", pair.sender, "qdisc", "delete", "dev", "veth0", "root"], check=False)


def dropped_by_fq(pair: Pair) -> int:
    shown = json.loads(run("tc", "-n", pair.sender, "-s", "-j", "qdisc", "show", "dev", "veth0"))
    return next(int(queue["drops"]) for queue in shown if queue["kind"] == "fq")
