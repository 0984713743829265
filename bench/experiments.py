# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements beyond the grid. Each gives what is stored of it; rates in bits per second, times in milliseconds."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.tests.support import bpf, dataplane, net

from . import traffic
from .measure import SECOND, Cell, Curve, acknowledged, per_connection, percentile
from .shapers import HERE, NONE, OURS, home, limited, shaped

MBIT = 1_000_000
PING_PAUSE = 1000  # microseconds
Stored = dict[str, Any]


def _pause(seconds: float) -> tuple[int, int]:
    """A window: its begin and its end."""
    begin = time.monotonic_ns()
    time.sleep(seconds)
    return begin, time.monotonic_ns()


def base_rtt(link: traffic.Link, seconds: float) -> Stored:
    """The round trip with nothing else on the way and no limit."""
    with home("sender") as cgroup, link.receiver():
        sender = link.ping(PING_PAUSE, cgroup)
        _pause(seconds)
        return _latency(traffic.pings(sender), 0)


def _latency(pings: list[traffic.Ping], since: int) -> Stored:
    taken = [ping.nanoseconds / 1e6 for ping in pings if ping.at >= since]
    return {"count": len(taken), "p50": percentile(taken, 50), "p99": percentile(taken, 99)}


def ping_beside_bulk(link: traffic.Link, cell: Cell) -> Stored:
    """A ping-pong connection inside the rule whose bulk connections take all they can get."""
    with shaped(cell.shaper, link.pair, cell.rate) as cgroup, link.receiver():
        link.tcp(cell.connections, cell.congestion, cgroup=cgroup)
        sender = link.ping(PING_PAUSE, cgroup)
        time.sleep(cell.warm_up)
        begin, _end = _pause(cell.seconds)
        return _latency(traffic.pings(sender), begin)


def app_limited(link: traffic.Link, cell: Cell) -> Stored:
    """Ten connections that want 1 Mbit/s in all, and greedy ones: what is left over must not be lost."""
    with shaped(cell.shaper, link.pair, cell.rate) as cgroup, link.receiver():
        counter = link.count()
        modest = link.tcp(10, cell.congestion, MBIT // 8, cgroup)
        link.tcp(cell.connections, cell.congestion, cgroup=cgroup)
        time.sleep(cell.warm_up)
        begin, end = _pause(cell.seconds)
        rates = [acknowledged(pair) for pair in per_connection(traffic.samples(modest), begin, end)]
        return {"rate": Curve(traffic.counts(counter)).rate(begin, end), "modest": sum(rates)}


def beside_udp(link: traffic.Link, cell: Cell, factor: float) -> Stored:
    """TCP in one rule with UDP from two CPUs that offers `factor` times the limit."""
    cpus = sorted(os.sched_getaffinity(0))
    with shaped(cell.shaper, link.pair, cell.rate) as cgroup, link.receiver():
        counter = link.count()
        for cpu in (cpus[0], cpus[-1]):
            link.udp(int(factor * cell.rate / 8 / 2), cgroup, cpu)
        sender = link.tcp(cell.connections, cell.congestion, cgroup=cgroup) if cell.connections else None
        time.sleep(cell.warm_up)
        timeouts = traffic.timeouts(sender) if sender else 0
        begin, end = _pause(cell.seconds)
        timeouts = traffic.timeouts(sender) - timeouts if sender else 0
        samples = traffic.samples(sender) if sender else []
        share = sum(acknowledged(pair) for pair in per_connection(samples, begin, end))
        total = Curve(traffic.counts(counter)).rate(begin, end)
        return {"factor": factor, "rate": total, "tcp": share, "timeouts": timeouts}


# ---- the sender's CPU


@contextmanager
def apart(pair: traffic.Ends) -> Iterator[tuple[int, int] | None]:
    """The sender's and the receiver's half of the kernel's work on a CPU each; None where there is only one CPU.

    A veth device has a packet received by the CPU that sent it; receive packet steering hands it to the other one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        yield None
        return
    chosen = (cpus[0], cpus[-1])
    _steer(pair, chosen)
    try:
        yield chosen
    finally:
        _steer(pair, None)


def _steer(pair: traffic.Ends, cpus: tuple[int, int] | None) -> None:
    for index, namespace in enumerate((pair.sender, pair.receiver)):
        mask = f"{1 << cpus[index]:x}" if cpus else "0"
        # `ip netns exec` for once: the /sys that it mounts is the one that shows the namespace's devices.
        file = "/sys/class/net/veth0/queues/rx-0/rps_cpus"
        net.run("ip", "netns", "exec", namespace, "sh", "-c", f"echo {mask} >{file}")


def _idle() -> dict[int, float]:
    """Seconds that each CPU was idle or taken away by the hypervisor; the rest is work of any kind, interrupts too."""
    idle = {}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            idle[int(name[3:])] = sum(int(fields[index]) for index in (3, 4, 7)) / os.sysconf("SC_CLK_TCK")
    return idle


def _busy(seconds: float) -> dict[int, float]:
    """Which part of some seconds each CPU works."""
    before = _idle()
    begin, end = _pause(seconds)
    after = _idle()
    return {cpu: max(0.0, 1 - (after[cpu] - before[cpu]) * SECOND / (end - begin)) for cpu in after}


def sender_cpu(link: traffic.Link, cell: Cell) -> Stored:
    """CPU seconds a second, of the sender's CPU and of the machine; `others`: what the machine did just before."""
    with shaped(cell.shaper, link.pair, cell.rate) as cgroup, apart(link.pair) as cpus:
        with link.receiver(cpus[1] if cpus else None):
            counter = link.count()
            idle = _busy(0.5)
            link.tcp(cell.connections, cell.congestion, cgroup=cgroup, cpu=cpus[0] if cpus else None)
            time.sleep(cell.warm_up)
            begin = time.monotonic_ns()
            busy = _busy(cell.seconds)
            rate = Curve(traffic.counts(counter)).rate(begin, time.monotonic_ns())
        machine = sum(busy.values())
        return {
            "rate": rate,
            "sender": busy[cpus[0]] if cpus else machine,
            "machine": machine,
            "apart": bool(cpus),
            "others": sum(idle.values()),
        }


# ---- what the programs cost


def _run_time(link_pin: str) -> bpf.Cost:
    """What the program behind a pinned link has cost."""
    shown = json.loads(net.run("bpftool", "-j", "link", "show", "pinned", link_pin))
    program = json.loads(net.run("bpftool", "-j", "prog", "show", "id", str(shown["prog_id"])))
    return bpf.Cost(program.get("run_time_ns", 0), program.get("run_cnt", 0))


def programs_in_flow(link: traffic.Link, cell: Cell) -> Stored:
    """Nanoseconds a call, and calls a second, of each of our programs while a flow runs at its limit.

    The program that returns 1 is attached beside them, so that it sees the same packets.
    """
    least, root = _pass_program(), str(dataplane.cgroup2())
    with limited(cell.rate) as cgroup, link.receiver():
        pins = sorted(str(pin) for pin in Path("/sys/fs/bpf/speed_limiter").glob("*_link"))
        bpf.attach(root, least)
        link.tcp(cell.connections, cell.congestion, cgroup=cgroup)
        time.sleep(cell.warm_up)
        on = bpf.enable_statistics()
        before = [*(_run_time(pin) for pin in pins), bpf.cost(least)]
        begin, end = _pause(cell.seconds)
        after = [*(_run_time(pin) for pin in pins), bpf.cost(least)]
        os.close(on)
        bpf.detach(root, least)
        os.close(least)
    found = {}
    for name, old, new in zip([*(Path(pin).name[: -len("_link")] for pin in pins), "returns 1"], before, after):
        if (runs := new.runs - old.runs) > 0:
            nanoseconds = (new.nanoseconds - old.nanoseconds) / runs
            found[name] = {"ns": nanoseconds, "per_second": runs * SECOND / (end - begin)}
    return {"found": found}


def _pass_program() -> int:
    target = Path("/run/sandbox/pass.bpf.o")
    return dataplane.load_program(dataplane.compile_object(HERE / "pass.bpf.c", target), "pass")


def requests(link: traffic.Link, pairs: int, seconds: float) -> Stored:
    """Requests and answers of a cgroup without a rule: with our programs there for another one, against no program.

    Both ends on one CPU: there is no waiting that could hide what the programs cost. The interval is of the median, by
    the order of the pairs alone: it holds whatever else the machine does in some of them.
    """
    cpu = max(os.sched_getaffinity(0))
    changes, plain = [], []
    with link.receiver(cpu, hurry=False):
        for index in range(pairs):
            # Which comes first changes each time, so that a drift of the machine favours neither.
            order = (OURS, NONE) if index % 2 else (NONE, OURS)
            rate = {kind: _requests_per_second(link, kind, seconds, cpu) for kind in order}
            changes.append(100 * (rate[OURS] / rate[NONE] - 1))
            plain.append(rate[NONE])
    changes.sort()
    cut = _outside(pairs)
    return {
        "pairs": pairs,
        "per_second": statistics.median(plain),
        "change": statistics.median(changes),
        "interval": [changes[cut], changes[-1 - cut]],
    }


def _outside(count: int) -> int:
    """How many of `count` ordered values can be left out at each end, and the rest holds the median with 95 %."""
    cut, tail = 0, 0.5**count
    while True:
        tail += math.comb(count, cut + 1) * 0.5**count
        if 2 * tail > 0.05:
            return cut
        cut += 1


def _requests_per_second(link: traffic.Link, kind: str, seconds: float, cpu: int) -> float:
    with shaped(kind, link.pair, 100 * MBIT), home("requests") as cgroup:
        sender = link.ping(0, cgroup, cpu)
        time.sleep(0.1)
        begin, end = _pause(seconds)
        made = sum(begin <= ping.at < end for ping in traffic.pings(sender))
    return made * SECOND / (end - begin)
