# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that are asked for something."""

from __future__ import annotations

import time

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import tools


def test_the_answer_is_text_and_words_are_no_shell_s() -> None:
    assert tools.ask(["/bin/echo", "$HOME; `id`", "\udcff"]) == (0, "$HOME; `id` \udcff\n", "")
    assert tools.ask(["/bin/sh", "-c", "echo $LC_ALL >&2; exit 3"]) == (3, "", "C\n")


def test_one_that_hangs_is_ended_with_what_it_started() -> None:
    began = time.monotonic()
    with pytest.raises(LimiterError) as error:
        tools.ask(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], seconds=0.2)
    assert time.monotonic() - began < 100
    assert error.value.kind == "no_answer" and "sh does not answer: it was ended after 0.2 seconds" in str(error.value)


def test_one_that_cannot_be_run_is_an_error() -> None:
    with pytest.raises(LimiterError, match="none cannot be run"):
        tools.ask(["/none"])


def test_what_was_said_is_cut_into_short_lines() -> None:
    assert tools.lines("\n a\n" + "b" * 300) == ["a", "b" * 197 + "..."]


def test_all_questions_have_so_much_time_and_each_leaves_some_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now, given = [1000.0], []

    def never(arguments: list[str], seconds: float) -> None:
        given.append(seconds)
        now[0] += seconds
        raise LimiterError("no_answer", "it does not answer")

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tools, "ask", never)
    patience = tools.Patience()
    for _question in range(100):
        with pytest.raises(LimiterError):
            patience.ask(["lxc-info"])
    assert given[:3] == [10, 5, 2.5]
    assert sum(given) <= tools.SECONDS
    now[0] += 1000
    with pytest.raises(LimiterError):
        patience.ask(["lxc-info"])
    assert given[-1] == 0
