# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf/traced.h in Python: what a trace is asked for, and what it tells of a packet.

All structs are free of padding, as in layout.py. A test compares every offset with the C compiler's.
"""

from __future__ import annotations

import struct
import typing as t

from .errors import LimiterError
from .layout import MAX_NESTED, UNPACED
from .reasons import REASONS

OUT, IN, REFUSED = range(3)  # enum traced_kind
DIRECTIONS = ("out", "in", "both")
# What was decided: why a packet was dropped or got a notice, or one of these.
PASSED, EXEMPT, ENCRYPTED, OTHER_PROGRAM = "passed", "exempt", "encrypted", "other_program"
_OUTCOMES = (*REASONS, PASSED, EXEMPT, ENCRYPTED)  # in the order of enum traced_outcome
OUTCOMES = (*_OUTCOMES[1:], OTHER_PROGRAM)  # what can be asked for; the last one is no word of our program's

PLACES = 3
MOST_CGROUPS = 65536
FILTER = struct.Struct(f"=QQ16s16s{2 * PLACES}Q6I")
FILTER_FIELDS = (
    "duration_ns",
    "rule",
    "address",
    "mask",
    *(f"refused[{index}]" for index in range(2 * PLACES)),
    "version",
    "port",
    "outcomes",
    "cgroups",
    "sockets",
    "process",
)
STATE = struct.Struct("=QQQ")
STATE_FIELDS = ("begin_ns", "told", "lost")
_HEAD, _RULE = "QQQQQQIIIIBB4s2s16s16s", "QQqQII"
PROGRAMS = 8
PACKET = struct.Struct(f"={_HEAD}{MAX_NESTED * _RULE}{PROGRAMS}I")
_HEAD_FIELDS = (
    "time_ns",
    "context",
    "cgroup",
    "cookie",
    "measured",
    "share",
    "kind",
    "verdict",
    "outcome",
    "bottleneck",
    "version",
    "protocol",
    "ports",
    "reserved",
    "source",
    "target",
)
_RULE_FIELDS = ("cgroup", "rule", "tokens", "share", "verdict", "reason")
PACKET_FIELDS = (
    *_HEAD_FIELDS,
    *(f"rules[{place}].{name}" for place in range(MAX_NESTED) for name in _RULE_FIELDS),
    *(f"programs[{place}]" for place in range(PROGRAMS)),
)

_VERDICTS = {1: "passed", 2: "dropped", 3: "notice"}  # enum verdict
_DROPPED = 2
_PASSES = 1  # a bit of verdicts
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 50: "esp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_LENGTHS = {4: 4, 6: 16}  # of an address, by the version of IP
# Of what packet.h packs into one number: where its fields begin.
_SEGMENTS, _SEGMENTS_MOST, _CONTROL, _HELD, _EARLY = 32, 0xFFFF, 51, 53, 54


class Address(t.NamedTuple):
    """An address or a network, as the program compares it."""

    version: int
    address: bytes
    mask: bytes


ANY_ADDRESS = Address(0, bytes(16), bytes(16))


class Wanted(t.NamedTuple):
    """Which packets are asked for, but for what only the host knows."""

    duration: float  # seconds
    most: int  # sessions
    direction: str = "out"
    outcomes: tuple[str, ...] = ()  # all, if empty
    address: Address = ANY_ADDRESS
    port: int = 0


class RuleSeen(t.NamedTuple):
    """One rule's part in a decision, as the program tells it."""

    cgroup: int  # whose budget it is; 0: the rule's own state was charged
    rule: int
    tokens: int
    share: int
    verdict: int
    reason: int


class Packet(t.NamedTuple):
    """What is told of a packet."""

    time_ns: int
    context: int
    cgroup: int
    cookie: int
    measured: int
    share: int
    kind: int
    verdict: int
    outcome: str
    bottleneck: int
    version: int
    protocol: int
    source: bytes
    target: bytes
    source_port: int
    target_port: int
    rules: tuple[RuleSeen, ...]
    programs: tuple[int, ...]  # ids

    @property
    def lists_programs(self) -> bool:
        """Whether all that run for it are known."""
        return 0 < len(self.programs) < PROGRAMS

    @property
    def is_dropped(self) -> bool:
        return self.verdict == _DROPPED


def address(option: str, text: str) -> Address:
    """Raises LimiterError ``bad_options``."""
    import ipaddress  # here, since only a trace needs it

    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise LimiterError("bad_options", f"{option} {text!r} is refused", str(error), _ADDRESSES) from None
    return Address(
        network.version, *(one.packed.ljust(16, b"\0") for one in (network.network_address, network.netmask))
    )


_ADDRESSES = "Give an address or a network, as 192.0.2.7 or 2001:db8::/32"


def pack_filter(
    wanted: Wanted, rule: int, cgroups: bool, process: int | None, refused: t.Sequence[tuple[int, int]] = ()
) -> bytes:
    """``process``: by the number that the kernel's programs see; 0: that is not known; None: no process is asked for.
    ``refused``: where functions of the kernel begin and end, `PLACES` at most.
    """
    places = [place for pair in refused[:PLACES] for place in pair]
    return FILTER.pack(
        int(wanted.duration * 1e9),
        rule,
        wanted.address.address,
        wanted.address.mask,
        *places,
        *(0 for _place in range(2 * PLACES - len(places))),
        wanted.address.version,
        wanted.port,
        _bits(wanted.outcomes),
        int(cgroups),
        int(process is not None),
        process or 0,
    )


def _bits(outcomes: t.Collection[str]) -> int:
    """Whether another program refuses what ours has let pass, shows only afterwards."""
    if not outcomes:
        return (1 << 32) - 1
    chosen = {*outcomes, *((PASSED, EXEMPT, ENCRYPTED, *REASONS) if OTHER_PROGRAM in outcomes else ())}
    return sum(1 << number for number, name in enumerate(_OUTCOMES) if name in chosen)


def unpack(data: bytes) -> Packet:
    """What the program wrote for a packet."""
    values = PACKET.unpack_from(data)
    head, rules, programs = values[: len(_HEAD_FIELDS)], values[len(_HEAD_FIELDS) : -PROGRAMS], values[-PROGRAMS:]
    seen = [RuleSeen._make(rules[at : at + len(_RULE_FIELDS)]) for at in range(0, len(rules), len(_RULE_FIELDS))]
    found = dict(zip(_HEAD_FIELDS, head))
    ports, outcome = struct.unpack(">HH", found.pop("ports")), _OUTCOMES[found.pop("outcome")]
    del found["reserved"]
    return Packet(
        **found,
        outcome=outcome,
        source_port=ports[0],
        target_port=ports[1],
        rules=tuple(rule for rule in seen if rule.rule),
        programs=tuple(filter(None, programs)),
    )


Listed = tuple[int, int, tuple[int, ...]]  # for which packets programs run: kind, cgroup, and what the packet lists


class Names(t.NamedTuple):
    """What the host calls the numbers of a packet."""

    rules: t.Mapping[int, str]  # by id
    cgroups: t.Mapping[int, str | None]  # paths by id; None: it is gone
    programs: t.Mapping[Listed, t.Sequence[t.Mapping[str, t.Any]] | None]


Session = dict[str, t.Any]


def session(packet: Packet, begin_ns: int, names: Names, refused: bool = False) -> Session:
    """What a module returns of a packet. ``refused``: the kernel ended it although our program had let it pass."""
    arrives = packet.kind == IN
    by_other = refused and not packet.is_dropped
    programs = names.programs.get((packet.kind, packet.cgroup, packet.programs))
    rules = [_rule(packet, seen, names) for seen in packet.rules]
    return {
        "seconds": round((packet.time_ns - begin_ns) / 1e9, 6),
        "direction": "in" if arrives else "out",
        "cgroup": names.cgroups.get(packet.cgroup),
        "cgroup_id": packet.cgroup,
        "context": f"0x{packet.context:016x}",
        "attach_type": 0 if arrives else 1,
        "programs": None if programs is None else [dict(program) for program in programs],
        "programs_from": "packet" if packet.lists_programs else "query",
        "verdict": "dropped" if by_other else _VERDICTS.get(packet.verdict, "passed"),
        "reason": OTHER_PROGRAM if by_other else packet.outcome,
        "rule": None if by_other else _deciding(packet, rules),
        "bytes": packet.measured & 0xFFFFFFFF,
        "segments": packet.measured >> _SEGMENTS & _SEGMENTS_MOST,
        "control": bool(packet.measured >> _CONTROL & 1),
        "held": bool(packet.measured >> _HELD & 1),
        "early": bool(packet.measured >> _EARLY & 1),
        "protocol": _PROTOCOLS.get(packet.protocol, str(packet.protocol)),
        "source": _shown_address(packet.version, packet.source),
        "source_port": packet.source_port or None,
        "target": _shown_address(packet.version, packet.target),
        "target_port": packet.target_port or None,
        "connection": packet.cookie,
        "share": _share(packet.share),
        "rules": rules,
    }


def _rule(packet: Packet, seen: RuleSeen, names: Names) -> Session:
    verdict = _VERDICTS.get(seen.verdict)
    if verdict and packet.is_dropped and seen.verdict & _PASSES:
        verdict = "refunded"
    return {
        "name": names.rules.get(seen.rule),
        "budget": names.cgroups.get(seen.cgroup) if seen.cgroup else None,
        "verdict": verdict,
        "reason": REASONS[seen.reason % len(REASONS)] if verdict in ("dropped", "notice") else None,
        "tokens": seen.tokens,
        "share": _share(seen.share),
    }


def _deciding(packet: Packet, rules: t.Sequence[Session]) -> str | None:
    """The rule that dropped the packet, or else gave it a notice, or else holds its connection back most."""
    for verdict in ("dropped", "notice"):
        for rule in rules:
            if rule["verdict"] == verdict:
                return t.cast("str | None", rule["name"])
    if packet.share and packet.bottleneck < len(rules):
        return t.cast("str | None", rules[packet.bottleneck]["name"])
    return t.cast("str | None", rules[0]["name"]) if len(rules) == 1 else None


def _share(share: int) -> int | None:
    return share if 0 < share < UNPACED >> 1 else None


def _shown_address(version: int, packed: bytes) -> str | None:
    import ipaddress

    if version not in _LENGTHS:
        return None
    return str(ipaddress.ip_address(packed[: _LENGTHS[version]]))


def lines(session: Session) -> list[str]:
    """The session as text: first the lines of the C tool `debug_cgroup_pbf`, then what was decided."""
    found = [
        f"SESSION: direction={session['direction']} cgroup_id={session['cgroup_id']} ctx={session['context']} "
        f"atype={session['attach_type']}"
    ]
    found += [f"  PROG: id={program['id']} name={program['name']}" for program in session["programs"] or ()]
    flow = f"{session['protocol']} {_end(session, 'source')} > {_end(session, 'target')}"
    size = f"bytes={session['bytes']} segments={session['segments']}"
    found.append(f"  PACKET: {flow} {size} cgroup={session['cgroup'] or '-'}")
    found.append(f"  VERDICT: {session['verdict']} reason={session['reason']}{_named('rule', session['rule'])}")
    for rule in session["rules"]:
        reason = f" reason={rule['reason']}" if rule["reason"] else ""
        share = f" share={rule['share']}" if rule["share"] else ""
        found.append(
            f"  RULE: name={rule['name'] or '-'} {rule['verdict'] or 'none'}{reason} tokens={rule['tokens']}{share}"
        )
    return found


def _end(session: Session, side: str) -> str:
    host, port = session[side] or "-", session[f"{side}_port"]
    return host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _named(word: str, value: str | None) -> str:
    return f" {word}={value}" if value else ""
