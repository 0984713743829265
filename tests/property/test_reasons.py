# SPDX-License-Identifier: GPL-3.0-or-later
"""Every drop and every notice has a reason, which says what was decided."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

BPF = Path(__file__).resolve().parents[2] / "bpf"
RATE = 1_000_000  # and as large a bucket
MILLISECOND = 10**6
PASS, DROP, NOTICE = 1, 2, 3
UNKNOWN, EMPTY, TCP_RESERVE, DEBT, ADMISSION, AHEAD, LUMP, LOW = range(8)
TCP, CONTROL, PACED, EARLY, BEGINS, HANDSHAKE = 1, 2, 4, 8, 16, 32

SHIM = """
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#include "verdict.h"

#define NOW 1000000000

/* Whether one reason has counted these, and no other one. */
static bool counted(const __u64 *counts, unsigned int reason, __u64 packets)
{
    for (unsigned int i = 0; i < LIMITER_REASONS; i++)
        if (counts[i] != (i == reason ? packets : 0))
            return false;
    return true;
}

int decide(__s64 tokens, __u32 flags, __u32 bytes, __u32 segments, __s64 debt, __u64 foreign, __u64 early,
           __u64 control)
{
    struct rate_limit_state state = { .tokens = tokens, .rate = 1000000, .bucket = 1000000, .last_update_ns = NOW };
    struct packet packet = { .bytes = bytes, .segments = segments, .tcp = flags & 1, .control = flags & 2 };
    struct answer answer;

    packet.paced = flags & 4;
    packet.early = flags & 8;
    packet.begins = flags & 16;
    packet.handshake = flags & 32;
    fair_share_forget(&state, NOW);
    state.fair.active_before = 1;
    state.fair.share = state.fair.paced_rate;
    state.fair.clock_ns += debt;
    state.fair.foreign_rate = foreign;
    state.fair.early_rate = early;
    state.fair.control_rate = control;
    answer = verdict_charge(&state, NULL, &packet, NOW, true);
    if (!counted(state.drops, answer.reason, answer.verdict == VERDICT_DROP ? segments : 0) ||
        !counted(state.notices, answer.reason, answer.verdict == VERDICT_PASS_WITH_NOTICE ? segments : 0))
        return -1;
    return answer.verdict | answer.reason << 8;
}
"""


class Case(NamedTuple):
    verdict: int
    reason: int
    tokens: int
    flags: int
    size: int = 1500
    segments: int = 1
    debt: int = 0
    foreign: int = 0
    early: int = 0
    control: int = 0


CASES = {
    "a datagram": Case(PASS, UNKNOWN, 50_000, 0),
    "no tokens for a datagram": Case(DROP, EMPTY, 0, 0),
    "too few tokens for a large datagram": Case(DROP, EMPTY, 1_000, 0, 65_000),
    "a flood beside TCP": Case(DROP, TCP_RESERVE, 5_000, 0, foreign=RATE),
    "acknowledgements": Case(PASS, UNKNOWN, 70_000, TCP | CONTROL | PACED, 52),
    "all debt is used up": Case(DROP, DEBT, -65_536, TCP | CONTROL | PACED, 52),
    "a flood of acknowledgements": Case(
        DROP, TCP_RESERVE, 5_000, TCP | CONTROL | PACED, 52, foreign=RATE, control=RATE
    ),
    "a handshake beside it": Case(NOTICE, LOW, 5_000, TCP | CONTROL | HANDSHAKE, 60, foreign=RATE, control=RATE),
    "unpaced TCP that is told to slow down": Case(NOTICE, LOW, 10_000, TCP),
    "unpaced TCP in debt": Case(DROP, DEBT, -32_768, TCP),
    "paced TCP": Case(PASS, UNKNOWN, 10_000, TCP | PACED),
    "paced TCP whose debt is used up": Case(DROP, DEBT, -32_768, TCP | PACED),
    "a connection that begins where most are new": Case(
        DROP, ADMISSION, 5_000, TCP | PACED | EARLY | BEGINS, early=RATE
    ),
    "one of those that have begun": Case(PASS, UNKNOWN, 5_000, TCP | PACED | EARLY, early=RATE),
    "somewhat ahead": Case(NOTICE, AHEAD, -100, TCP | PACED, debt=70 * MILLISECOND),
    "too far ahead": Case(DROP, AHEAD, -100, TCP | PACED, debt=110 * MILLISECOND),
    "a lump that is paid": Case(NOTICE, LUMP, 900_000, TCP | PACED, 200_000, 140),
    "a lump that is not": Case(DROP, LUMP, 10_000, TCP | PACED, 200_000, 140),
}


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("reasons")
    (directory / "shim.c").write_text(SHIM, encoding="ascii")
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O2",
        "-I",
        str(BPF),
        "-o",
        str(directory / "shim.so"),
        str(directory / "shim.c"),
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(directory / "shim.so"))
    u32, s64, u64 = ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
    library.decide.argtypes = [s64, u32, u32, u32, s64, u64, u64, u64]
    return library


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_verdict_names_its_reason_and_counts_it(header: ctypes.CDLL, case: Case) -> None:
    answer = header.decide(*case[2:])
    assert (answer & 3, answer >> 8) == (case.verdict, case.reason)


def test_no_reason_is_left_out() -> None:
    assert {case.reason for case in CASES.values()} == set(range(8))
