# SPDX-License-Identifier: GPL-3.0-or-later
"""What pacing must survive: a state that went wrong, other people's programs for sockets, other protocols."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.connections import borrowed
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import cgroup2
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import INCLUDES
from ansible_collections.speed_limiter.ebpf.tests.support.net import LONG, Pair, Process, run, setting
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import MPTCP, multipath
from ansible_collections.speed_limiter.ebpf.tests.support.scene import (
    FIRST_WINDOW,
    Scene,
    StateEntry,
    assert_bound,
    assert_held,
    counters,
    pacing,
    pause,
    wait_until,
)
from ansible_collections.speed_limiter.ebpf.tests.support.scene import RATE as FAST
from ansible_collections.speed_limiter.ebpf.tests.support.spoiled import SPOILED

RATE = FAST // 5
MPTCP_PORT = 5003

# ---- the controller's state


def test_a_state_that_went_wrong_is_right_again_within_a_second(scene: Scene) -> None:
    """Of each kind a rule of its own, all at once."""
    senders = {
        name: scene.pair.send_tcp(connections=2, cgroup=scene.limited(RATE, name, bucket=str(RATE // 10)))
        for name in SPOILED
    }
    pause(0.5)
    entries = {name: StateEntry(name) for name in SPOILED}
    try:
        for name, spoil in SPOILED.items():
            spoil(entries[name])
    finally:
        for entry in entries.values():
            entry.close()
    pause(1.0)
    begin = {name: sent_by(sender.pid) for name, sender in senders.items()}
    pause(1.5)
    shares = {}
    for name, sender in senders.items():
        (then, sent), (now, more) = begin[name], sent_by(sender.pid)
        shares[name] = (more - sent) / (now - then) / RATE
    print(shares)
    assert {name: share for name, share in shares.items() if not 0.8 <= share <= 1.15} == {}


def sent_by(pid: int) -> tuple[float, int]:
    """When, in seconds, and how many bytes on the wire a process's peers had got by then."""
    with borrowed(pid) as connections:
        return time.monotonic(), sum(connection.wire_bytes for connection in connections)


# ---- other people's programs


# Counts what it is called back for. It asks for callbacks of its own, beside or instead of what others asked for.
FOREIGN = """struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 64);
    __type(key, __u32);
    __type(value, __u64);
} callbacks SEC(".maps");
SEC("sockops") int others(struct bpf_sock_ops *ops)
{
    __u32 op = ops->op;
    __u64 *count = bpf_map_lookup_elem(&callbacks, &op);

    if (count)
        __sync_fetch_and_add(count, 1);
    if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
        bpf_sock_ops_cb_flags_set(ops, KEPT | BPF_SOCK_OPS_STATE_CB_FLAG);
    return 1;
}
char LICENSE[] SEC("license") = "GPL";
"""
STATE_CB = 10


@pytest.fixture
def another(compiled: Callable[[str], str]) -> Iterator[Callable[[str], bpf.Map]]:
    """Attaches someone else's program beside ours, and gives its counts; ``kept`` is what it leaves of callbacks."""
    with contextlib.ExitStack() as stack:

        def attach_it(kept: str) -> bpf.Map:
            with bpf.Object(compiled(INCLUDES + FOREIGN.replace("KEPT", kept))) as opened:
                opened.load("others")
                descriptor, counts = opened.program("others"), opened.map("callbacks", 8)
            stack.callback(counts.close)
            stack.callback(os.close, descriptor)
            bpf.attach(str(cgroup2()), descriptor, bpf.SOCK_OPS)
            stack.callback(bpf.detach, str(cgroup2()), descriptor, bpf.SOCK_OPS)
            return counts

        yield attach_it


def count(counts: bpf.Map, operation: int) -> int:
    return int(struct.unpack("=Q", counts[struct.pack("=I", operation)])[0])


@pytest.mark.parametrize("loaded", ["before ours", "after ours"])
def test_another_programs_callbacks_and_ours_go_together(
    scene: Scene, another: Callable[[str], bpf.Map], loaded: str
) -> None:
    if loaded == "before ours":
        limiter.program(state="absent")
    counts = another("ops->bpf_sock_ops_cb_flags")
    limiter.program()
    sender = scene.pair.send_tcp(connections=4, cgroup=scene.limited(RATE))
    pause(0.7)
    assert_held(scene.pair, RATE)
    assert counters()["dropped_packets"] <= 4 * FIRST_WINDOW
    before = count(counts, STATE_CB)
    sender.finish()
    wait_until(lambda: count(counts, STATE_CB) >= before + 4, "four connections are closed")


def test_a_program_that_takes_our_callbacks_takes_pacing_and_not_the_limit(
    scene: Scene, another: Callable[[str], bpf.Map]
) -> None:
    counts, bucket, pair = another("0"), RATE // 10, scene.pair
    cgroup = scene.limited(RATE, bucket=str(bucket))
    before = pair.arrived()
    sender = pair.send_tcp(connections=4, cgroup=cgroup)
    pause(1.5)
    after = pair.arrived()
    assert_bound(before, after, RATE, bucket)
    share = (after.bytes - before.bytes) / (after.seconds - before.seconds) / RATE
    print(f"{share:.3f} of the limit, {counters()}, {pacing()}")
    assert share > 0.5
    sender.finish()
    wait_until(lambda: count(counts, STATE_CB) >= 4, "four connections are closed")


# ---- other protocols


def assert_paced(pair: Pair, sender: Process, connections: int) -> None:
    pause(1.5)  # what left before TCP was told is made up for
    assert_held(pair, RATE)
    with borrowed(sender.pid) as each:
        assert len(each) == connections
        assert all(connection.pacing <= RATE for connection in each)


def test_what_is_accepted_by_a_cookie_is_paced(scene: Scene) -> None:
    """A listener under attack forgets whom it answered: what it knows of its rules cannot come from its answer."""
    pair = scene.pair
    with setting(pair, "tcp_syncookies", "2"):  # always
        server = pair.traffic("serve", Pair.sender_address, 5001, LONG, cgroup=scene.limited(RATE))
        pair.traffic("fetch", Pair.sender_address, 5001, LONG, 4, namespace=pair.receiver)
        assert_paced(pair, server, 4)


def test_a_connection_whose_first_packet_carries_data_is_paced(scene: Scene) -> None:
    pair = scene.pair
    with setting(pair, "tcp_fastopen", str(0x1 | 0x2 | 0x4 | 0x200 | 0x400)):  # both ends, without cookies, everywhere
        pair.traffic("receive", Pair.address, 5004, namespace=pair.receiver)
        cgroup = scene.limited(RATE)
        sender = pair.traffic("tcp", Pair.address, 5004, LONG, 4, "cubic", "", "fastopen", cgroup=cgroup)
        assert_paced(pair, sender, 4)
        sent_in_syn = run("nsenter", f"--net=/run/netns/{pair.sender}", "nstat", "-asz", "TcpExtTCPFastOpenActive")
        assert int(sent_in_syn.split()[-2]) >= 4, "the machine's TCP did not open them fast"


@multipath
def test_multipath_tcp_is_limited(scene: Scene) -> None:
    bucket, pair = RATE // 10, scene.pair
    cgroup = scene.limited(RATE, bucket=str(bucket))
    pair.traffic("receive", Pair.address, MPTCP_PORT, MPTCP, namespace=pair.receiver)
    before = pair.arrived()
    pair.traffic("tcp", Pair.address, MPTCP_PORT, LONG, 2, "cubic", "", MPTCP, cgroup=cgroup)
    pause(0.7)
    assert_held(pair, RATE, least=0.7, most=1.05)
    assert_bound(before, pair.arrived(), RATE, bucket)
    print(counters(), pacing())
