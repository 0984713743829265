# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of a fleet answered to the playbook `report`, host by host.

An answer is not trusted: whoever is root on a managed host can send anything in its place. So each value is taken only
in its own form, in a bounded length, and nothing that one host sends keeps the others out of the report.
"""

from __future__ import annotations

import itertools
import math
import re
import typing as t

# In the order in which a report tells of them.
STATES = ("not_limited", "differs", "cannot", "failed", "unreachable", "as_wanted")

# Errors (`kind`) of a host that lacks something, or does not allow it: no task of this collection changes that.
_CANNOT = frozenset(
    (
        "exclusive_program",
        "kernel_32_bit",
        "kernel_too_old",
        "libbpf_too_old",
        "locked_down",
        "missing_dependency",
        "no_btf",
        "no_cgroup2",
        "no_cgroup_bpf",
        "no_compiler",
        "no_libbpf_headers",
        "not_permitted",
        "old_python",
        "too_many_programs",
        "unusable_cgroup",
    )
)
_LONGEST = 1000
_LONGEST_NAME = 255
_MOST = 65_536  # there is room for so many rules
_MOST_TEXTS = 100
# What a host may take of the report, for its rules and for its changes each. A browser has no string beyond 512 MB, so
# one host would keep all others from being seen. 10,000 rules take less.
_ROOM = 2_000_000
_FIGURES = 64  # what the numbers of a rule take
_MODES = frozenset(("paced", "token_bucket", "none"))
_LARGEST = 2**64
_PROGRAM_ID = re.compile(r" \(id [0-9]+\)")
_AUTOMATIC = re.compile(r"pid-[0-9]+")


Changes = t.Sequence[tuple[str, str]]  # lines of a diff: before, after


def as_text(reasons: t.Sequence[str], changes: Changes) -> str:
    return "\n".join([*reasons, *(line for old, new in changes for line in (f"- {old}", f"+ {new}"))])


class RuleSeen(t.NamedTuple):
    """A rule as a host has it now. None: not known."""

    name: str
    rate: int | None  # bytes per second
    bucket: int | None  # bytes
    processes: int
    use: int | None  # bytes of the last second
    utilization: float | None  # of the limit; of the cgroup that uses most of it, where each has its own
    each: bool | None  # each of its cgroups has the rate for itself
    binds: bool | None
    packets: int | None
    dropped_packets: int | None
    dropped_bytes: int | None
    mode: str | None
    reason: str | None  # why its connections are not paced
    persistent: bool | None  # it is made again at boot


class Host(t.NamedTuple):
    name: str
    state: str
    reasons: tuple[str, ...]  # why nothing limits, or what failed
    changes: Changes
    exposed: bool  # something that a rule is to limit is not limited
    extra: tuple[str, ...]  # rules that no variable names
    wants_none: bool
    kernel: str | None
    missing: tuple[str, ...]
    rules: tuple[RuleSeen, ...]
    left_out: int = 0  # rules for which the report has no room
    boot: tuple[str, ...] = ()  # why rules are not there, or not as they are, after the next boot

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Rules that do not survive a reboot. Those of single processes never do."""
        return tuple(
            rule.name for rule in self.rules if rule.persistent is False and not _AUTOMATIC.fullmatch(rule.name)
        )

    @property
    def unpaced(self) -> tuple[str, ...]:
        """Rules whose connections are not all paced."""
        return tuple(
            f"{rule.name}: {rule.mode}, {rule.reason}" for rule in self.rules if rule.reason and rule.mode != "none"
        )


class Answers(t.NamedTuple):
    """A host's variables that the playbook registers, each of them as it came, or None."""

    seen: object
    compared: object
    named: object
    address: object = None


def read(name: str, answers: Answers) -> Host:
    """A host by its answers."""
    seen, compared = _dict(answers.seen), _dict(answers.compared)
    there = [_rule(rule) for rule in _dicts(seen.get("rules"))]
    rules = tuple(there[: _fitting(_FIGURES + _size(rule.name) + _size(rule.reason or "") for rule in there)])
    known = isinstance(answers.named, (list, tuple))
    wanted = {_text(wanted) for wanted in _list(answers.named)}
    extra = [rule.name for rule in rules if rule.name not in wanted and not _AUTOMATIC.fullmatch(rule.name)]
    host = _dict(seen.get("host"))
    found = Host(
        name=name,
        state="as_wanted",
        reasons=(),
        changes=(),
        exposed=False,
        extra=tuple(sorted(extra)) if known else (),
        wants_none=known and not wanted,
        kernel=_text(host.get("kernel")) or None,
        missing=_texts(host.get("missing")),
        rules=rules,
        left_out=len(there) - len(rules),
        boot=_texts(_dict(seen.get("boot")).get("problems")),
    )
    message = (_text(compared.get("msg")) or _text(seen.get("msg")) or "no answer").strip()
    if seen.get("unreachable") or compared.get("unreachable"):
        return found._replace(state="unreachable", reasons=(_without(message, _text(answers.address) or name),))
    if not compared or compared.get("failed", True):
        cannot = _text(compared.get("kind")) in _CANNOT
        return found._replace(state="cannot" if cannot else "failed", reasons=(message,), exposed=cannot)
    return _compared(found, compared)


def _compared(found: Host, compared: t.Mapping[str, object]) -> Host:
    new, old = (_dicts(compared.get(key)) for key in ("rules", "previous"))
    differs = bool(new or old or _list(compared.get("program_actions")))
    diff = _dict(compared.get("diff"))
    before, after = (_lines(diff.get(key)) for key in ("before", "after"))
    # Rules that are as wanted and do not limit are nothing that is as wanted.
    idle = _texts(compared.get("unenforced"))
    absent = {_text(rule.get("name")) for rule in new} - {_text(rule.get("name")) for rule in old}
    return found._replace(
        state="not_limited" if idle else "differs" if differs else "as_wanted",
        reasons=idle,
        changes=_changes(before, after) if differs else (),
        exposed=bool(idle or absent or "program: not loaded" in before[:1]),
    )


def _rule(rule: t.Mapping[str, object]) -> RuleSeen:
    use, pacing, counters = (_dict(rule.get(key)) for key in ("use", "pacing", "counters"))
    mode = _text(pacing.get("mode"))
    return RuleSeen(
        name=_text(rule.get("name"))[:_LONGEST_NAME],
        rate=_number(rule.get("rate")),
        bucket=_number(rule.get("bucket")),
        processes=len(_list(rule.get("pids"))),
        use=_number(use.get("rate")),
        utilization=_part(use.get("utilization")),
        each=_bool(rule.get("each")),
        binds=_bool(use.get("binds")),
        packets=_number(counters.get("packets")),
        dropped_packets=_number(counters.get("dropped_packets")),
        dropped_bytes=_number(counters.get("dropped_bytes")),
        mode=mode if mode in _MODES else None,
        reason=_PROGRAM_ID.sub("", _text(pacing.get("reason"))) or None,
        persistent=_bool(rule.get("persistent")),
    )


def _without(message: str, address: str) -> str:
    """The message of a connection, in the same words for every host."""
    return re.sub(rf"(?<!\w){re.escape(address)}(?!\w)", "HOST", message)


def _dict(value: object) -> t.Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> t.Sequence[object]:
    return value[:_MOST] if isinstance(value, (list, tuple)) else ()


def _dicts(value: object) -> list[t.Mapping[str, object]]:
    return [_dict(entry) for entry in _list(value)]


def _text(value: object) -> str:
    """Without Ansible's own kinds of strings, which carry where they came from."""
    if not isinstance(value, str):
        return ""
    plain = str.__str__(value)
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}…"


def _texts(value: object) -> tuple[str, ...]:
    found = [text for text in map(_text, _list(value)) if text]
    more = len(found) - _MOST_TEXTS
    return (*found[:_MOST_TEXTS], *([f"and {more} more"] if more > 0 else ()))


def _changes(before: t.Sequence[str], after: t.Sequence[str]) -> Changes:
    pairs = list(zip(before, after))
    kept = pairs[: _fitting(_size(old) + _size(new) for old, new in pairs)]
    more = f"and {len(pairs) - len(kept)} more"
    return (*kept, *([(more, more)] if len(kept) < len(pairs) else ()))


def _size(text: str) -> int:
    """About what it takes in JSON, in ASCII alone."""
    return len(text.encode("unicode_escape"))


def _fitting(sizes: t.Iterable[int]) -> int:
    """How many of these there is room for."""
    return sum(taken <= _ROOM for taken in itertools.accumulate(sizes))


def _lines(value: object) -> list[str]:
    return [_text(line) for line in value.splitlines()[:_MOST]] if isinstance(value, str) else []


def _bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _part(value: object) -> float | None:
    """In whole thousandths."""
    thousandths = _number(value * 1000) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    return None if thousandths is None else thousandths / 1000


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(min(max(value, 0), _LARGEST))
