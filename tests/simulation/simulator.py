# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator (model/) as Python sees it. Times are seconds here and nanoseconds there, rates bytes per second."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BPF = HERE.parents[1] / "bpf"
RENO, CUBIC, BBR, UDP, ACKS = range(5)
SECOND = 10**9


@dataclass(frozen=True)
class Flow:
    """A connection, or a source of datagrams."""

    kind: int = CUBIC
    start: float = 0
    stop: float = 0  # 0: never
    round_trip: float = 0.001
    rate: int = 0  # of the application; 0: as fast as it can
    chunk: int = 1 << 16
    window: int = 16 << 20
    own_pacing: int = 0
    mss: int = 1448
    headers: int = 52
    unpaced: bool = False

    @property
    def tcp(self) -> bool:
        return self.kind < UDP

    def wire(self, payload: float) -> float:
        """IP bytes for so many bytes of data."""
        if self.kind == ACKS:
            return payload / self.chunk * 52
        if self.kind == UDP:
            return payload / self.chunk * (self.chunk + 28)
        return payload * (self.mss + self.headers) / self.mss


@dataclass(frozen=True)
class Change:
    """The limit from a time on."""

    at: float
    rate: int
    bucket: int


@dataclass(frozen=True)
class Scenario:
    seed: int
    flows: list[Flow]
    changes: list[Change]
    duration: float
    bins: list[float] = field(default_factory=list)  # ends of spans that are counted apart; the last is the duration
    clock_skew: float = 0
    timer_delay: float = 50e-6
    garbage_at: float = 0
    garbage_kind: int = 0
    large_bursts: bool = True


@dataclass(frozen=True)
class Bin:
    begin: float
    end: float
    bytes: int
    drops: int  # packets of TCP
    notices: int
    flows: list[int]  # bytes of each
    held: list[float]  # of each, the part of its packets when pacing alone held it back


@dataclass(frozen=True)
class Result:
    worst_excess: int  # bytes that passed in some interval above rate * time + bucket
    events: int
    bins: list[Bin]


class FlowSpec(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("start", "stop", "round_trip", "rate", "chunk", "window", "own_pacing")),
        *((name, ctypes.c_uint32) for name in ("kind", "mss", "headers", "unpaced")),
    ]


class ChangeSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("at", "rate", "bucket")]


class ScenarioSpec(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("seed", "duration", "clock_skew", "timer_delay", "garbage_at")),
        *((name, ctypes.c_uint32) for name in ("garbage_kind", "large_bursts", "flows", "changes", "bins")),
        ("flow", ctypes.POINTER(FlowSpec)),
        ("change", ctypes.POINTER(ChangeSpec)),
        ("bin", ctypes.POINTER(ctypes.c_uint64)),
    ]


class BinResult(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("bytes", "drops", "notices")]


class FlowResult(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint64), ("packets", ctypes.c_uint32), ("held", ctypes.c_uint32)]


class ResultSpec(ctypes.Structure):
    _fields_ = [
        ("worst_excess", ctypes.c_int64),
        ("events", ctypes.c_uint64),
        ("share", ctypes.c_uint64),
        ("bin", ctypes.POINTER(BinResult)),
        ("flow", ctypes.POINTER(FlowResult)),
    ]


def build(directory: Path, bpf: Path = BPF, *options: str) -> ctypes.CDLL:
    """Compiles the program's headers and the simulator. A signed overflow in either ends the process."""
    library = directory / "simulator.so"
    command = [
        "gcc",
        "-std=gnu11",
        "-shared",
        "-fPIC",
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
    ]
    command += ["-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error", *options]
    command += ["-I", str(bpf), "-o", str(library), str(HERE / "model" / "simulate.c"), "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND)


def flow_spec(flow: Flow) -> FlowSpec:
    return FlowSpec(
        nanoseconds(flow.start),
        nanoseconds(flow.stop),
        nanoseconds(flow.round_trip),
        flow.rate,
        flow.chunk,
        flow.window,
        flow.own_pacing,
        flow.kind,
        flow.mss,
        flow.headers,
        flow.unpaced,
    )


def simulate(library: ctypes.CDLL, scenario: Scenario) -> Result:
    """Runs a scenario. ctypes lets go of the interpreter's lock meanwhile, so several can run in threads."""
    ends = scenario.bins or [scenario.duration]
    flows, bins = len(scenario.flows), len(ends)
    spec = ScenarioSpec(
        scenario.seed,
        nanoseconds(scenario.duration),
        nanoseconds(scenario.clock_skew),
        nanoseconds(scenario.timer_delay),
        nanoseconds(scenario.garbage_at),
        scenario.garbage_kind,
        scenario.large_bursts,
        flows,
        len(scenario.changes),
        bins,
        (FlowSpec * flows)(*map(flow_spec, scenario.flows)),
        (ChangeSpec * len(scenario.changes))(
            *(ChangeSpec(nanoseconds(change.at), change.rate, change.bucket) for change in scenario.changes)
        ),
        (ctypes.c_uint64 * bins)(*map(nanoseconds, ends)),
    )
    counted, each = (BinResult * bins)(), (FlowResult * (bins * flows))()
    result = ResultSpec(bin=counted, flow=each)
    if library.simulate(ctypes.byref(spec), ctypes.byref(result)):
        raise MemoryError
    found = []
    for i, (begin, end, one) in enumerate(zip([0.0, *ends], ends, counted)):
        of_flows = each[i * flows : (i + 1) * flows]
        held = [flow.held / max(1, flow.packets) for flow in of_flows]
        found.append(Bin(begin, end, one.bytes, one.drops, one.notices, [flow.bytes for flow in of_flows], held))
    return Result(result.worst_excess, result.events, found)
