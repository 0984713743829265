# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of fleets that are not there, and the browser that shows them."""

from __future__ import annotations

import typing as t

from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.fleet import Fleet
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.hosts import Answers, read

from .fleet import Answer

# Debian's. Root has no sandbox of its own there; the pages are ours.
CHROMIUM: dict[str, t.Any] = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}


def reported(answers: dict[str, Answer]) -> Fleet:
    keys = ("speed_limiter_seen", "speed_limiter_compared", "speed_limiter_named")
    hosts = [read(name, Answers(*map(found.get, keys))) for name, found in answers.items()]
    return Fleet(hosts, "2026-11-27T13:00:00Z")
