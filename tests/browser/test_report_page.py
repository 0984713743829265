# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the playbook `report` in a real browser: what somebody does with it, on what, and what cannot be done to
them with it.
"""

from __future__ import annotations

import itertools
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report import page as report
from ansible_collections.speed_limiter.ebpf.plugins.plugin_utils._report.text import line
from ansible_collections.speed_limiter.ebpf.tests.support import fleet
from ansible_collections.speed_limiter.ebpf.tests.support.pages import reported
from axe_playwright_python.sync_playwright import Axe
from conftest import HOSTS, Open
from playwright.sync_api import Browser, Page, expect

ROWS = "#hosts .wide > tbody > tr:not(.detail)"
PHONE = {"viewport": {"width": 360, "height": 780}}


def column(page: Page, label: str, where: str = "#hosts") -> list[str]:
    heads = [head.strip() for head in page.locator(f"{where} thead th").all_inner_texts()]
    found: list[str] = page.locator(f"{where} tbody > tr > :nth-child({heads.index(label) + 1})").all_inner_texts()
    return found


def sort(page: Page, label: str, where: str = "#hosts") -> str | None:
    """Press the head of a column. Returns how the table is sorted by it."""
    page.locator(f"{where} thead").get_by_role("button", name=label, exact=True).click()
    found: str | None = page.locator(f"{where} thead th", has_text=label).first.get_attribute("aria-sort")
    return found


def rate(value: int) -> str:
    """As the page is to show it: three digits, in powers of 1000 bits."""
    bits, unit = value * 8.0, 0
    while bits >= 999.5:
        bits, unit = bits / 1000, unit + 1
    return f"{bits:.3g} {('bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s')[unit]}"


def percent(part: float) -> str:
    value = 100 * part
    return "< 0.1 %" if 0 < value < 0.1 else f"{value:.{int(value < 10)}f} %"


def search(page: Page, words: str) -> None:
    page.get_by_role("searchbox", name="Search hosts").fill(words)


def told(page: Page) -> str:
    found: str = page.locator("#hosts [role=status]").inner_text()
    return found


def tile(page: Page, state: str) -> t.Any:
    return page.locator(f".tile[data-state={state}]")


def test_the_fleet_at_a_glance(page: Page) -> None:
    numbers = {state: int(tile(page, state).locator("strong").inner_text()) for state in reported({}).counts}
    assert sum(numbers.values()) == HOSTS
    assert numbers == reported(fleet.answers(HOSTS)).counts
    assert f"Of {HOSTS} hosts: " in str(page.locator("svg.bar").get_attribute("aria-label"))


def test_what_is_worst_comes_first(page: Page) -> None:
    states = column(page, "State")
    assert states[0] == "! not limited"
    assert [state for state, _same in itertools.groupby(states)][:3] == ["! not limited", "≠ differ", "✕ cannot"]


def test_a_column_is_sorted_both_ways(page: Page) -> None:
    search(page, "db-")
    assert sort(page, "Host") == "ascending"
    names = column(page, "Host")
    assert names == sorted(names) and len(names) == 50
    assert sort(page, "Host") == "descending"
    assert column(page, "Host")[0] > names[-1]
    # Of numbers the largest come first; what is not known comes last.
    assert sort(page, "Fullest rule") == "descending"
    fullest = [float(text.split()[0]) for text in column(page, "Fullest rule")]
    assert fullest == sorted(fullest, reverse=True) and fullest[0] > 90
    assert page.locator("#hosts [aria-sort]").count() == 1


def test_hosts_are_filtered_by_state_and_words(page: Page) -> None:
    tile(page, "differs").click()
    expect(tile(page, "differs")).to_have_attribute("aria-pressed", "true")
    assert set(column(page, "State")) == {"≠ differ"}
    search(page, "NOT loaded")
    assert told(page) == f"{page.locator(ROWS).count()} of {HOSTS} hosts"
    assert all("program: loaded" in text for text in column(page, "What"))
    search(page, "not loaded, nowhere to be found")
    expect(page.locator("#hosts tbody")).to_have_text("Nothing matches.")
    search(page, "")
    page.get_by_role("button", name="Remove the filter differ").click()
    expect(tile(page, "differs")).to_have_attribute("aria-pressed", "false")
    assert told(page) == f"{HOSTS} hosts"


def test_hosts_that_are_alike_are_shown_together(page: Page) -> None:
    card = page.locator("article.s-unreachable").first
    number = int(card.locator("h3").inner_text().split()[0])
    card.get_by_role("button").click()
    expect(page.get_by_role("searchbox", name="Search hosts")).to_be_focused()
    assert page.locator(ROWS).count() == number
    assert set(column(page, "What")) == {
        "Failed to connect to the host via ssh: ssh: connect to host HOST port 22: No route to host"
    }


def test_a_rule_is_summed_up_over_the_fleet(page: Page) -> None:
    labels = ("Rule", "Limit", "Use", "Of all limits", "Binds on", "Dropped")
    shown = {row[0]: row[1:] for row in zip(*(column(page, label, "#rules") for label in labels))}
    rules = reported(fleet.answers(HOSTS)).rules()
    assert len(rules) > len(fleet.RULES) and set(fleet.EACH) <= {rule.name for rule in rules if rule.each}
    for rule in rules:
        assert rule.slowest is not None and rule.fastest is not None
        fastest = "" if rule.slowest == rule.fastest else f" to {rate(rule.fastest)}"
        passed_and_dropped = rule.packets + rule.dropped_packets
        assert shown[line(rule.name)] == (
            rate(rule.slowest) + fastest + (" each" if rule.each else ""),
            rate(rule.use),
            "" if rule.each else percent(rule.use / rule.limits),
            f"{rule.binds} host{'s' * (rule.binds != 1)}" if rule.binds else "",
            f"{rule.dropped_packets:,} ({percent(rule.dropped_packets / passed_and_dropped)})"
            if rule.dropped_packets
            else "",
        )


def test_where_each_cgroup_has_the_rate_for_itself_the_fullest_counts(show: Open, tmp_path: Path) -> None:
    """Ten cgroups at half of their limit are not nearer to it than a rule at three quarters."""
    answers = {name: fleet.answers(10)["db-00000.example.org"] for name in ("each", "one")}
    users = {"name": "users", "rate": 100, "each": True, "use": {"rate": 500, "utilization": 0.5, "binds": False}}
    one = {"name": "one", "rate": 100, "each": False, "use": {"rate": 75, "utilization": 0.75, "binds": False}}
    for name, rule in (("each", users), ("one", one)):
        answers[name] = {**answers[name], "speed_limiter_seen": {"rules": [rule]}}
    path = tmp_path / "report.html"
    path.write_text(report.render(reported(answers)), encoding="utf-8")
    page = show(path)
    assert sort(page, "Fullest rule") == "descending"
    assert list(zip(column(page, "Host"), column(page, "Fullest rule"))) == [("one", "75 %"), ("each", "50 %")]
    page.locator(ROWS).get_by_role("button", name="each").click()
    expect(page.locator("#hosts .detail tbody")).to_contain_text("4 kbit/s, 50 %")


def test_a_rule_leads_to_its_hosts(page: Page) -> None:
    assert sort(page, "Rule", "#rules") == "ascending"
    number = column(page, "Hosts", "#rules")[column(page, "Rule", "#rules").index("test-of-tuesday")]
    page.locator("#rules").get_by_role("button", name="test-of-tuesday").click()
    assert told(page) == f"{number} of {HOSTS} hosts"


def test_rules_that_no_variable_names_lead_to_their_hosts(page: Page) -> None:
    page.get_by_role("button", name="with rules that no variable names").click()
    page.locator(ROWS).first.get_by_role("button").click()
    expect(page.locator("#hosts .detail")).to_contain_text("Rules that no variable names")


def test_a_host_tells_all_when_it_is_opened(page: Page) -> None:
    search(page, "1073741824")
    host = page.locator(ROWS).first.get_by_role("button")
    expect(host).to_have_attribute("aria-expanded", "false")
    host.press("Enter")
    expect(host).to_have_attribute("aria-expanded", "true")
    expect(host).to_be_focused()
    expect(page.locator("#hosts .detail del").first).to_be_visible()
    expect(page.locator("#hosts .detail table")).to_contain_text("Mbit/s")
    host.press("Enter")
    expect(page.locator("#hosts .detail")).to_have_count(0)


def test_rows_come_page_by_page(page: Page) -> None:
    pager = page.get_by_role("navigation", name="Pages of hosts")
    first = column(page, "Host")
    expect(pager.get_by_role("button", name="Previous")).to_be_disabled()
    pager.get_by_role("button", name="Next").click()
    assert not set(first) & set(column(page, "Host"))
    expect(pager).to_contain_text(f"51–100 of {HOSTS}")
    pager.get_by_role("combobox").select_option("1000")
    expect(page.locator(ROWS)).to_have_count(HOSTS)
    expect(pager.get_by_role("button", name="Next")).to_be_disabled()


def test_on_paper_is_all_that_matches(page: Page) -> None:
    search(page, "web-")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    shown = page.locator(ROWS).count()
    assert shown == int(told(page).split()[0]) > 50
    expect(page.get_by_role("searchbox").first).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    expect(page.locator(ROWS)).to_have_count(50)
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_the_screen(show: Open, written: Path, width: int) -> None:
    page = show(written, viewport={"width": width, "height": 780})
    tile(page, "failed").click()
    for host in page.locator(ROWS).get_by_role("button").all():
        host.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in ("Host", "State", "Fullest rule"):
        expect(page.locator("#hosts thead").get_by_role("button", name=name, exact=True)).to_be_visible()


def test_light_and_dark(show: Open, written: Path) -> None:
    def paper(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = show(written, color_scheme="light"), show(written, color_scheme="dark")
    assert paper(light) != paper(dark)
    light.get_by_role("button", name="Dark", exact=True).click()
    assert paper(light) == paper(dark)
    dark.get_by_role("button", name="Light", exact=True).click()
    assert paper(dark) != paper(light)


@pytest.mark.parametrize("name", fleet.HOSTILE)
def test_a_hostile_host_is_text(page: Page, name: str) -> None:
    """The fixture fails the test for any dialog, request or complaint."""
    page.get_by_role("navigation", name="Pages of hosts").get_by_role("combobox").select_option("1000")
    tile(page, "failed").click()
    shown = line(name)
    row = page.locator(ROWS, has=page.locator("bdi").get_by_text(shown, exact=True))
    row.get_by_role("button").click()
    expect(page.locator("#hosts .detail .text").first).to_contain_text(shown)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_a_script_that_got_into_the_page_would_not_run(browser: Browser, written: Path) -> None:
    page = browser.new_page()
    page.goto(written.as_uri())
    violated = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            const script = document.createElement("script");
            try { script.textContent = "window.ran = true"; } catch (error) { resolve(error.name); }
            document.body.append(script);
        })"""
    )
    assert violated in ("TypeError", "require-trusted-types-for", "script-src-elem")
    assert page.evaluate("window.ran") is None
    page.close()


def test_without_its_script_the_page_tells_the_numbers(show: Open, written: Path) -> None:
    page = show(written, script=False)
    expect(page.locator("#summary")).to_contain_text(f"{HOSTS} hosts: ")
    expect(page.locator("#static")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["desk", "phone"])
def test_it_is_accessible(show: Open, written: Path, scheme: str, size: dict[str, t.Any]) -> None:
    page = show(written, color_scheme=scheme, **size)
    tile(page, "differs").click()
    page.locator(ROWS).first.get_by_role("button").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_ten_thousand_hosts(show: Open, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    answers = fleet.answers(10_000)
    begin = time.monotonic()
    path.write_text(report.render(reported(answers)), encoding="utf-8")
    written = time.monotonic()
    page = show(path)
    opened = time.monotonic()
    size = path.stat().st_size
    search(page, "mail-00209")
    expect(page.locator(ROWS)).to_have_count(1)
    search(page, "")
    assert sort(page, "Dropped") == "descending"
    expect(page.locator(ROWS)).to_have_count(50)
    used = time.monotonic()
    print(
        f"10,000 hosts: written in {written - begin:.1f} s, {size / 1e6:.2f} MB; opened in {opened - written:.1f} s; "
    )
    print(f"searched and sorted in {used - opened:.1f} s")
    assert size < 5_000_000


def test_a_host_with_thousands_of_rules_and_changes(show: Open, tmp_path: Path) -> None:
    names = [f"rule-{number}" for number in range(5000)]
    after = "".join(f"{name}: 1 B/s\n" for name in names)
    compared = {
        **fleet.answers(10)["db-00000.example.org"]["speed_limiter_compared"],
        "rules": [{"name": name} for name in names],
        "diff": {"before": after.replace("1 B/s", "absent"), "after": after},
        "unenforced": [f"nothing limits {name}" for name in names],
    }
    seen = {"rules": [{"name": name, "rate": 1, "use": {"rate": 1}} for name in names]}
    answers = {"only": {"speed_limiter_seen": seen, "speed_limiter_compared": compared, "speed_limiter_named": names}}
    path = tmp_path / "report.html"
    path.write_text(report.render(reported(answers)), encoding="utf-8")
    page = show(path)
    expect(page.locator("#groups")).to_contain_text("and 4,970 further changes, which the text and JSON have")
    expect(page.locator("#groups")).to_contain_text("and 71 further reasons, which the text and JSON have")
    search(page, "rule-4999: absent")
    page.locator(ROWS).get_by_role("button").click()
    expect(page.locator("#hosts .detail")).to_contain_text("and 4,000 further rules")
    expect(page.locator("#hosts .detail table tbody tr")).to_have_count(1000)


def test_a_fleet_of_which_nothing_is_known(show: Open, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.render(reported({"only": {}})), encoding="utf-8")
    page = show(path)
    assert column(page, "What") == ["no answer"]
    expect(page.locator("#rules")).to_be_hidden()
    page.locator(ROWS).get_by_role("button").click()
    expect(page.locator("#hosts .detail")).to_contain_text("no answer")
