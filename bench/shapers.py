# SPDX-License-Identifier: GPL-3.0-or-later
"""What limits the sender: nothing, htb, tbf, a token bucket that drops, or this collection by its own modules, where
asked for with fq on the sender's device.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.tests.support import bpf, dataplane, limiter, net
from ansible_collections.speed_limiter.ebpf.tests.support.children import until

from . import traffic

HERE = Path(__file__).resolve().parent
NONE, HTB, TBF, DROP, OURS = "no limit", "htb", "tbf", "drop bucket", "speed_limiter"
PEERS = (HTB, TBF, DROP)
FQ = f"{OURS} with fq"
RULE = "bench"


class Missing(Exception):
    """The kernel does not have what this shaper needs."""


@contextmanager
def home(name: str) -> Iterator[Path]:
    """A cgroup for senders that no rule of ours holds for."""
    cgroup = dataplane.cgroup2() / name
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        until(lambda: _removed(cgroup))


def _removed(cgroup: Path) -> bool:
    with suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


@contextmanager
def shaped(kind: str, pair: traffic.Ends, rate: int, bucket: int | None = None) -> Iterator[Path]:
    """While `kind` limits what leaves a cgroup to `rate` bits per second: that cgroup. `bucket`: bytes; None: as usual.

    htb and tbf limit the sender's interface, as they always do. Senders must have ended before this is left.
    """
    if kind in (OURS, FQ):
        with _queue(pair.sender, "fq") if kind == FQ else nullcontext(), limited(rate, bucket) as cgroup:
            yield cgroup
        return
    with home("sender") as cgroup:
        if kind == NONE:
            yield cgroup
        elif kind == DROP:
            with _drop_bucket(cgroup, rate // 8):
                yield cgroup
        else:
            with qdisc(kind, pair, rate, bucket):
                yield cgroup


@contextmanager
def limited(rate: int, bucket: int | None = None) -> Iterator[Path]:
    """A rule, by default with the default bucket, on a host that has nothing else of ours; its own cgroup."""
    try:
        limiter.rule(name=RULE, rate=str(rate // 8), **({} if bucket is None else {"bucket": str(bucket)}))
        yield dataplane.cgroup2() / "speed_limiter" / RULE
    finally:
        until(lambda: not _occupied(dataplane.cgroup2() / "speed_limiter" / RULE))
        limiter.purge("all")


def _occupied(cgroup: Path) -> bool:
    return cgroup.exists() and bool((cgroup / "cgroup.procs").read_text(encoding="ascii"))


# ---- tc


def describe(kind: str, rate: int) -> str:
    """How a qdisc is set up for a rate in bits per second, in tc's words."""
    return " ".join(_words(kind, rate))


def _words(kind: str, rate: int, bucket: int | None = None) -> tuple[str, ...]:
    # Two milliseconds of the rate, which even a coarse timer keeps up with, and a few packets at least.
    burst = str(max(6000, rate // 8 // 500) if bucket is None else bucket)
    if kind == TBF:
        return ("tbf", "rate", f"{rate}bit", "burst", burst, "latency", "50ms")
    return ("htb", "rate", f"{rate}bit", "burst", burst, "cburst", burst, "quantum", "15140")


@contextmanager
def _queue(namespace: str, *words: str) -> Iterator[None]:
    tc, device = ("tc", "-n", namespace, "qdisc"), ("dev", "veth0", "root")
    try:
        net.run(*tc, "add", *device, *words)
    except RuntimeError as error:
        raise Missing(f"{words[0]}: {error}") from error
    try:
        yield
    finally:
        net.run(*tc, "delete", *device)


@contextmanager
def distant(pair: traffic.Ends, rtt: int) -> Iterator[None]:
    """While what the receiving end sends takes `rtt` milliseconds longer; the sending end's queue stays as it is."""
    with _queue(pair.receiver, "netem", "limit", "10000", "delay", f"{rtt}ms") if rtt else nullcontext():
        yield


@contextmanager
def qdisc(kind: str, pair: traffic.Ends, rate: int, bucket: int | None = None) -> Iterator[None]:
    """While htb or tbf limits the sender's interface to `rate` bits per second."""
    tc = ("tc", "-n", pair.sender)
    at_root = ("dev", "veth0", "root", "handle", "1:")
    try:
        if kind == TBF:
            net.run(*tc, "qdisc", "add", *at_root, *_words(kind, rate, bucket))
        else:
            net.run(*tc, "qdisc", "add", *at_root, "htb", "default", "1")
            words = _words(kind, rate, bucket)
            net.run(*tc, "class", "add", "dev", "veth0", "parent", "1:", "classid", "1:1", *words)
            if has_fq_codel(pair):
                net.run(*tc, "qdisc", "add", "dev", "veth0", "parent", "1:1", "fq_codel")
    except RuntimeError as error:
        with suppress(RuntimeError):
            net.run(*tc, "qdisc", "delete", "dev", "veth0", "root")
        raise Missing(f"{kind}: {error}") from error
    try:
        yield
    finally:
        net.run(*tc, "qdisc", "delete", "dev", "veth0", "root")


def change(kind: str, pair: traffic.Ends, rate: int) -> None:
    """Another rate for what qdisc() set up."""
    tc = ("tc", "-n", pair.sender)
    if kind == TBF:
        net.run(*tc, "qdisc", "change", "dev", "veth0", "root", "handle", "1:", *_words(kind, rate))
    else:
        at_class = ("dev", "veth0", "parent", "1:", "classid", "1:1")
        net.run(*tc, "class", "change", *at_class, *_words(kind, rate))


def has_fq_codel(pair: traffic.Ends) -> bool:
    """Whether this kernel has the queue that htb's class is best given; tried on the loopback device of the pair."""
    on_loopback = ("dev", "lo", "root")
    try:
        net.run("tc", "-n", pair.sender, "qdisc", "add", *on_loopback, "fq_codel")
    except RuntimeError:
        return False
    net.run("tc", "-n", pair.sender, "qdisc", "delete", *on_loopback)
    return True


def passed_and_dropped(kind: str, pair: traffic.Ends) -> tuple[int, int]:
    """Packets that passed, and that were dropped, so far; of no limit and of the drop bucket nothing is known."""
    if kind in (OURS, FQ):
        found = limiter.counters().values()
        by_queue = _queue_counts(pair)[1] if kind == FQ else 0
        return max(seen.packets for seen in found), sum(seen.dropped_packets for seen in found) + by_queue
    if kind not in (HTB, TBF):
        return 0, 0
    return _queue_counts(pair)


def _queue_counts(pair: traffic.Ends) -> tuple[int, int]:
    """Packets that have passed the queue of the sender's device, and those that it has dropped."""
    shown = json.loads(net.run("tc", "-n", pair.sender, "-s", "-j", "qdisc", "show", "dev", "veth0"))
    return next((queue["packets"], queue["drops"]) for queue in shown if queue.get("root"))


# ---- a token bucket that drops


@contextmanager
def _drop_bucket(cgroup: Path, rate: int) -> Iterator[None]:
    """The bucket is one second of the rate, in bytes per second: such tools' own default."""
    pins = Path(tempfile.mkdtemp(prefix="drop-bucket-", dir="/sys/fs/bpf"))
    root = str(dataplane.cgroup2())
    try:
        loaded = ["bpftool", "prog", "loadall", str(_object()), f"{pins}/programs", "pinmaps", f"{pins}/maps"]
        subprocess.run(loaded, check=True)
        rules = bpf.Map(f"{pins}/maps/drop_rules", 40)
        rules[dataplane.key_of(cgroup)] = struct.pack("=QQQQII", rate, rate, rate, time.monotonic_ns(), 0, 0)
        program = bpf.open_pin(f"{pins}/programs/drop_bucket")
        bpf.attach(root, program)
        try:
            yield
        finally:
            bpf.detach(root, program)
            rules.close()
    finally:
        shutil.rmtree(pins)


def _object() -> Path:
    target = Path("/run/sandbox/drop_bucket.bpf.o")
    if not target.exists():
        dataplane.compile_object(HERE / "drop_bucket.bpf.c", target)
    return target
