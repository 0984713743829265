# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's Chromium, and pages of reports in it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report import page as report
from ansible_collections.speed_limiter.ebpf.tests.support import fleet
from ansible_collections.speed_limiter.ebpf.tests.support.pages import CHROMIUM, reported
from playwright.sync_api import Browser, Page, sync_playwright

HOSTS = 500

Open = t.Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> t.Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(**CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a fleet with hostile hosts."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.render(reported(fleet.answers(HOSTS))), encoding="utf-8")
    return path


@pytest.fixture
def show(browser: Browser) -> t.Iterator[Open]:
    """Opens a file, with options of a browser's context; at the end nothing was complained of, and nothing loaded."""
    contexts, complaints = [], []

    def opened(path: Path, script: bool = True, **options: t.Any) -> Page:
        context = browser.new_context(java_script_enabled=script, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        if script:
            page.wait_for_selector("#hosts table")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(show: Open, written: Path) -> Page:
    return show(written)
