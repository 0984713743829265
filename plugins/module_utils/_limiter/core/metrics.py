# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_info returns, as Prometheus reads it (text format 0.0.4).

Names and units are those of Prometheus' conventions: bytes and seconds, counters end with ``_total``. What is not known
has no sample, so nobody takes it for zero.
"""

from __future__ import annotations

import typing as t

PREFIX = "speed_limiter"

Labels = t.Mapping[str, str]
Sample = tuple[Labels, t.Any]  # a number, a bool, or None: not known
Facts = t.Mapping[str, t.Any]


class Metric(t.NamedTuple):
    name: str  # without the prefix
    kind: str  # counter or gauge
    help: str
    samples: t.Callable[[Facts], t.Iterable[Sample]]  # of a rule; of the whole result for those of the host


def _one(*path: str) -> t.Callable[[Facts], t.Iterable[Sample]]:
    """The value at this path of keys."""

    def samples(facts: Facts) -> t.Iterable[Sample]:
        value: t.Any = facts
        for key in path:
            value = value.get(key) if value is not None else None
        return [({}, value)]

    return samples


def _by_reason(key: str) -> t.Callable[[Facts], t.Iterable[Sample]]:
    def samples(rule: Facts) -> t.Iterable[Sample]:
        return [({"reason": reason}, count) for reason, count in ((rule["counters"] or {}).get(key) or {}).items()]

    return samples


def _connections(rule: Facts) -> t.Iterable[Sample]:
    pacing, use = rule["pacing"] or {}, rule["use"] or {}
    yield {"state": "active"}, pacing.get("active_connections")
    yield {"state": "unpaced"}, pacing.get("unpaced_connections")
    yield {"state": "waiting"}, pacing.get("waiting_connections")
    yield {"state": "waiting_elsewhere"}, use.get("waiting_elsewhere")


def _limited(rule: Facts) -> t.Iterable[Sample]:
    return [({}, rule["pacing"]["mode"] != "none" if rule["pacing"] else None)]


def _paced(rule: Facts) -> t.Iterable[Sample]:
    return [({}, rule["pacing"]["mode"] == "paced" if rule["pacing"] else None)]


def _round_trip(rule: Facts) -> t.Iterable[Sample]:
    longest = (rule["pacing"] or {}).get("longest_round_trip_us")
    return [({}, None if longest is None else longest / 1_000_000)]


def _processes(rule: Facts) -> t.Iterable[Sample]:
    return [({}, None if rule["pids"] is None else len(rule["pids"]))]


HOST = (
    Metric(
        "up",
        "gauge",
        "Whether program and rules could be looked at.",
        lambda seen: [({}, not seen["unseen"])],
    ),
    Metric(
        "program_loaded",
        "gauge",
        "Whether the program is attached, without which nothing is limited.",
        lambda seen: [({}, None if seen["unseen"] else seen["program"] is not None)],
    ),
    Metric(
        "rules",
        "gauge",
        "Number of rules.",
        lambda seen: [({}, None if seen["rules"] is None else len(seen["rules"]))],
    ),
)

RULE = (
    Metric("rule_limit_bytes_per_second", "gauge", "Rate of the rule, in IP bytes on the wire.", _one("rate")),
    Metric("rule_bucket_bytes", "gauge", "What may be sent at once after a pause.", _one("bucket")),
    Metric("rule_each", "gauge", "Whether each cgroup of the rule has the rate for itself.", _one("each")),
    Metric(
        "rule_utilization_ratio",
        "gauge",
        "Part of the limit used in the last second, of the cgroup that used most of its own where each has one.",
        _one("use", "utilization"),
    ),
    Metric("rule_processes", "gauge", "Processes that the rule has taken.", _processes),
    Metric("rule_limited", "gauge", "Whether the rule limits what is opened from now on.", _limited),
    Metric("rule_paced", "gauge", "Whether all TCP connections pace themselves at their share.", _paced),
    Metric("rule_binds", "gauge", "Whether the rule holds its senders back now.", _one("use", "binds")),
    Metric("rule_connections", "gauge", "TCP connections that sent data in the last epoch.", _connections),
    Metric(
        "rule_fair_share_bytes_per_second",
        "gauge",
        "What one connection may send now.",
        _one("pacing", "fair_share"),
    ),
    Metric("rule_longest_round_trip_seconds", "gauge", "Longest round trip of the connections lately.", _round_trip),
    Metric("rule_packets_total", "counter", "IP packets that passed.", _one("counters", "packets")),
    Metric("rule_bytes_total", "counter", "IP bytes on the wire that passed.", _one("counters", "bytes")),
    Metric("rule_dropped_packets_total", "counter", "IP packets that were dropped.", _by_reason("drops")),
    Metric("rule_dropped_bytes_total", "counter", "IP bytes that were dropped.", _one("counters", "dropped_bytes")),
    Metric(
        "rule_delayed_packets_total",
        "counter",
        "IP packets that waited in their device's queue.",
        _one("counters", "delayed_packets"),
    ),
    Metric(
        "rule_congestion_notices_total",
        "counter",
        "IP packets that passed with a congestion notice.",
        _by_reason("notices"),
    ),
)


def render(seen: Facts) -> str:
    """``seen`` is the result of speed_limit_info with ``gather=program,rules``."""
    lines: list[str] = []
    for metric in HOST:
        _add(lines, metric, list(metric.samples(seen)))
    for metric in RULE:
        samples = [
            ({"rule": rule["name"], **labels}, value)
            for rule in seen["rules"] or ()
            for labels, value in metric.samples(rule)
        ]
        _add(lines, metric, samples)
    return "".join(f"{line}\n" for line in lines)


def _add(lines: list[str], metric: Metric, samples: t.Sequence[Sample]) -> None:
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return
    name = f"{PREFIX}_{metric.name}"
    lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
    lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in known]


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, (bool, int)) else repr(value)
