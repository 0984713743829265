# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels that cannot be had: each is told in one line, and nothing is skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.tests.vm import fetch, matrix
from ansible_collections.speed_limiter.ebpf.tests.vm.fakes import RELEASE, harness, keep

SEARCH = """\
linux-image-6.12.9+deb13-amd64 - Linux for 64-bit PCs
linux-image-6.12.10+deb13-amd64 - Linux for 64-bit PCs
linux-image-6.12.11+deb13-cloud-amd64 - Linux for x86-64 cloud
linux-image-6.12.12+deb13-rt-amd64 - Linux for 64-bit PCs, PREEMPT_RT
linux-image-6.1.0-50-amd64 - Linux for 64-bit PCs
linux-image-amd64 - Linux for 64-bit PCs (meta-package)
linux-image-6.12.13+deb13-amd64-dbg - Debug symbols
"""


def test_a_suite_that_cannot_be_reached(tmp_path: Path) -> None:
    status, failures = harness(tmp_path, "trixie:6.12", DEBIAN_MIRROR="http://127.0.0.1:9/debian")
    assert status == 1
    assert len(failures) == 1
    assert "the suite trixie cannot be reached" in failures[0]
    assert "onnect" in failures[0]  # apt's own reason


def test_a_series_that_the_suite_does_not_have(tmp_path: Path) -> None:
    status, failures = harness(tmp_path, "bookworm:4.19")
    assert status == 1
    assert len(failures) == 1
    assert "the suite bookworm has no kernel 4.19; it has: 6.1" in failures[0]


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fetch.Apt:
    monkeypatch.setenv("DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    found = fetch.Apt("trixie", tmp_path)
    monkeypatch.setattr(found, "run", lambda tool, *_: SEARCH if "search" in _ else "Version: 1.2-3\nDepends: kmod")
    return found


def test_the_newest_plain_kernel_is_taken_by_number(apt: fetch.Apt) -> None:
    assert apt.newest("6.12") == ("6.12.10+deb13-amd64", "1.2-3")


def test_one_series_is_not_the_beginning_of_another(apt: fetch.Apt) -> None:
    assert apt.newest("6.1") == ("6.1.0-50-amd64", "1.2-3")
    with pytest.raises(fetch.FetchError, match=r"has no kernel 6\.13; it has: 6\.1, 6\.12"):
        apt.newest("6.13")


def test_sid_gives_its_newest_once_it_has_moved_on_and_no_other_suite_does(apt: fetch.Apt) -> None:
    with pytest.raises(fetch.FetchError, match=r"has no kernel 5\.10; it has: 6\.1, 6\.12"):
        apt.newest("5.10")
    apt.suite = "sid"
    assert apt.newest("5.10") == ("6.12.10+deb13-amd64", "1.2-3")
    with pytest.raises(fetch.FetchError, match=r"has no kernel 6\.13"):
        apt.newest("6.13")


def test_what_was_fetched_half_way_is_no_kernel(tmp_path: Path) -> None:
    keep(tmp_path, "trixie-6.12", b"")
    whole = fetch.read(tmp_path / "trixie-6.12")
    assert whole is not None
    assert whole.release == RELEASE
    whole.image.unlink()
    assert fetch.read(tmp_path / "trixie-6.12") is None


def test_what_a_killed_fetch_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "unfinished-1" / "root").mkdir(parents=True)
    with matrix.alone(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_kernel_that_was_fetched_today_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "trixie-6.12", b"")
    monkeypatch.setenv("DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    assert fetch.fetch("trixie", "6.12", tmp_path).release == RELEASE
    record = tmp_path / "trixie-6.12/kernel.json"
    assert json.loads(record.read_text())["release"] == RELEASE
    os.utime(record, (0, 0))
    with pytest.raises(fetch.FetchError, match="cannot be reached"):
        fetch.fetch("trixie", "6.12", tmp_path)
