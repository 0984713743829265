# SPDX-License-Identifier: GPL-3.0-or-later
"""host/groups/expressions.py: an answer always comes, whatever the text."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import expressions

CATASTROPHIC = re.compile(r"(a+)+$")
HOPELESS = "a" * 60 + "b"  # 2 ** 60 steps


def test_every_text_is_searched() -> None:
    texts = {number: f"text {number}" for number in range(3000)}
    found = expressions.search(re.compile("7$"), texts)
    assert found == ([number for number in texts if number % 10 == 7], [])
    assert expressions.search(CATASTROPHIC, {}) == ([], [])


def test_a_text_that_takes_for_ever_keeps_nothing_from_the_others() -> None:
    texts = {1: "aaa", 2: HOPELESS, 3: HOPELESS, 4: "baa", 5: "b"}
    assert expressions.search(CATASTROPHIC, texts, seconds=60.0) == ([1, 4], [2, 3])


def test_the_time_for_all_is_bounded_too_and_what_is_left_is_told() -> None:
    texts = dict.fromkeys(range(10_000), HOPELESS)
    matched, undecided = expressions.search(CATASTROPHIC, texts, seconds=0.5)
    assert (matched, sorted(undecided)) == ([], list(texts))


def test_who_has_many_slow_texts_uses_up_nobody_elses_time() -> None:
    texts = {**dict.fromkeys(range(200), HOPELESS), 200: "aaa"}
    owners = {**dict.fromkeys(texts, 1000), 200: 33}
    assert expressions.search(CATASTROPHIC, texts, owners, seconds=2.0).matched == [200]


def test_only_the_beginning_of_a_text_is_searched() -> None:
    long = "x" * expressions.MOST_CHARACTERS
    assert expressions.search(re.compile("end"), {1: f"{long}end", 2: f"end{long}"}).matched == [2]


def test_nothing_is_left_of_the_children() -> None:
    def left() -> tuple[int, str]:
        me = f"/proc/self/task/{threading.get_native_id()}/children"
        return len(os.listdir("/proc/self/fd")), Path(me).read_text() if os.path.exists(me) else ""

    before = left()
    expressions.search(CATASTROPHIC, {1: "a", 2: HOPELESS}, seconds=1.0)
    assert left() == before
