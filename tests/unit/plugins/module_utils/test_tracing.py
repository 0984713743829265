# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""core/tracing.py: what a trace is asked for as bytes, and what it tells as a result and as text. Of
host/bpf/tracing.py, where functions of the kernel are.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import tracing
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import REASONS
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import tracing as port

WANTED = tracing.Wanted(duration=2.5, most=10)
DROP, PASS, NOTICE = 2, 1, 3
OURS = {"id": 7, "name": "limit_and_trace", "attach_flags": "multi", "cgroup": "/", "ours": True}
NAMES = tracing.Names({11: "web", 12: "outer"}, {5: "/web", 6: "/web/below"}, {(tracing.OUT, 5, (7,)): [OURS]})


def filter_of(wanted: tracing.Wanted = WANTED, **more: t.Any) -> dict[str, t.Any]:
    given = {"rule": 0, "cgroups": False, "process": None, **more}
    return dict(zip(tracing.FILTER_FIELDS, tracing.FILTER.unpack(tracing.pack_filter(wanted, **given))))


def packet(**fields: t.Any) -> tracing.Packet:
    given = {
        "time_ns": 1_500_000_000,
        "context": 0xFFFF8F2FF73B4400,
        "cgroup": 5,
        "measured": 3 << 32 | 4156,
        "verdict": PASS,
        "outcome": len(REASONS),
        "version": 4,
        "protocol": 6,
        "ports": bytes([0xAB, 0xCD, 0x01, 0xBB]),
        "source": bytes([192, 0, 2, 1]),
        "target": bytes([192, 0, 2, 2]),
        "programs[0]": 7,
        **fields,
    }
    texts = ("ports", "reserved", "source", "target")
    values = (given.get(name, b"" if name in texts else 0) for name in tracing.PACKET_FIELDS)
    return tracing.unpack(tracing.PACKET.pack(*values))


def rule(place: int, number: int, verdict: int, reason: str = "unknown", **fields: int) -> dict[str, int]:
    given = {"rule": number, "verdict": verdict, "reason": REASONS.index(reason), **fields}
    return {f"rules[{place}].{name}": value for name, value in given.items()}


def test_what_is_not_asked_for_is_zero() -> None:
    found = filter_of()
    assert found.pop("duration_ns") == 2_500_000_000
    assert found.pop("outcomes") == 2**32 - 1
    assert set(found.values()) == {0, bytes(16)}


def test_a_network_is_compared_by_its_bits() -> None:
    found = filter_of(WANTED._replace(address=tracing.address("address:", "192.0.2.77/24"), port=443))
    assert (found["version"], found["port"]) == (4, 443)
    assert found["address"] == bytes([192, 0, 2]) + bytes(13)
    assert found["mask"] == bytes([255, 255, 255]) + bytes(13)
    found = filter_of(WANTED._replace(address=tracing.address("address:", "2001:db8::1")))
    assert (found["version"], found["mask"]) == (6, b"\xff" * 16)


@pytest.mark.parametrize("text", ["", "web.example.com", "192.0.2.256", "192.0.2.0/33", "fe80::1%eth0/129"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(LimiterError, match="Give an address or a network") as raised:
        tracing.address("address:", text)
    assert raised.value.kind == "bad_options"


def test_outcomes_are_bits_and_what_others_drop_has_passed_before() -> None:
    only = filter_of(WANTED._replace(outcomes=("empty", "passed")))["outcomes"]
    assert only == 1 << REASONS.index("empty") | 1 << len(REASONS)
    others = filter_of(WANTED._replace(outcomes=(tracing.OTHER_PROGRAM,)))["outcomes"]
    assert others == (1 << len(REASONS) + 3) - 1


def test_of_a_process_only_its_sockets_are_told() -> None:
    found = filter_of(process=1234, cgroups=True, refused=[(10, 20), (30, 40), (50, 60), (70, 80)])
    assert (found["process"], found["sockets"], found["cgroups"]) == (1234, 1, 1)
    assert (filter_of()["process"], filter_of()["sockets"]) == (0, 0)
    # By a number that programs do not know, they still tell of its open sockets alone.
    assert (filter_of(process=0)["process"], filter_of(process=0)["sockets"]) == (0, 1)
    assert [found[f"refused[{place}]"] for place in range(6)] == [10, 20, 30, 40, 50, 60]


def test_a_packet_that_passes() -> None:
    found = tracing.session(packet(share=1000, **rule(0, 11, PASS, tokens=-5, share=2**64 - 1)), 10**9, NAMES)
    assert (found["seconds"], found["direction"], found["attach_type"]) == (0.5, "out", 1)
    assert (found["cgroup"], found["cgroup_id"], found["context"]) == ("/web", 5, "0xffff8f2ff73b4400")
    assert (found["programs"], found["programs_from"]) == ([OURS], "packet")
    assert (found["verdict"], found["reason"], found["rule"], found["share"]) == ("passed", "passed", "web", 1000)
    assert (found["bytes"], found["segments"], found["protocol"]) == (4156, 3, "tcp")
    assert (found["source"], found["source_port"]) == ("192.0.2.1", 0xABCD)
    assert (found["target"], found["target_port"]) == ("192.0.2.2", 443)
    assert found["rules"] == [
        {"name": "web", "budget": None, "verdict": "passed", "reason": None, "tokens": -5, "share": None}
    ]


def test_a_refusal_by_an_outer_rule_and_a_budget() -> None:
    rules = {**rule(0, 11, NOTICE, "low", cgroup=6), **rule(1, 12, DROP, "debt")}
    found = tracing.session(packet(verdict=DROP, outcome=REASONS.index("debt"), **rules), 0, NAMES)
    assert (found["verdict"], found["reason"], found["rule"]) == ("dropped", "debt", "outer")
    assert [(one["name"], one["budget"], one["verdict"], one["reason"]) for one in found["rules"]] == [
        ("web", "/web/below", "refunded", None),
        ("outer", None, "dropped", "debt"),
    ]


def test_a_notice_names_the_rule_that_gave_it() -> None:
    rules = {**rule(0, 11, PASS), **rule(1, 12, NOTICE, "low")}
    found = tracing.session(packet(verdict=NOTICE, outcome=REASONS.index("low"), **rules), 0, NAMES)
    assert (found["verdict"], found["reason"], found["rule"]) == ("notice", "low", "outer")


def test_what_another_program_drops() -> None:
    found = tracing.session(packet(**rule(0, 11, PASS)), 0, NAMES, refused=True)
    assert (found["verdict"], found["reason"], found["rule"]) == ("dropped", "other_program", None)
    ours = tracing.session(packet(verdict=DROP, outcome=1, **rule(0, 11, DROP, "empty")), 0, NAMES, refused=True)
    assert (ours["reason"], ours["rule"]) == ("empty", "web")


def test_what_is_gone_has_no_name() -> None:
    found = tracing.session(packet(cgroup=99, **rule(0, 98, PASS)), 0, NAMES)
    assert (found["cgroup"], found["programs"], found["rules"][0]["name"]) == (None, None, None)
    assert "cgroup=-" in tracing.lines(found)[1]


def test_with_as_many_programs_as_a_packet_can_list_there_may_be_more() -> None:
    full = packet(**{f"programs[{place}]": 7 for place in range(tracing.PROGRAMS)})
    assert tracing.session(full, 0, NAMES)["programs_from"] == "query"
    assert tracing.session(packet(**{"programs[0]": 0}), 0, NAMES)["programs_from"] == "query"


def test_the_text_has_the_form_of_the_c_tool() -> None:
    rules = {**rule(0, 11, PASS, tokens=4000, share=500), **rule(1, 12, DROP, "empty", tokens=-1)}
    found = tracing.session(packet(verdict=DROP, outcome=REASONS.index("empty"), **rules), 0, NAMES)
    assert tracing.lines(found) == [
        "SESSION: direction=out cgroup_id=5 ctx=0xffff8f2ff73b4400 atype=1",
        "  PROG: id=7 name=limit_and_trace",
        "  PACKET: tcp 192.0.2.1:43981 > 192.0.2.2:443 bytes=4156 segments=3 cgroup=/web",
        "  VERDICT: dropped reason=empty rule=outer",
        "  RULE: name=web refunded tokens=4000 share=500",
        "  RULE: name=outer dropped reason=empty tokens=-1",
    ]


def test_ipv6_and_protocols_without_ports_and_packets_that_arrive() -> None:
    seen = packet(kind=tracing.IN, version=6, source=b"\xfd" + bytes(14) + b"\1", ports=bytes([1, 0, 0, 0]))
    found = tracing.session(seen, 0, NAMES)
    assert (found["direction"], found["attach_type"], found["source"]) == ("in", 0, "fd00::1")
    assert "tcp [fd00::1]:256 > c000:202::" in tracing.lines(found)[1]
    strange = tracing.session(packet(protocol=200, version=9, ports=bytes(4)), 0, NAMES)
    assert (strange["protocol"], strange["source"], strange["source_port"]) == ("200", None, None)
    assert "200 - > - " in tracing.lines(strange)[2]


SYMBOLS = """\
ffffffff81000000 T _text
ffffffff81ffc440 t ip_finish_output.part.0
ffffffff81ffc440 d ip_table
ffffffff81ffc440 t __pfx_ip_fragment
ffffffff81ffc500 T ip_fragment
ffffffff81ffc600 T ip_finish_output2
ffffffffc0a81000 t ip6_finish_output\t[ipv6]
ffffffffc0a81200 t ip6_fragment\t[ipv6]
ffffffffc0a90000 t ip_mc_finish_output
"""


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (SYMBOLS, [(0xFFFFFFFF81FFC440, 0xFFFFFFFF81FFC500), (0xFFFFFFFFC0A81000, 0xFFFFFFFFC0A81200)]),
        (re.sub(r"^\w+", "0" * 16, SYMBOLS, flags=re.MULTILINE), []),  # as the kernel tells those who may not know
        ("", []),
        (None, []),
    ],
    ids=["some", "hidden", "empty", "none"],
)
def test_where_functions_begin_and_end_is_read_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, places: list[tuple[int, int]]
) -> None:
    path = tmp_path / "kallsyms"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(port, "_SYMBOLS", str(path))
    assert port.places_of_refusals() == places
