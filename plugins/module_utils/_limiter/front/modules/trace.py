# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""speed_limit_trace: from its options to its result."""

from __future__ import annotations

import typing as t

from ...core import tracing
from ...core.errors import LimiterError
from ...core.names import check_rule_name
from ...core.request import parse_request
from ...work.trace import Asked, trace
from ..argspec import Spec
from ..call import Call, Result

LEAST_DURATION, MOST_DURATION = 0.1, 3600
MOST_EVENTS = 10_000
_MOST_PORT = 65535
_PLACES = ("cgroup_paths", "units", "users", "containers")


def spec() -> Spec:
    return {
        "duration": {"type": "float", "default": 5.0},
        "max_events": {"type": "int", "default": 100},
        "rule": {"type": "str"},
        "cgroup_paths": {"type": "list", "elements": "str", "aliases": ["cgroup_path"]},
        "units": {"type": "list", "elements": "str", "aliases": ["unit"]},
        "users": {"type": "list", "elements": "str", "aliases": ["user"]},
        "containers": {"type": "list", "elements": "str", "aliases": ["container"]},
        "pid": {"type": "int"},
        "direction": {"type": "str", "choices": list(tracing.DIRECTIONS), "default": "out"},
        "reasons": {"type": "list", "elements": "str", "choices": list(tracing.OUTCOMES), "aliases": ["reason"]},
        "address": {"type": "str"},
        "port": {"type": "int"},
        "object": {"type": "path"},
    }


def parse(options: t.Mapping[str, t.Any]) -> Asked:
    """Raises LimiterError: ``bad_options``, ``bad_name``, ``bad_pid``, ``bad_unit``, ``bad_container``."""
    given = {name: value for name, value in options.items() if value is not None}
    duration, most = given.get("duration", 5.0), given.get("max_events", 100)
    if not LEAST_DURATION <= duration <= MOST_DURATION:
        raise _bad("duration", duration, f"{LEAST_DURATION} to {MOST_DURATION} seconds")
    if not 1 <= most <= MOST_EVENTS:
        raise _bad("max_events", most, f"1 to {MOST_EVENTS}")
    port, pid = given.get("port", 0), given.get("pid")
    if "port" in given and not 1 <= port <= _MOST_PORT:
        raise _bad("port", port, f"1 to {_MOST_PORT}")
    if pid is not None and pid < 1:
        raise LimiterError("bad_pid", f"pid {pid} is refused", "a process id is a positive number")
    direction, rule = given.get("direction", "out"), given.get("rule")
    if rule is not None:
        check_rule_name("rule", rule)
        if direction == "in":
            raise LimiterError("bad_options", "rule and direction in exclude each other", "rules limit what leaves", "")
    wanted = tracing.Wanted(
        duration,
        most,
        direction,
        tuple(given.get("reasons", ())),
        tracing.address("address:", given["address"]) if "address" in given else tracing.ANY_ADDRESS,
        port,
    )
    places = {name: given[name] for name in _PLACES if given.get(name)}
    request = parse_request({"name": "trace", **places}) if places else None
    return Asked(wanted, rule, request, pid, given.get("object"))


def work(call: Call, show: t.Callable[[tracing.Session], object] = lambda session: None) -> Result:
    """The sessions, from options to result."""
    traced = trace(call.run_command, parse(call.params), call.check_mode, show)
    return {
        "changed": False,
        "sessions": traced.sessions,
        "text": [line for session in traced.sessions for line in tracing.lines(session)],
        "ended": traced.ended,
        "lost": traced.lost,
        "other_drops_seen": traced.sees_refusals,
        "warnings": traced.warnings,
    }


def _bad(option: str, value: object, forms: str) -> LimiterError:
    return LimiterError("bad_options", f"{option} {value} is refused", "", f"Give {forms}")


def main() -> None:
    from ..task import run  # here, since the command has no Ansible

    run(work, spec())
