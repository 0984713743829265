# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet: its hosts by state, those that differ in the same way together, and each rule over all of them."""

from __future__ import annotations

import typing as t

from .hosts import STATES, Changes, Host, RuleSeen, as_text

# Of the JSON document: docs/report.schema.json. A new number says that something was removed or means something else.
SCHEMA = 1

FAILURES = ("drift", "unlimited", "any")


class Group(t.NamedTuple):
    """Hosts with the same state, for the same reasons and with the same changes."""

    state: str
    reasons: tuple[str, ...]
    changes: Changes
    hosts: tuple[str, ...]

    @property
    def text(self) -> str:
        return as_text(self.reasons, self.changes)


class RuleOfFleet(t.NamedTuple):
    """A rule by its name, over all hosts that have it. Sums leave out what is not known."""

    name: str
    hosts: int
    slowest: int | None  # bytes per second
    fastest: int | None
    limits: int  # all hosts together; of `each`, one cgroup's of each host
    use: int  # bytes of the last second
    binds: int  # hosts
    packets: int
    dropped_packets: int
    dropped_bytes: int
    unpaced: int  # hosts
    utilization: float | None  # of the host on which most of the limit is used
    each: int  # hosts, on which each cgroup has the rate for itself


class Fleet:
    def __init__(self, hosts: t.Sequence[Host], created: str) -> None:
        """``created`` is the time of the report, in UTC, as ISO 8601 has it."""
        self.hosts, self.created = tuple(hosts), created
        self.counts = {state: sum(host.state == state for host in hosts) for state in STATES}
        self.drift = sum(bool(host.changes) or host.state == "differs" for host in hosts)
        self.exposed = sum(host.exposed for host in hosts)

    def groups(self) -> list[Group]:
        """All hosts that are not as wanted, by state; in each the most frequent first."""
        alike: dict[tuple[str, str], list[Host]] = {}
        for host in self.hosts:
            if host.state != "as_wanted":
                alike.setdefault((host.state, as_text(host.reasons, host.changes)), []).append(host)
        ordered = sorted(alike.items(), key=lambda item: (STATES.index(item[0][0]), -len(item[1]), item[0][1]))
        return [
            Group(state, same[0].reasons, same[0].changes, tuple(host.name for host in same))
            for (state, _text), same in ordered
        ]

    def rules(self) -> list[RuleOfFleet]:
        found: dict[str, list[RuleSeen]] = {}
        for host in self.hosts:
            for rule in host.rules:
                found.setdefault(rule.name, []).append(rule)
        return [_over(name, found[name]) for name in sorted(found)]

    def summary(self) -> dict[str, int]:
        """Numbers of hosts: by state, and how many fail a report that is asked for drift or unlimited."""
        return {"hosts": len(self.hosts), **self.counts, "drift": self.drift, "unlimited": self.exposed}

    def why_failed(self, asked: t.Sequence[str]) -> str | None:
        """Why a report is a failure for what is asked (of `FAILURES`), or None."""
        number = len(self.hosts)
        reasons = []
        if "drift" in asked and self.drift:
            reasons.append(f"{self.drift} of {number} hosts differ from what is wanted")
        if "unlimited" in asked and self.exposed:
            reasons.append(f"on {self.exposed} of {number} hosts something that a rule is to limit is not limited")
        others = number - self.counts["as_wanted"]
        if "any" in asked and others:
            reasons.append(f"{others} of {number} hosts are not known to be as wanted")
        elif asked and self.counts["failed"]:
            # Such as a rate that is refused: then none of the host's rules is there.
            reasons.append(f"{self.counts['failed']} of {number} hosts failed, and are not known to be as wanted")
        return "; ".join(reasons) or None

    def document(self) -> dict[str, t.Any]:
        """The report as JSON has it."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "summary": self.summary(),
            "groups": [
                {**group._asdict(), "changes": [{"before": old, "after": new} for old, new in group.changes]}
                for group in self.groups()
            ],
            "rules": [rule._asdict() for rule in self.rules()],
            "hosts": [
                {
                    "name": host.name,
                    "state": host.state,
                    "reasons": host.reasons,
                    "changes": [{"before": old, "after": new} for old, new in host.changes],
                    "unlimited": host.exposed,
                    "extra_rules": host.extra,
                    "no_rule_wanted": host.wants_none,
                    "kernel": host.kernel,
                    "missing": host.missing,
                    "boot_problems": host.boot,
                    "rules": [rule._asdict() for rule in host.rules],
                    "rules_left_out": host.left_out,
                }
                for host in self.hosts
            ],
        }


def _over(name: str, seen: t.Sequence[RuleSeen]) -> RuleOfFleet:
    rates = [rule.rate for rule in seen if rule.rate is not None]
    return RuleOfFleet(
        name=name,
        hosts=len(seen),
        slowest=min(rates, default=None),
        fastest=max(rates, default=None),
        limits=sum(rates),
        use=sum(rule.use or 0 for rule in seen),
        binds=sum(bool(rule.binds) for rule in seen),
        packets=sum(rule.packets or 0 for rule in seen),
        dropped_packets=sum(rule.dropped_packets or 0 for rule in seen),
        dropped_bytes=sum(rule.dropped_bytes or 0 for rule in seen),
        unpaced=sum(bool(rule.reason) for rule in seen),
        utilization=max((rule.utilization for rule in seen if rule.utilization is not None), default=None),
        each=sum(bool(rule.each) for rule in seen),
    )
