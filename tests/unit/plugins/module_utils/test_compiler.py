# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clang compiles, on hosts that have several, and some of them too old."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import tools
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., str]:
    """Installs compilers, each with what it says of its version, and returns the name of the one that is taken."""
    monkeypatch.setattr(build, "_SEARCHED", (str(tmp_path),))
    monkeypatch.setattr(tools, "find", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)

    def install(**versions: str) -> str:
        for name in versions:
            (tmp_path / name.replace("_", "-")).touch()
        says = {str(tmp_path / name.replace("_", "-")): version for name, version in versions.items()}
        path, version = build.find_compiler(lambda command, check_rc: (0, says[command[0]], ""))
        assert version == says[path]
        return pathlib.Path(path).name

    return install


def test_the_distributions_clang_is_taken_where_it_will_do(installed: t.Callable[..., str]) -> None:
    assert installed(clang="Debian clang version 14.0.6", clang_16="Debian clang version 16.0.6") == "clang"


def test_a_clang_that_does_not_say_its_version_is_tried(installed: t.Callable[..., str]) -> None:
    assert installed(clang="my own") == "clang"


@pytest.mark.parametrize("others", [{}, {"clang": "Debian clang version 11.0.1-2"}])
def test_else_the_newest_with_a_number_in_its_name(installed: t.Callable[..., str], others: dict[str, str]) -> None:
    numbered = {f"clang_{number}": f"Debian clang version {number}.0.1" for number in (9, 11, 13, 16)}
    assert installed(**others, **numbered, clang_format="no compiler") == "clang-16"


def test_one_that_is_too_old_is_told_with_its_version(installed: t.Callable[..., str]) -> None:
    with pytest.raises(LimiterError, match="/clang is clang version 11, 12 or newer is needed.*clang-13") as raised:
        installed(clang="Debian clang version 11.0.1-2")
    assert raised.value.kind == "no_compiler"
