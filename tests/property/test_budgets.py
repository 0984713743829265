# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf/budget.h, compiled for user space with maps of its own: whose budget goes, and what is never lost.

A host makes cgroups, forgets them and sends from them, for hours, with few slots. The model knows what was sent.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BPF = Path(__file__).resolve().parents[2] / "bpf"
SECOND = 10**9
RULE, RATE, BUCKET = 1, 1000, 5000
LEAST, MOST, REST = 16, 64, 20  # slots at first and at most, seconds

SHIM = """
#include "user_space.h"

void start(__u64 rate, __u64 bucket)
{
    __u64 rule = 1;

    memset(states, 0, sizeof(states));
    memset(slots, 0, sizeof(slots));
    budget_hand = 0;
    budget_slots = BUDGET_SLOTS_LEAST;
    budget_policy.slots = 64;
    config = (struct rate_limit_config){ rate, bucket };
    bpf_map_update_elem(&rate_limit_state_map, &rule, &states[STATES - 1].state, BPF_NOEXIST);
}

/* What a packet is charged to: the cgroup's own budget, or 1, the rule's. */
__u64 sends(__u64 cgroup, __u32 bytes, __u64 now)
{
    struct rate_limit_state *state;
    __u64 key = cgroup;

    clock_ns = now;
    if (!budget_make(1, cgroup, cgroup))
        key = 1;
    state = bpf_map_lookup_elem(&rate_limit_state_map, &key);
    token_bucket_refill(state, config.rate_bps, config.bucket_size, now);
    token_bucket_take(state, bytes);
    state->bytes += bytes;
    return key;
}

void forget(__u64 cgroup)
{
    bpf_map_delete_elem(&rate_limit_state_map, &cgroup);
}

__s64 tokens(__u64 cgroup)
{
    struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &cgroup);

    return state->tokens;
}

__u64 all_bytes(void)
{
    __u64 sum = 0;

    for (int i = 0; i < STATES; i++)
        sum += states[i].used ? states[i].state.bytes : 0;
    return sum;
}

__u32 budgets(void)
{
    __u32 count = 0;

    for (int i = 0; i < STATES; i++)
        count += states[i].used && states[i].state.limit;
    return count;
}

/* Budgets that no slot names: nobody would ever remove them. */
__u32 lost(void)
{
    __u32 count = 0;

    for (int i = 0; i < STATES; i++) {
        bool named = !states[i].used || !states[i].state.limit;

        for (__u32 slot = 0; slot < 64; slot++)
            named |= slots[slot].budget == states[i].key;
        count += !named;
    }
    return count;
}

__u32 slots_used(void)
{
    return budget_slots;
}
"""


class Event(NamedTuple):
    gap: int  # nanoseconds since the event before
    cgroup: int
    bytes: int


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("budget")
    (directory / "shim.c").write_text(SHIM, encoding="ascii")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-Wno-missing-braces", "-I", str(BPF)]
    command += ["-I", str(Path(__file__).with_name("hostile"))]
    subprocess.run([*command, "-o", str(directory / "shim.so"), str(directory / "shim.c")], check=True)
    library = ctypes.CDLL(str(directory / "shim.so"))
    library.sends.argtypes = [ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64]
    library.start.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    library.tokens.argtypes = library.forget.argtypes = [ctypes.c_uint64]
    for function in (library.sends, library.all_bytes):
        function.restype = ctypes.c_uint64
    library.tokens.restype = ctypes.c_int64
    return library


gaps = st.one_of(st.integers(0, 10**6), st.integers(0, SECOND), st.integers(0, 30 * SECOND))
events = st.lists(st.builds(Event, gaps, st.integers(100, 250), st.integers(20, 9000)), min_size=1, max_size=400)


@given(events=events)
@settings(max_examples=300)
def test_every_budget_is_that_of_a_cgroup_that_was_never_removed(program: ctypes.CDLL, events: list[Event]) -> None:
    """Beside it runs an exact bucket for each cgroup, which nobody ever removes."""
    program.start(RATE, BUCKET)
    exact: dict[int, tuple[int, float]] = {}
    now, sent = SECOND, 0
    for event in events:
        now += event.gap
        sent += event.bytes
        charged = program.sends(event.cgroup, event.bytes, now)
        last, tokens = exact.get(event.cgroup, (now, BUCKET))
        tokens = min(BUCKET, tokens + (now - last) * RATE / SECOND)
        if charged == event.cgroup:
            exact[event.cgroup] = (now, tokens - event.bytes)
            assert abs(program.tokens(event.cgroup) - exact[event.cgroup][1]) < 2
        assert program.all_bytes() == sent
        assert program.budgets() <= MOST
        assert program.lost() == 0


@given(cgroups=st.integers(1, 200), rounds=st.integers(1, 6))
def test_who_finds_no_room_shares_only_while_all_slots_are_in_use(
    program: ctypes.CDLL, cgroups: int, rounds: int
) -> None:
    program.start(RATE, BUCKET)
    now = SECOND
    for number in range(rounds):
        charged = [program.sends(1000 * number + one, 100, now) for one in range(1000, 1000 + cgroups)]
        own = [key for key in charged if key != RULE]
        assert len(own) == min(cgroups, MOST)
        now += (REST + 1) * SECOND


def test_as_many_slots_are_used_as_budgets_were_in_use_at_a_time(program: ctypes.CDLL) -> None:
    """However many cgroups come and go: memory goes by those that send."""
    program.start(RATE, BUCKET)
    for number in range(2000):
        assert program.sends(1000 + number, 100, SECOND + number * 2 * SECOND) != RULE
    assert program.slots_used() == LEAST
    assert program.budgets() <= LEAST


def test_a_budget_in_debt_stays_until_its_bucket_is_full_again(program: ctypes.CDLL) -> None:
    program.start(RATE, BUCKET)
    program.sends(500, 100_000, SECOND)
    for number in range(200):
        program.sends(1000 + number, 100, SECOND + (number + 1) * SECOND // 2)
    assert program.sends(500, 100, 101 * SECOND) == 500
    # 100,100 bytes less in 100 s than the bucket and the rate.
    assert program.tokens(500) == BUCKET - 100_000 + 100 * RATE - 100 * 1


def test_a_new_program_finds_the_slots_that_are_free_though_it_forgot_where_they_are(program: ctypes.CDLL) -> None:
    program.start(RATE, BUCKET)
    for number in range(50):
        program.sends(1000 + number, 100, SECOND)
    ctypes.c_uint32.in_dll(program, "budget_hand").value = 0
    ctypes.c_uint32.in_dll(program, "budget_slots").value = LEAST
    shared = 0
    while program.sends(2000, 100, SECOND) == RULE:
        shared += 1
    assert shared <= 3  # 16, 32, 64


def test_what_user_space_removed_is_room(program: ctypes.CDLL) -> None:
    program.start(RATE, BUCKET)
    for number in range(MOST):
        assert program.sends(1000 + number, 100, SECOND) != RULE
    assert program.sends(2000, 100, SECOND) == RULE
    for number in range(MOST):
        program.forget(1000 + number)
    assert program.sends(2000, 100, SECOND) == 2000
