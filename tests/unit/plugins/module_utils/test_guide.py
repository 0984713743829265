# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md and the commands whose outputs `make guide` writes into it; tests/kernel/test_guide.py runs
these.
"""

from __future__ import annotations

import re
import shlex

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import REASONS
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.cli import parser
from ansible_collections.speed_limiter.ebpf.tests.support import guide
from ansible_collections.speed_limiter.ebpf.tests.support.systemd import CHECKOUT

PAGE = guide.PAGE.read_text(encoding="utf-8")
SHOWN = guide.shown(PAGE)
NOWHERE = guide.Placed(**dict.fromkeys(guide.Placed._fields, "1"))


def test_each_output_is_of_a_command_and_each_command_has_its_output() -> None:
    assert sorted(SHOWN) == sorted(guide.BLOCKS)
    assert PAGE.count("<!-- run:") == len(SHOWN)


@pytest.mark.parametrize("name", guide.BLOCKS)
def test_a_block_has_its_commands_and_what_they_print(name: str) -> None:
    prompts = [line[2:] for line in SHOWN[name].splitlines() if re.match("[#$] ", line)]
    wanted = [template.format(**NOWHERE._asdict()) for template in guide.BLOCKS[name]]
    assert [guide.form(prompt) for prompt in prompts] == [guide.form(command) for command in wanted]
    assert len(SHOWN[name].splitlines()) > len(prompts)


def test_what_the_page_tells_to_type_is_a_command() -> None:
    for line in re.findall(r"^# (limiter .*)", PAGE, re.MULTILINE):
        words = shlex.split(line.partition("|")[0])[1:]
        assert parser.parse(parser.build(), words).command == words[0]


def test_an_output_may_differ_in_numbers_only() -> None:
    first = "RULE   RATE\nweb  8.07 Mbit/s\n#12 tag 0123456789abcdef at 0xffff8882 tokens=-5"
    other = "RULE     RATE\nweb  999 kbit/s\n#7 tag fedcba9876543210 at 0xffff tokens=12"
    assert guide.form(first) == guide.form(other)
    assert guide.form("1 of its 4 connections wait") != guide.form("1 of its 4 connections waits")


def test_a_new_output_takes_the_place_of_the_old_one_and_nothing_else() -> None:
    page = "a\n<!-- run: one -->\n```console\n# old\nold\n```\nb\n```console\n# limiter\n```\n"
    assert guide.shown(page) == {"one": "# old\nold"}
    assert guide.written(page, {"one": r"\1 new"}) == page.replace("# old\nold", r"\1 new")


def test_it_tells_of_no_other_machine() -> None:
    assert str(CHECKOUT) not in PAGE
    assert len(PAGE.splitlines()) < 400


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_of_a_drop_has_its_place(reason: str) -> None:
    assert f"| `{reason}` | " in guide.PAGE.with_name("reasons.md").read_text(encoding="utf-8")
