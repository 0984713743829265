# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the dashboard: it is of the dashboard that is there, and shows what was answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

from ansible_collections.speed_limiter.ebpf.tests.support import dashboard

SOURCE = dashboard.SOURCE.read_text(encoding="utf-8")
PICTURE = dashboard.SOURCE.parents[1] / "pictures" / "dashboard.svg"
PANELS = json.loads(SOURCE)["panels"]


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]


def drawn(answer: Sequence[dashboard.Series]) -> str:
    asked: list[str] = []

    def ask(expression: str) -> Sequence[dashboard.Series]:
        asked.append(expression)
        return answer

    text = dashboard.svg(ask, 1000.0, 1030.0)
    assert asked == [target["expr"] for panel in PANELS for target in panel["targets"]]
    return text


def test_the_picture_is_of_the_dashboard_that_is_there() -> None:
    """As test_gallery.py looks for. Of each panel's queries, the metrics of a real host answered one at least."""
    text = PICTURE.read_text(encoding="utf-8")
    assert "No data" not in texts(text)
    drawn_panels = [one for one in ElementTree.fromstring(text) if one.tag.endswith("}g")]
    assert len(drawn_panels) == len(PANELS)
    for panel, shown in zip(PANELS, drawn_panels):
        lines = [one for one in shown if one.tag.endswith("polyline")]
        assert (panel["type"] == "stat") != bool(lines), panel["title"]


def test_every_panel_is_drawn_with_its_series_and_values() -> None:
    text = drawn([({"instance": "db1", "rule": "<b>&", "reason": "empty"}, [(1000.0, 2e6), (1030.0, 1e6)])])
    shown = texts(text)
    for panel in PANELS:
        assert any(one and panel["title"].startswith(one.rstrip("…")) for one in shown), panel["title"]
    assert {"db1 <b>&", "db1 <b>& limit", "2 Mb/s", "1 Mb/s"} <= set(shown)
    assert text.count("stroke-dasharray") == 1  # what is dashed in Grafana, too: the limit


def test_what_nothing_is_known_of_says_so() -> None:
    assert texts(drawn([])).count("No data") == sum(panel["type"] == "stat" for panel in PANELS)
