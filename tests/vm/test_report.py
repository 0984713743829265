# SPDX-License-Identifier: GPL-3.0-or-later
"""The page is made of what is kept, and what was not run now stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.tests.vm import machine, report

PROGRAM = {"instructions": 21010, "xlated": 16920, "jited": 10477}
SKIPPED = {"test_settle::test_one": "before Linux 6.1 no iterator may set socket options"}


def found(release: str, **steps: Any) -> dict[str, Any]:
    return {"wrong": None, "release": release, "package": f"{release}-1", "steps": steps}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "STORED", tmp_path / "kernels")
    monkeypatch.setattr(report, "PAGE", tmp_path / "kernels.md")
    return tmp_path / "kernels.md"


def row(page: Path, word: str) -> str:
    (line,) = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {word}")]
    return line


def test_what_was_not_run_now_stays(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests: dict[str, Any] = {"wrong": None, "seconds": 9, "tests": 3, "passed": 2, "skipped": SKIPPED, "failed": []}
    programs = {"limit_egress": PROGRAM, "settle_sockets": None}
    monkeypatch.setattr(report, "commit", lambda: "aaaaaaa")
    old = found("5.10.0-32-amd64", object={"wrong": None, "seconds": 9, "built here": programs}, tests=tests)
    new = found("7.2.13-amd64", tests=dict(tests, wrong="1 tests failed", failed=["test_settle::test_two"]))
    report.store({"sid-7.2": new, "bullseye-5.10": old})
    report.write()
    assert page.read_text(encoding="utf-8").index("bullseye-5.10: ") < page.read_text(encoding="utf-8").index(
        "sid-7.2: "
    )
    assert "2 passed, 1 not for this kernel" in row(page, "bullseye-5.10")
    assert "**failed**" in row(page, "sid-7.2")
    assert "- sid-7.2, tests: 1 tests failed" in page.read_text(encoding="utf-8")
    assert "21,010; 16,920 B; 10,477 B" in row(page, "`limit_egress`")
    assert row(page, "`settle_sockets`") == "| `settle_sockets` | not here |"
    before = row(page, "bullseye-5.10")

    monkeypatch.setattr(report, "commit", lambda: "bbbbbbb")
    lost = {"wrong": "the suite bullseye cannot be reached", "steps": {}}
    report.store({"sid-7.2": found("7.2.14-amd64", tests=tests), "bullseye-5.10": lost})
    report.write()
    assert row(page, "bullseye-5.10") == before
    assert "aaaaaaa" in before
    assert "2 passed" in row(page, "sid-7.2")
    assert "bbbbbbb" in row(page, "sid-7.2")
    assert "7.2.14-amd64" in row(page, "sid-7.2")
    assert "on 7.2.13-amd64" not in row(page, "sid-7.2")

    # A step that an older release passed is not said of the newer one.
    report.store({"sid-7.2": found("7.2.15-amd64", playbook={"wrong": None})})
    report.write()
    assert row(page, "sid-7.2").count("on 7.2.14-amd64") == 1


def cell(place: str, shaper: str, rate: float) -> dict[str, Any]:
    found = {
        "retransmits": 0,
        "segments": 9,
        "jain": 1.0,
        "steady": 0.0,
        "round_trip": 5.0,
        "changes": [],
        "loss": 0,
        "broken": 0,
        "excess": 0,
        "least": 1.0,
    }
    way = {"limit": 1e6, "connections": 1, "congestion": "cubic", "rtt": 5}
    return {"place": place, "shaper": shaper, "rate": rate, **way, **found}


def measured(*cells: dict[str, Any], wrong: str = "", release: str = "7.2.13-amd64") -> None:
    """A run of the step distance, and the page after it."""
    distance = {"wrong": wrong, "planned": 204, "cells": list(cells)}
    report.store({"sid-7.2": found(release, distance=distance)})
    report.write()


def test_cells_that_were_not_measured_now_stay(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [cell(f"1x1/{rtt}/cubic", "speed_limiter", 9.6e5) for rtt in (5, 20, 100)]
    monkeypatch.setattr(report, "commit", lambda: "aaaaaaa")
    measured(*old)
    monkeypatch.setattr(report, "commit", lambda: "bbbbbbb")
    new = [cell("1x1/5/cubic", "speed_limiter", 9e5), cell("1x1/5/cubic", "htb", 8e5)]
    measured(*new, release="7.2.14-amd64")
    # Each of them was measured when, of what and on what it was.
    assert "4 of 204 cells" in row(page, "sid-7.2")
    assert "2 bbbbbbb, 2 aaaaaaa, 2 on 7.2.13-amd64" in row(page, "sid-7.2")
    assert "90.00 / 80.00 / –" in row(page, "1x1/5/cubic")
    assert "96.00 / – / –" in row(page, "1x1/20/cubic")

    report.store({"sid-7.2": found("7.2.14-amd64", distance={"wrong": "the guest hung"})})
    report.write()
    assert "**failed**" in row(page, "sid-7.2")
    assert "96.00 / – / –" in row(page, "1x1/20/cubic")


def test_what_a_cell_did_is_not_forgotten_by_measuring_others(page: Path) -> None:
    measured(cell("1x1/5/cubic", "speed_limiter", 4e5), wrong="1x1/5/cubic speed_limiter: only 40.00 % of the limit")
    measured(cell("1x1/20/cubic", "speed_limiter", 1e6))
    assert "**failed**" in row(page, "sid-7.2")
    assert "1x1/5/cubic speed_limiter: only 40.00 % of the limit" in page.read_text(encoding="utf-8")
    measured(cell("1x1/5/cubic", "speed_limiter", 1e6))
    assert "2 of 204 cells" in row(page, "sid-7.2")


def test_misses_are_shown_with_what_the_others_came_to_and_why(page: Path) -> None:
    cells = [cell("1x1/5/cubic", "speed_limiter", 9.5e5), cell("1x1/5/cubic", "htb", 9.4e5)]
    bbr = {**cell("10x1/20/bbr", "speed_limiter", 9.5e6), "limit": 1e7, "rtt": 20}
    measured(*cells, bbr)
    assert "| error | 1x1/5/cubic | 95.00 % (htb 94.00 %) | not found yet |" in page.read_text(encoding="utf-8")
    assert "| error | 10x1/20/bbr | 95.00 % (alone) | the 15 s end with" in page.read_text(encoding="utf-8")


def request(shaper: str = "speed_limiter", **figures: Any) -> dict[str, Any]:
    """A cell of the step world."""
    fixed = {"place": "20 Mbit/s, 8 workers", "shaper": shaper, "goal": "requests_new", "limit": 2e7, "used": 2e7}
    return {**fixed, "excess": 0, "busy": 0.5, "meets": True, "figure": "used 1.000", **figures}


def world(*cells: dict[str, Any], wrong: str = "") -> None:
    goals = {"requests_new": "a connection for each request: used at least 98 %"}
    step = {"wrong": wrong, "planned": 26, "goals": goals, "cells": list(cells)}
    report.store({"sid-7.2": found("7.2.13-amd64", world=step)})
    report.write()


def test_requests_that_miss_their_goal_are_marked_and_are_no_failure(page: Path) -> None:
    missed = request(used=1.9e7, meets=False, figure="used 0.950")
    world(missed, request("htb", figure="used 0.970", meets=False), request(place="100 Mbit/s, 9 workers", busy=0.99))
    assert "3 of 26 cells" in row(page, "sid-7.2")
    assert "**1 of 2**" in row(page, "a connection for each request")
    assert row(page, "20 Mbit/s, 8 workers") == "| 20 Mbit/s, 8 workers | speed_limiter | **used 0.950** |"
    assert "|  | htb | used 0.970 |" in page.read_text(encoding="utf-8")
    assert "| used 1.000 (busy) |" in row(page, "100 Mbit/s, 9 workers")


def test_requests_that_broke_a_bound_are_not_forgotten_by_measuring_others(page: Path) -> None:
    world(request(used=9e6), wrong="20 Mbit/s, 8 workers speed_limiter: only 45.0 % of the limit")
    world(request(place="100 Mbit/s, 9 workers"))
    assert "**failed**" in row(page, "sid-7.2")
    assert "- sid-7.2, world: 20 Mbit/s, 8 workers speed_limiter: only 45.0 %" in page.read_text(encoding="utf-8")
    world(request())
    assert "2 of 26 cells" in row(page, "sid-7.2")


def test_the_page_does_not_say_where_the_checkout_is(page: Path) -> None:
    report.store({"sid-7.2": found("7.2.13-amd64", tests={"wrong": f"see {machine.CHECKOUT}/.kernels/console.log"})})
    report.write()
    assert "- sid-7.2, tests: see .kernels/console.log" in page.read_text(encoding="utf-8")


def test_a_step_that_was_never_run_is_shown(page: Path) -> None:
    report.store(
        {"sid-7.2": found("7.2.13-amd64", object={"wrong": None}), "trixie-6.12": found("6.12.1-amd64", playbook={})}
    )
    report.write()
    assert "not run yet" in row(page, "sid-7.2")
    assert "not run yet" in row(page, "trixie-6.12")


def test_a_program_that_an_earlier_commit_lacked_is_not_told_as_refused(page: Path) -> None:
    """As on kernels whose step "object" was run before there was this program."""
    first = {"wrong": None, "seconds": 9, "built here": {"limit_egress": PROGRAM}}
    second = {"wrong": None, "seconds": 9, "built here": {"limit_egress": PROGRAM, "carry_over": PROGRAM}}
    report.store({"trixie-6.12": found("6.12", object=first), "sid-7.2": found("7.2", object=second)})
    report.write()
    assert row(page, "`carry_over`").startswith("| `carry_over` | not measured | 21,010")
