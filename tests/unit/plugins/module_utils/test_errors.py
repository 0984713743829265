# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an error reads."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("it failed",), "it failed."),
        (("it failed", "", "Try again."), "it failed. Try again."),
        (("it failed", "it is gone", "Try again"), "it failed: it is gone. Try again."),
        (("it failed", "is the daemon running?", "Start it"), "it failed: is the daemon running? Start it."),
        (("it failed", "as it said.", "Start it"), "it failed: as it said. Start it."),
        (("it failed", "one\ntwo", "Start it"), "it failed: one\ntwo\nStart it."),
    ],
)
def test_an_error_is_sentences(parts: tuple[str, ...], text: str) -> None:
    assert str(LimiterError("kind", *parts)) == text
