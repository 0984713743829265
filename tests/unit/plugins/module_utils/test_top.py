# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`limiter top` without a terminal: what is drawn at any size, what keys do, how often it looks."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.watched import RuleSeen
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.tables import columns_of
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.top import lines
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.top.app import App
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli.top.lines import (
    ASCII,
    CHOSEN,
    UNICODE,
    Glyphs,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work.watch import Detail, Sample

MBIT = 125_000


def rule(name: str, used: float = 0.0, binds: bool = False, limit: int | None = 10 * MBIT, **more: t.Any) -> RuleSeen:
    rate = more.get("rate", used * (limit or 0))
    drops, waiting, once = more.get("drops", 0.0), more.get("waiting", 0), more.get("once", rate)
    return RuleSeen(name, limit, rate, used, drops, waiting, binds, once)


BACKUP, WEB, IDLE = rule("backup", 0.998, True, waiting=3), rule("web", 0.4, drops=12.0), rule("idle")


def connection(**more: t.Any) -> dict[str, t.Any]:
    return {
        "address": "192.0.2.7",
        "port": 443,
        "local_address": "192.0.2.1",
        "local_port": 40000,
        "pid": 812,
        "command": "restic backup /home",
        "rate": 4 * MBIT,
        "share": 4 * MBIT,
        "round_trip_us": 850,
        "waits": True,
        "binding_rule": "backup",
        "paced": True,
        **more,
    }


DETAIL: dict[str, t.Any] = {
    "name": "backup",
    "limit": 10 * MBIT,
    "rate": 10 * MBIT,
    "utilization": 0.998,
    "binds": True,
    "binding_rule": "backup",
    "waiting_elsewhere": 0,
    "reason": None,
    "counters": {"drops": {"empty": 3, "debt": 0}, "notices": {"ahead": 2}},
    "active_connections": 3,
    "waiting_connections": 3,
    "open_connections": 40,
    "unpaced": [{"reason": "they are new", "connections": 1}],
    "connections": [
        connection(),
        connection(address="2001:db8:1111:2222:3333:4444:5555:6666", waits=False, pid=None, rate=None, command=None),
        *[connection(port=number) for number in range(1000, 1040)],
    ],
    "budgets": None,
}


class Host:
    """What a `work.watch.Watch` would see."""

    def __init__(self, *rules: RuleSeen) -> None:
        self.rules: list[RuleSeen] | None = list(rules)
        self.notice, self.detailed = "", Detail(DETAIL)
        self.now, self.used, self.cost, self.asked = 1000.0, 0.0, 0.001, 0

    def sample(self) -> Sample:
        self.asked += 1
        self.used += self.cost
        return Sample(self.rules, self.notice)

    def processes(self, name: str) -> int | None:
        return 2

    def detail(self, name: str) -> Detail:
        return self.detailed


def app(host: Host, glyphs: Glyphs = UNICODE, interval: float = 1.0) -> App:
    made = App(host, interval, glyphs, lambda: host.now, lambda: host.used)
    made.tick()
    return made


def text(shown: App, width: int = 80, height: int = 24) -> list[str]:
    return [line.text for line in shown.lines(width, height)]


def press(shown: App, *keys: str) -> None:
    for key in keys:
        shown.key(key)


# ---- what is drawn


def test_80_columns_have_everything() -> None:
    host = Host(BACKUP, WEB, IDLE)
    shown = app(host)
    for _second in range(30):
        host.now += 1
        shown.tick()
    assert text(shown)[:5] == [
        "3 rules  1 holds back  now 14 Mbit/s  by use  every 1 s",
        "  RULE               LIMIT         NOW   USE        LAST MIN   DROPS  WAIT PROCS",
        "▶ backup         10 Mbit/s 9.98 Mbit/s 100%! ██████     ██████     0     3     2",
        "  web            10 Mbit/s    4 Mbit/s  40%  ██····     ▃▃▃▃▃▃    12     0     2",
        "  idle           10 Mbit/s     0 bit/s   0%  ······                0     0     2",
    ]


@pytest.mark.parametrize(("once", "now"), [(0.0, "  now 4 Mbit/s  "), (None, "")])
def test_what_passes_two_rules_is_counted_once_or_not_at_all(once: float | None, now: str) -> None:
    """The outer rule's rate has that of the inner one in it."""
    host = Host(rule("outer", 0.4, once=once), rule("inner", 0.4))
    header = text(app(host))[0]
    assert now in header and ("now" in header) == bool(now)


def test_40_columns_and_10_rows_have_what_matters_most() -> None:
    shown = app(Host(BACKUP, WEB, *[rule(f"rule-{number}") for number in range(100)]))
    found = text(shown, 40, 10)
    assert len(found) == 10
    assert found[0].startswith("102 rules  1 holds back")
    assert found[2] == "▶ backup       9.98 Mbit/s 100%! ███████"
    assert found[-1].startswith("q quit")


@pytest.mark.parametrize("view", ["rules", "connections", "help", "filter"])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_nothing_is_wider_or_higher_than_the_terminal(view: str, glyphs: Glyphs) -> None:
    names = ["限速" * 30, "r" * 128, "hostile\x1b[2J", "a"]
    shown = app(Host(*(rule(name, 1.0, True, drops=1e9, waiting=10**6) for name in names)), glyphs)
    press(shown, *{"rules": "", "connections": ["ENTER"], "help": "?", "filter": "/aaaa"}[view])
    for width in [*range(1, 130), 500]:
        for height in (1, 2, 3, 5, 10, 24, 60):
            found = text(shown, width, height)
            assert 1 <= len(found) <= height
            assert all(columns_of(line) <= width for line in found), (width, height)
            assert "\x1b" not in "".join(found)
            assert glyphs is UNICODE or view == "rules" or all(line.isascii() for line in found)
    assert text(shown, 0, 10) == [] == text(shown, 10, 0)


def test_without_colours_and_letters_beyond_ascii_all_is_there() -> None:
    found = text(app(Host(BACKUP, WEB), ASCII))
    assert found[2].startswith("> backup") and "100%! ######" in found[2]
    assert "web" in found[3] and " 40%  ##...." in found[3]


def test_what_cannot_be_seen_is_told() -> None:
    host = Host()
    assert "there are no rules" in text(app(host))
    host.notice = "no program is loaded: nothing limits"
    assert host.notice in text(app(host))
    host.rules = [IDLE]
    assert text(app(host))[0].startswith("1 rule  no program is loaded: nothing limits")


def test_a_look_that_fails_leaves_what_was_seen() -> None:
    host = Host(BACKUP)
    shown = app(host)
    host.rules, host.notice, host.now = None, "the BPF map cannot be read", host.now + 1
    shown.tick()
    assert "the BPF map cannot be read" in text(shown)[0] and "backup" in text(shown)[2]


def test_numbers_keep_to_their_columns() -> None:
    assert [lines.count(number) for number in (0, 9999, 10_000, 999_499, 999_500, 4e9)] == [
        "0",
        "9999",
        "10k",
        "999k",
        "1M",
        "4000M",
    ]
    assert lines.percent(rule("a", 20.0, True)) == "999%!" and lines.percent(rule("a", limit=None)) == "-"
    assert lines.gauge(0.001, 6, ASCII) == "#....." and lines.gauge(7.0, 6, ASCII) == "######"
    assert lines.sparkline([None, 0.0, 0.01, 0.5, 1.0, 9.0], ASCII) == "  .=@@"


# ---- keys


def test_the_order_and_the_chosen_rule_that_stays_the_same() -> None:
    shown = app(Host(IDLE, WEB, BACKUP))
    press(shown, "DOWN")
    assert shown.rows.chosen == "web"
    orders = {}
    for _sort in range(6):
        orders[shown.rows.sort] = [one.name for one in shown.rows.shown]
        assert shown.rows.chosen == "web"
        press(shown, "s")
    assert orders == {
        "use": ["backup", "web", "idle"],
        "rate": ["backup", "web", "idle"],
        "drops": ["web", "backup", "idle"],
        "waiting": ["backup", "web", "idle"],
        "limit": ["backup", "idle", "web"],
        "name": ["backup", "idle", "web"],
    }
    press(shown, "r")
    assert [one.name for one in shown.rows.shown] == ["idle", "web", "backup"]


def test_moving_stays_among_the_rules_and_in_sight() -> None:
    shown = app(Host(*(rule(f"rule-{number:03}") for number in range(500))))
    for keys, name in (
        ("END", "rule-499"),
        ("DOWN", "rule-499"),
        ("PAGE_UP", "rule-478"),
        ("HOME", "rule-000"),
        ("UP", "rule-000"),
        ("PAGE_DOWN", "rule-021"),
        ("j", "rule-022"),
        ("k", "rule-021"),
    ):
        press(shown, keys)
        assert shown.rows.chosen == name
        (chosen,) = [line.text for line in shown.lines(80, 24) if line.style == CHOSEN]
        assert name in chosen


def test_as_many_rules_as_there_can_be() -> None:
    shown = app(Host(*(rule(f"rule-{number:05}") for number in range(65_535)), BACKUP))
    assert text(shown)[0].startswith("65536 rules  1 holds back") and "backup" in text(shown)[2]
    press(shown, "END")
    assert "rule-65534" in text(shown)[-2]
    press(shown, "/", *"65000")
    assert [one.name for one in shown.rows.shown] == ["rule-65000"]


def test_a_filter_is_typed_corrected_taken_back_and_kept() -> None:
    shown = app(Host(BACKUP, WEB, IDLE))
    press(shown, "/", "E", "q", "BACKSPACE", "b")
    assert text(shown)[-1] == "/Eb_" and [one.name for one in shown.rows.shown] == ["web"]
    press(shown, "ENTER")
    assert "with 'Eb': 1" in text(shown)[0] and shown.rows.chosen == "web"
    press(shown, "/", "x")
    assert "no rule has this text in its name" in text(shown)
    press(shown, "ESCAPE")
    assert shown.rows.filter == "Eb"
    press(shown, "ESCAPE")
    assert len(shown.rows.shown) == 3


def test_connections_of_a_rule_and_back() -> None:
    shown = app(Host(BACKUP))
    press(shown, "ENTER")
    found = text(shown)
    assert found[:6] == [
        "backup: 10 Mbit/s, now 10 Mbit/s, 100 %. It holds its senders back.",
        "3 connections send, 3 wait for it, 0 for another rule; 40 are open.",
        "Dropped: 3 empty. Told to slow down: 2 ahead.",
        "1 not paced: they are new.",
        "ADDRESS                      RATE WAITS       SHARE      RTT     PID PROCESS",
        "192.0.2.7:443            4 Mbit/s   yes    4 Mbit/s  0.85 ms     812 restic bac…",
    ]
    assert found[6].startswith("[2001:db8:1111:2222:…           -    no")
    press(shown, "END")
    assert text(shown)[-2].startswith("192.0.2.7:1039")
    press(shown, "q")
    assert not shown.done and "▶ backup" in text(shown)[2]
    press(shown, "q")
    assert shown.done


def test_how_long_a_rule_was_seen_to_hold_back_is_told() -> None:
    host = Host(WEB)
    shown = app(host)
    host.rules = [BACKUP]
    for _second in range(5):
        host.now += 1
        shown.tick()
    press(shown, "ENTER")
    assert "It holds its senders back for 4 s, as far as was watched." in " ".join(text(shown))


def test_a_rule_that_goes_while_it_is_watched() -> None:
    host = Host(BACKUP, WEB)
    shown = app(host)
    host.rules, host.now = [WEB], host.now + 1
    shown.tick()
    assert shown.rows.chosen == "web"
    press(shown, "ENTER")
    host.detailed, host.now = Detail(None), host.now + 1
    shown.tick()
    assert text(shown)[0] == "There is no rule web any more."
    press(shown, "ESCAPE")
    assert "▶ web" in text(shown)[2]


def test_help_and_any_key_back() -> None:
    shown = app(Host(BACKUP))
    press(shown, "?")
    assert any("Esc or q: back" in line for line in text(shown))
    press(shown, "q")
    assert not shown.done and "backup" in text(shown)[2]


# ---- time


def test_it_looks_once_an_interval_and_not_while_paused() -> None:
    host = Host(BACKUP)
    shown = app(host, interval=2.0)
    assert (host.asked, shown.wait()) == (1, 2.0)
    host.now += 1.5
    assert not shown.tick() and shown.wait() == pytest.approx(0.5)
    host.now += 1
    assert shown.tick() and host.asked == 2
    press(shown, "p")
    host.now += 100
    assert shown.wait() is None and not shown.tick() and "PAUSED" in text(shown)[0]
    press(shown, " ")
    assert host.asked == 3
    press(shown, "p")
    assert shown.wait() is not None


def test_where_a_look_takes_long_it_looks_less_often() -> None:
    host = Host(BACKUP)
    host.cost = 0.2
    shown = app(host)
    assert shown.wait() == pytest.approx(4.0)
    assert "every 4 s" in text(shown)[0]


def test_the_last_minute_forgets_what_is_older_and_leaves_gaps_where_nothing_was_seen() -> None:
    host = Host(rule("a", 1.0))
    shown = app(host)
    host.now, host.rules = host.now + 30, [rule("a", 0.5)]
    shown.tick()
    assert shown.rows.last_minute("a", 4, host.now) == [None, 1.0, None, 0.5]
    host.now += 45
    shown.tick()
    assert shown.rows.last_minute("a", 4, host.now) == [0.5, None, None, 0.5]
    host.rules, host.now = [], host.now + 1
    shown.tick()
    assert shown.rows.last_minute("a", 4, host.now) == [None] * 4


def test_the_last_minute_is_that_of_the_fullest_cgroup_where_each_has_the_rate_for_itself() -> None:
    """100 cgroups at a tenth of their limit are not near it, though together they send ten times as much."""
    host = Host(rule("users", 0.1, rate=100 * MBIT))
    shown = app(host)
    assert " 10%  " in text(shown)[2]
    assert shown.rows.last_minute("users", 1, host.now) == [0.1]
