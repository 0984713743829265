# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""core/why.py: what is said of one process, and only what was seen."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import pacing, why
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.connections import Seen, Sent, Summary
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.measured import Connections, Measured
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import shown

NOW = 10**12
ON = pacing.Ability("on", None, adopts=True)
PROCESS = {"pid": 812, "command": "restic", "cgroup": "/a.slice/b.service"}
NONE = Counters()
NAMES = {7: "inner", 8: "outer"}
EMPTY = Counters(dropped_bytes=3000, drops=(0, 2, 0, 1, 0, 0, 0, 0))


def rule(
    name: str, limit: int | None, rate: int = 0, counters: Counters = NONE, binds_seconds: float | None = 3.25
) -> dict[str, t.Any]:
    used = round(rate / limit, 3) if limit else None
    return {
        "name": name,
        "limit": limit,
        "rate": rate,
        "utilization": used,
        "seconds": 1.0,
        "binds_seconds": binds_seconds,
        "counters": counters.about(),
    }


def connection(bottleneck: int = 7, held: bool = True, rate: int = 500_000, sent_ns: int = NOW) -> Measured:
    seen = Seen(1, 2, "192.0.2.1", 4000, "192.0.2.7", 443, 55, (7, 8), bottleneck, 500_000, 490_000, 900, sent_ns, held)
    return Measured(seen, rate, Sent(NOW, 1, 1, 52, 1000, 10_000), 812, "restic")


def told(*found: Measured, rules: t.Sequence[t.Any]) -> dict[str, t.Any]:
    return why.about(PROCESS, rules, ON, Connections(Summary(), found, NOW), NAMES)


INNER, OUTER = rule("inner", 1_000_000, 1_000_000), rule("outer", 4_000_000, 2_500_000)


def test_what_comes_next_is_what_the_other_rule_leaves_beside_others() -> None:
    found = told(connection(), connection(), rules=[OUTER, INNER])
    assert found["without"] == {"rule": "outer", "rate": 2_500_000, "windows": 20_000_000}
    assert found["text"] == (
        "Process 812 (restic) is in /a.slice/b.service. 2 rules hold for what it sends: outer (32 Mbit/s, 62 % used) "
        "and inner (8 Mbit/s, 100 % used). inner holds it back now: 2 of its 2 connections wait for it. Together they "
        "send 8 Mbit/s. It has held somebody back for 3.25 s without a break. Without inner, "
        "outer would be next, which leaves it 20 Mbit/s beside what others send."
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "Since when is not known."),
        (0.5, "It has held somebody back for 0.5 s without a break."),
        (119.9, "It has held somebody back for 1 min without a break."),
        (7500.0, "It has held somebody back for 2 h 5 min without a break."),
    ],
)
def test_since_when_is_what_the_program_noted(seconds: float | None, said: str) -> None:
    found = told(connection(), rules=[rule("inner", 1_000_000, 1_000_000, binds_seconds=seconds)])
    assert found["held_seconds"] == seconds
    assert said in found["text"]
    assert "its connection waits for it. It sends 4 Mbit/s." in found["text"]
    assert (
        "no rule would hold it back, but only the path and the other side; its TCP windows allow 80 Mbit/s"
        in (found["text"])
    )


def test_of_a_rule_that_holds_others_back_nothing_follows_for_a_process_that_does_not_wait() -> None:
    dropping = rule("inner", 1_000_000, 1_000_000, EMPTY)
    found = told(connection(held=False), rules=[OUTER, dropping])
    assert (found["binding_rule"], found["without"], found["held_seconds"]) == (None, None, None)
    assert "it sends 4 Mbit/s through 1 TCP connection, and none of these waits. What is slow is" in found["text"]


def test_drops_are_told_of_who_has_no_connection_that_sends() -> None:
    found = told(connection(sent_ns=0), rules=[rule("inner", 1_000_000, 900_000, EMPTY)])
    assert found["binding_rule"] == "inner" and found["waiting_connections"] == 0
    assert "inner drops packets now, 3 in 1 s (by reason: 2 empty and 1 debt): what it sends otherwise" in found["text"]


def test_without_a_rule_it_is_not_the_limiter() -> None:
    assert told(rules=[])["text"] == (
        "Process 812 (restic) is in /a.slice/b.service, for which no rule holds: the limiter does not slow it."
    )


@pytest.mark.parametrize("cgroup", ["/..", "/../../system.slice/web.service"])
def test_of_a_cgroup_that_is_not_seen_from_a_container_nothing_is_claimed(cgroup: str) -> None:
    """Such as that of the kernel's threads."""
    found = why.about({**PROCESS, "cgroup": cgroup}, [], ON, Connections(), NAMES)
    assert found["text"] == (
        "Process 812 (restic) is in a cgroup outside of this cgroup namespace, so the rules that hold for it are not "
        "seen from here: ask on the host."
    )
    found = why.about({**PROCESS, "cgroup": cgroup}, [INNER], ON, Connections(), NAMES)
    assert "outside of this cgroup namespace. One rule holds for what it sends: inner (" in found["text"]


def test_what_could_not_be_looked_at_is_not_told_as_if_it_were() -> None:
    found = why.about(PROCESS, [rule("inner", None)], ON, Connections(), NAMES)
    assert (found["connections"], found["rate"]) == (None, None)
    assert "inner (unfinished)" in found["text"] and "as far as can be seen" in found["text"]


def test_the_paragraph_fits_a_terminal_and_cannot_command_it() -> None:
    hostile = why.about({**PROCESS, "command": "\x1b[2J"}, [INNER], ON, Connections(), NAMES)
    lines = shown.why({"why": hostile}, 40)
    assert len(lines) > 3 and all(len(line) <= 40 for line in lines)
    assert "\x1b" not in "".join(lines)
    assert len(shown.why({"why": hostile}, None)) == 1
    assert "not known" in shown.why({"why": None}, None)[0]
