# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit that applies what is stored at boot: who stores a rule is warned where it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import parse_request
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import units
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import boot_unit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.enforce import not_made_at_boot


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "BOOTED", str(tmp_path))


def warned(enabled: str, code: int = 0, **options: Any) -> list[str]:
    def run(arguments: Any, check_rc: bool = False) -> tuple[int, str, str]:
        load = "loaded" if enabled else "not-found"
        return code, f"LoadState={load}\nActiveState=inactive\nUnitFileState={enabled}\n", ""

    return not_made_at_boot(run, [parse_request({"name": "web", "rate": "1m", **options})])


@pytest.mark.parametrize("state", ["", "disabled"])
def test_who_stores_a_rule_is_told_that_nothing_applies_it(state: str) -> None:
    (warning,) = warned(state, persistent=True)
    assert warning.startswith("nothing applies what is stored when this host boots: the unit speed_limiter.service is")


def test_nothing_is_told_where_all_is_well_or_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert warned("enabled", persistent=True) == warned("", persistent=False) == warned("") == []
    assert warned("", persistent=True, state="absent") == []
    assert warned("", code=1, persistent=True) == []  # not known
    monkeypatch.setattr(units, "BOOTED", "/no/such")
    assert warned("", persistent=True) == [] and boot_unit.problem(None) is None
