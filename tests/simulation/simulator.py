# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator (model/) as Python sees it. Times are seconds here and nanoseconds there, rates bytes per second."""

from __future__ import annotations

import ctypes
import math
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
BPF = HERE.parents[1] / "bpf"
RENO, CUBIC, BBR, UDP, ACKS = range(5)
STREAM, OPEN, KEPT, NEW = range(4)  # what connections are used for: model/scenario.h
RULES = 4
SECOND = 10**9
TIMES = {"start", "stop", "round_trip", "every", "pause"}


@dataclass(frozen=True)
class Flow:
    """A connection, several that are used alike (`slots`), or a source of datagrams."""

    kind: int = CUBIC
    start: float = 0
    stop: float = 0  # 0: never
    round_trip: float = 0.001
    rate: int = 0  # of the application; 0: as fast as it can
    chunk: int = 1 << 16
    window: int = 16 << 20
    own_pacing: int = 0
    low_water: int = 0  # writes a chunk whenever less than this is unsent
    use: int = STREAM
    slots: int = 1
    every: float = 0  # OPEN: seconds between connections
    answer: int = 0  # bytes; 0: the connection is only made and closed
    answer_most: int = 0
    pause: float = 0  # between an answer and the next request
    requests: int = 0  # in all; 0: no end
    passive: bool = True
    regular: bool = False
    mss: int = 1448
    headers: int = 52
    unpaced: bool = False
    foreign: bool = False
    gso: bool = False
    rules: tuple[int, ...] = (0,)
    clump: int = 1  # datagrams at a time
    waits: bool = False  # its device has fq

    @property
    def tcp(self) -> bool:
        return self.kind < UDP

    def wire(self, payload: float) -> float:
        """IP bytes for so many bytes of data."""
        if self.kind == ACKS:
            return payload / self.chunk * 52
        if self.kind == UDP:
            return payload / self.chunk * (self.chunk + 28 * (math.ceil(self.chunk / self.mss) if self.gso else 1))
        return payload * (self.mss + self.headers) / self.mss


@dataclass(frozen=True)
class Change:
    """A rule's limit from a time on."""

    at: float
    rate: int
    bucket: int
    rule: int = 0


@dataclass(frozen=True)
class Scenario:
    seed: int
    flows: list[Flow]
    changes: list[Change]  # one of each rule first, at 0
    duration: float
    bins: list[float] = field(default_factory=list)  # ends of spans that are counted apart; the last is the duration
    clock_skew: float = 0
    timer_delay: float = 50e-6
    probe_every: float = 10  # bbr's pause to measure the round trip
    garbage_at: float = 0
    garbage_kind: int = 0
    horizon: float = 10  # of fq, seconds
    limit: int = 10_000  # packets in fq, and of one socket
    flow_limit: int = 100
    large_bursts: bool = True
    requests: int = 0  # so many are recorded

    @property
    def rules(self) -> int:
        return 1 + max(change.rule for change in self.changes)


@dataclass(frozen=True)
class Bin:
    """A span of time. Of rules: what the first one counted, and all of them (`rules`)."""

    begin: float
    end: float
    bytes: int
    drops: int  # packets of TCP
    notices: int
    flows: list[int]  # bytes of each
    held: list[float]  # of each, the part of its packets when pacing alone held it back
    packets: list[int]  # of each
    dropped: list[int]  # of each, packets that some rule dropped
    silence: list[float]  # of each, the longest time in which a connection could not send what it had; seconds
    rules: list[int]  # bytes of each
    lost: list[int]  # of each flow, packets that fq dropped
    wait: list[float]  # of each, the longest in fq; seconds


@dataclass(frozen=True)
class Request:
    at: float
    took: float
    flow: int
    answered: bool  # or it still waits at the end


@dataclass(frozen=True)
class Result:
    worst_excess: list[int]  # of each rule: bytes that passed in some interval above rate * time + bucket
    events: int
    bins: list[Bin]
    requests: list[Request]


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class FlowSpec(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_uint64, "start stop round_trip rate chunk window own_pacing low_water every"),
        *fields(ctypes.c_uint64, "answer answer_most pause requests"),
        *fields(ctypes.c_uint32, "kind use mss headers slots passive regular unpaced foreign gso rules"),
        ("rule", ctypes.c_uint32 * RULES),
        *fields(ctypes.c_uint32, "clump waits"),
    ]


class ChangeSpec(ctypes.Structure):
    _fields_ = fields(ctypes.c_uint64, "at rate bucket rule")


class ScenarioSpec(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_uint64, "seed duration clock_skew timer_delay probe_every garbage_at horizon"),
        *fields(ctypes.c_uint32, "limit flow_limit garbage_kind large_bursts flows changes bins rules"),
        ("flow", ctypes.POINTER(FlowSpec)),
        ("change", ctypes.POINTER(ChangeSpec)),
        ("bin", ctypes.POINTER(ctypes.c_uint64)),
    ]


class BinResult(ctypes.Structure):
    _fields_ = fields(ctypes.c_uint64, "bytes drops notices")


class FlowResult(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_uint64, "bytes silence"),
        *fields(ctypes.c_uint32, "packets held drops lost"),
        ("wait", ctypes.c_uint64),
    ]


class RequestResult(ctypes.Structure):
    _fields_ = [*fields(ctypes.c_uint64, "at took"), *fields(ctypes.c_uint32, "flow answered")]


class ResultSpec(ctypes.Structure):
    _fields_ = [
        ("worst_excess", ctypes.c_int64 * RULES),
        *fields(ctypes.c_uint64, "events requests requests_most"),
        ("bin", ctypes.POINTER(BinResult)),
        ("flow", ctypes.POINTER(FlowResult)),
        ("request", ctypes.POINTER(RequestResult)),
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
    # gcc 12 stumbles over its own peephole optimization of overflow checks ("internal compiler error").
    command += ["-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error", "-fno-peephole2", *options]
    command += ["-I", str(bpf), "-o", str(library), str(HERE / "model" / "simulate.c"), "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND)


def flow_spec(flow: Flow) -> FlowSpec:
    spec = FlowSpec()
    for name in (part[0] for part in FlowSpec._fields_ if not part[0].startswith("rule")):
        value = getattr(flow, name)
        setattr(spec, name, nanoseconds(value) if name in TIMES else value)
    spec.rules = len(flow.rules)
    spec.rule[: spec.rules] = flow.rules
    return spec


def simulate(library: ctypes.CDLL, scenario: Scenario) -> Result:
    """Runs a scenario. ctypes lets go of the interpreter's lock meanwhile, so several can run in threads."""
    ends = scenario.bins or [scenario.duration]
    flows, bins, rules = len(scenario.flows), len(ends), scenario.rules
    spec = ScenarioSpec(
        scenario.seed,
        nanoseconds(scenario.duration),
        nanoseconds(scenario.clock_skew),
        nanoseconds(scenario.timer_delay),
        nanoseconds(scenario.probe_every),
        nanoseconds(scenario.garbage_at),
        nanoseconds(scenario.horizon),
        scenario.limit,
        scenario.flow_limit,
        scenario.garbage_kind,
        scenario.large_bursts,
        flows,
        len(scenario.changes),
        bins,
        rules,
        (FlowSpec * flows)(*map(flow_spec, scenario.flows)),
        (ChangeSpec * len(scenario.changes))(
            *(ChangeSpec(nanoseconds(one.at), one.rate, one.bucket, one.rule) for one in scenario.changes)
        ),
        (ctypes.c_uint64 * bins)(*map(nanoseconds, ends)),
    )
    counted, each = (BinResult * (bins * rules))(), (FlowResult * (bins * flows))()
    asked = (RequestResult * scenario.requests)()
    result = ResultSpec(requests_most=scenario.requests, bin=counted, flow=each, request=asked)
    if library.simulate(ctypes.byref(spec), ctypes.byref(result)):
        raise MemoryError
    return Result(
        list(result.worst_excess)[:rules],
        result.events,
        [
            bin_of(begin, end, counted[i * rules : (i + 1) * rules], each[i * flows : (i + 1) * flows])
            for i, (begin, end) in enumerate(zip([0.0, *ends], ends))
        ],
        [Request(one.at / SECOND, one.took / SECOND, one.flow, bool(one.answered)) for one in asked[: result.requests]],
    )


def bin_of(begin: float, end: float, rules: list[BinResult], flows: list[FlowResult]) -> Bin:
    return Bin(
        begin,
        end,
        rules[0].bytes,
        sum(rule.drops for rule in rules),
        sum(rule.notices for rule in rules),
        [flow.bytes for flow in flows],
        [flow.held / max(1, flow.packets) for flow in flows],
        [flow.packets for flow in flows],
        [flow.drops for flow in flows],
        [flow.silence / SECOND for flow in flows],
        [rule.bytes for rule in rules],
        [flow.lost for flow in flows],
        [flow.wait / SECOND for flow in flows],
    )
