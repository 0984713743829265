# SPDX-License-Identifier: GPL-3.0-or-later
"""What speed_limit_trace tells of real packets: each reason, by what makes it happen."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import trace as work
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.connections import borrowed
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import cgroup2
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import INCLUDES
from ansible_collections.speed_limiter.ebpf.tests.support.net import PORT, Pair
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT, RATE, Scene, StateEntry, when_begun
from ansible_collections.speed_limiter.ebpf.tests.support.slow import PATIENCE

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h

DROPS_UDP = f"""{INCLUDES}
SEC("cgroup_skb/egress") int drops_udp(struct __sk_buff *skb)
{{
    __u8 protocol = 0;

    bpf_skb_load_bytes(skb, 9, &protocol, 1);
    return protocol != 17;
}}
char LICENSE[] SEC("license") = "GPL";
"""


def trace(most: int = 5, **options: Any) -> dict[str, Any]:
    return limiter.task("speed_limit_trace", max_events=most, duration=10.0 * PATIENCE, **options)


def one(**options: Any) -> dict[str, Any]:
    """The first session that is asked for; there must be one."""
    found = trace(1, **options)
    assert found["ended"] == "max_events", found
    session: dict[str, Any] = found["sessions"][0]
    return session


def test_who_interrupts_while_packets_are_read_is_heard(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object, packet: object) -> bool:
        raise KeyboardInterrupt

    cgroup = scene.limited(RATE)
    scene.pair.send_udp(RATE, cgroup=cgroup)
    monkeypatch.setattr(work._Trace, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trace(reasons=["passed"])
    assert not pins.exists(catalog.UNTRACED)


@pytest.mark.every_kernel
def test_a_packet_that_passes_is_told_with_its_rule_its_connection_and_who_saw_it(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    before = scene.pair.arrived()
    scene.pair.send_tcp(cgroup=cgroup)
    when_begun(scene.pair, before)
    session = one(reasons=["passed"], rule="paced", port=PORT)
    assert (session["verdict"], session["reason"], session["direction"]) == ("passed", "passed", "out")
    assert (session["protocol"], session["target"], session["target_port"]) == ("tcp", Pair.address, PORT)
    assert session["source"] == Pair.sender_address
    assert session["source_port"]
    assert session["bytes"] >= session["segments"] * 40 > 0
    assert session["cgroup"] == "/paced"
    assert (session["cgroup_id"], session["attach_type"]) == (cgroup.stat().st_ino, 1)
    assert [(program["name"], program["ours"]) for program in session["programs"]] == [("limit_and_trace", True)]
    assert (session["programs"][0]["cgroup"], session["programs_from"]) == ("/", "packet")
    assert session["rule"] == "paced"
    (rule,) = session["rules"]
    assert (rule["name"], rule["verdict"], rule["reason"]) == ("paced", "passed", None)
    assert rule["tokens"] <= RATE


def test_the_text_begins_as_that_of_the_c_tool(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    scene.pair.send_tcp(cgroup=cgroup)
    found = trace(1, cgroup_path="/paced")
    (session,) = found["sessions"]
    ours = session["programs"][0]
    number = cgroup.stat().st_ino
    assert found["text"][:2] == [
        f"SESSION: direction=out cgroup_id={number} ctx={session['context']} atype=1",
        f"  PROG: id={ours['id']} name=limit_and_trace",
    ]
    assert found["text"][3].startswith(f"  VERDICT: {session['verdict']} reason={session['reason']}")


def test_datagrams_find_the_bucket_empty(scene: Scene) -> None:
    cgroup = scene.limited(MBIT, bucket="10k")
    scene.pair.send_udp(10 * MBIT, cgroup=cgroup)
    session = one(reason="empty")
    assert (session["verdict"], session["reason"], session["rule"]) == ("dropped", "empty", "paced")
    assert session["protocol"] == "udp"
    assert session["rules"][0]["verdict"] == "dropped"
    assert session["rules"][0]["tokens"] <= 0


@contextlib.contextmanager
def always_ahead(name: str) -> Iterator[None]:
    """What a rule knows of TCP is spoiled while somebody traces: it is far ahead of its rate, and the bucket is empty.
    Before that, TCP would fall silent.
    """
    entry, done = StateEntry(name), threading.Event()

    def spoil() -> None:
        while not done.wait(0.005):
            if pins.exists(catalog.UNTRACED):
                entry.write(**{"fair.clock_ns": time.monotonic_ns() + 900_000_000, "tokens": -1000})

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        entry.close()


def test_tcp_that_is_ahead_of_its_rate_is_dropped_as_such(scene: Scene) -> None:
    cgroup = scene.limited(RATE, bucket="100k")
    before = scene.pair.arrived()
    scene.pair.send_tcp(connections=4, cgroup=cgroup)
    when_begun(scene.pair, before, RATE // 2)
    with always_ahead("paced"):
        session = one(reasons=["ahead"])
    assert (session["protocol"], session["reason"], session["rule"]) == ("tcp", "ahead", "paced")
    assert session["verdict"] in ("dropped", "notice")
    assert session["rules"][0]["share"]


@pytest.mark.every_kernel
def test_what_an_outer_rule_refuses_the_inner_one_gets_back(scene: Scene) -> None:
    scene.limited(MBIT, "outer", bucket="10k")
    cgroup = scene.limited(100 * MBIT, "outer/inner", bucket="10m")
    scene.pair.send_udp(10 * MBIT, cgroup=cgroup)
    session = one(reason="empty", rule="inner")
    assert [(rule["name"], rule["verdict"], rule["reason"]) for rule in session["rules"]] == [
        ("inner", "refunded", None),
        ("outer", "dropped", "empty"),
    ]
    assert (session["verdict"], session["rule"], session["cgroup"]) == ("dropped", "outer", "/outer/inner")


def test_what_no_rule_limits_is_exempt(scene: Scene) -> None:
    scene.limited(RATE)
    other = scene.cgroup("free")
    scene.pair.send_udp(MBIT, cgroup=other)
    session = one(cgroup_path="/free")
    assert (session["verdict"], session["reason"], session["rule"], session["rules"]) == ("passed", "exempt", None, [])


def test_of_a_cgroup_that_is_gone_the_programs_are_told(scene: Scene) -> None:
    scene.limited(RATE)
    cgroup = cgroup2() / "gone"
    cgroup.mkdir()
    sender = scene.pair.send_udp(MBIT, cgroup=cgroup)
    (cgroup2() / "cgroup.procs").write_text(str(sender.pid))
    number = cgroup.stat().st_ino
    cgroup.rmdir()
    found = [session for session in trace(50, port=PORT)["sessions"] if session["cgroup_id"] == number]
    assert {session["cgroup"] for session in found} == {None}
    assert {program["name"] for session in found for program in session["programs"]} == {"limit_and_trace"}
    assert {session["programs_from"] for session in found} == {"packet"}


@pytest.mark.every_kernel
def test_what_another_program_drops_is_told_as_such(scene: Scene, compiled: Any) -> None:
    cgroup = scene.limited(RATE)
    with bpf.Object(compiled(DROPS_UDP)) as opened:
        opened.load("drops_udp")
        program = opened.program("drops_udp")
    bpf.attach(str(cgroup), program)
    try:
        scene.pair.send_udp(MBIT, cgroup=cgroup)
        found = trace(1, reason="other_program")
        if not found["other_drops_seen"]:
            assert kernel.look().lockdown == "confidentiality", found["warnings"]
            return
        (session,) = found["sessions"]
        assert (session["verdict"], session["reason"], session["rule"]) == ("dropped", "other_program", None)
        assert [entry["name"] for entry in session["programs"]] == ["drops_udp", "limit_and_trace"]
        # TCP passes that program, and so it does not have that reason.
        scene.pair.send_tcp(cgroup=cgroup)
        assert all(one["protocol"] == "udp" for one in trace(20, reason="other_program")["sessions"])
    finally:
        bpf.detach(str(cgroup), program)


def test_only_the_sockets_of_a_process_are_told_open_ones_and_new_ones(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    first = scene.pair.send_tcp(cgroup=cgroup)
    second = scene.pair.traffic("short", Pair.address, PORT, 10**6, 2000, 1, cgroup=cgroup)
    with borrowed(first.pid) as (connection,):
        port = connection.socket.getsockname()[1]
        cookie = int.from_bytes(connection.socket.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    ours = {(session["source_port"], session["connection"]) for session in trace(50, pid=first.pid)["sessions"]}
    theirs = trace(50, pid=second.pid)["sessions"]
    others = {session["source_port"] for session in theirs}
    assert ours == {(port, cookie)}
    assert port not in others
    assert len(others) > 1  # it makes connections all the time
    assert len({session["connection"] for session in theirs}) == len(others)


def test_an_address_and_a_port_choose_packets(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    scene.pair.send_tcp(cgroup=cgroup)
    scene.pair.send_udp(MBIT, cgroup=cgroup, address=Pair.address6)
    scene.pair.send_udp(MBIT, cgroup=cgroup)
    by_address = trace(20, address="fd00:255::/64")["sessions"]
    assert {(session["protocol"], session["target"]) for session in by_address} == {("udp", Pair.address6)}
    assert {session["target_port"] for session in by_address} == {PORT}
    ends = [(session["source"], session["target"]) for session in trace(20, address=Pair.address)["sessions"]]
    assert all(Pair.address in pair for pair in ends)
    with_port = trace(20, port=PORT, cgroup_path="/paced")["sessions"]
    assert {session["target_port"] for session in with_port} == {PORT}


def test_what_arrives_is_told_where_it_is_asked_for(scene: Scene) -> None:
    cgroup = scene.limited(RATE)
    scene.pair.send_tcp(cgroup=cgroup)
    session = one(direction="in", cgroup_path="/paced")
    assert (session["direction"], session["attach_type"], session["reason"]) == ("in", 0, "exempt")
    assert (session["source"], session["source_port"]) == (Pair.address, PORT)
    assert [(program["name"], program["ours"]) for program in session["programs"]] == [("trace_arrival", True)]
    both = trace(200, direction="both", cgroup_path="/paced")["sessions"]
    assert {session["direction"] for session in both} == {"in", "out"}


def test_the_cgroup_of_a_service_that_is_made_anew_is_traced_on(scene: Scene) -> None:
    """By a pattern: nothing is there when the trace begins."""
    found = limiter.task("speed_limit_trace", duration=0.3, cgroup_paths=["/web-*"])
    assert (found["sessions"], found["ended"]) == ([], "duration")
    cgroup = scene.cgroup("web-1")
    scene.pair.send_udp(MBIT, cgroup=cgroup)
    assert one(cgroup_paths=["/web-*"])["cgroup"] == "/web-1"


def test_the_cgroup_whose_budget_pays_is_told_also_when_it_was_made_anew(scene: Scene) -> None:
    limiter.rule(name="users", rate="1m", cgroup_paths=["/users/*"], each=True)
    scene.cgroup("users")
    cgroup = scene.cgroup("users/joe")
    for _time in range(2):
        sender = scene.pair.send_udp(MBIT, cgroup=cgroup)
        [rule] = one(rule="users")["rules"]
        assert (rule["name"], rule["budget"]) == ("users", "/users/joe")
        sender.kill()
        cgroup.rmdir()
        cgroup.mkdir()


def test_who_reads_too_slowly_is_told_what_was_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import trace as work

    cgroup = scene.limited(1000 * MBIT)
    scene.pair.send_udp(100 * MBIT, size=100, cgroup=cgroup)
    before = scene.pair.arrived()
    monkeypatch.setattr(work, "_LOOK_SECONDS", 2.0)
    found = trace(8000)
    assert found["lost"] > 0
    assert f"{found['lost']} packets were not told" in found["warnings"][0]
    assert scene.pair.arrived().packets > before.packets  # they passed all the same
    assert not Path(pins.path("limit_egress")).exists()
