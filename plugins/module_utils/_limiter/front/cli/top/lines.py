# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`limiter top` as lines of text, for a terminal of any size or for none. Pure."""

from __future__ import annotations

import typing as t

from ....core.rates import short_rate
from ....core.watched import RuleSeen
from ..tables import columns_of, fitted

NORMAL, TITLE, CHOSEN, HOLDS, BUSY, DIM = "normal", "title", "chosen", "holds", "busy", "dim"

NARROWEST_NAME, WIDEST_NAME = 12, 40
BUSY_FROM = 0.8  # of a limit


class Glyphs(t.NamedTuple):
    full: str
    empty: str
    heights: str  # from nothing to all
    more: str
    arrow: str


UNICODE = Glyphs("\u2588", "\u00b7", " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "\u2026", "\u25b6")
ASCII = Glyphs("#", ".", " ._-=+*#@", "..", ">")


class Line(t.NamedTuple):
    text: str
    style: str = NORMAL


class Row(t.NamedTuple):
    """What is shown of a rule."""

    rule: RuleSeen
    minute: t.Callable[[int], t.Sequence[float | None]]
    processes: int | None


class _Column(t.NamedTuple):
    title: str
    width: int
    cell: t.Callable[[Row, int, Glyphs], str]
    right: bool = True


def gauge(used: float, width: int, glyphs: Glyphs) -> str:
    full = min(width, max(round(used * width), 1 if used > 0 else 0))
    return glyphs.full * full + glyphs.empty * (width - full)


def sparkline(parts: t.Iterable[float | None], glyphs: Glyphs) -> str:
    """A height for each part, which all of the limit fills."""
    highest = len(glyphs.heights) - 1
    return "".join(
        " " if part is None else glyphs.heights[min(highest, max(round(part * highest), 1 if part > 0 else 0))]
        for part in parts
    )


def percent(rule: RuleSeen) -> str:
    if rule.limit is None:
        return "-"
    return f"{min(round(100 * rule.utilization), 999)}%{'!' if rule.binds else ' '}"


def count(number: float) -> str:
    """At most five characters."""
    if number >= 999_500:
        return f"{number / 1_000_000:.0f}M"
    return f"{number / 1000:.0f}k" if number >= 9_999.5 else f"{number:.0f}"


# The most important ones come first: what does not fit is left out.
_COLUMNS = (
    _Column("NOW", 11, lambda row, width, glyphs: short_rate(int(row.rule.rate))),
    _Column("USE", 5, lambda row, width, glyphs: percent(row.rule)),
    _Column("LIMIT", 11, lambda row, width, glyphs: "-" if row.rule.limit is None else short_rate(row.rule.limit)),
    _Column("", 6, lambda row, width, glyphs: gauge(row.rule.utilization, width, glyphs), right=False),
    _Column("LAST MIN", 10, lambda row, width, glyphs: sparkline(row.minute(width), glyphs), right=False),
    _Column("DROPS", 5, lambda row, width, glyphs: count(row.rule.drops)),
    _Column("WAIT", 5, lambda row, width, glyphs: count(row.rule.waiting)),
    _Column("PROCS", 5, lambda row, width, glyphs: "-" if row.processes is None else count(row.processes)),
)
_ORDER = ("LIMIT", "NOW", "USE", "", "LAST MIN", "DROPS", "WAIT", "PROCS")
_GROW = (("LAST MIN", 60), ("", 30))  # to so many columns, where there is room


def rules(rows: t.Sequence[Row], chosen: str | None, width: int, glyphs: Glyphs, minute: bool = True) -> list[Line]:
    """A title, and a line for each. ``minute``: there was one to be shown."""
    wanted = max([NARROWEST_NAME, *(columns_of(row.rule.name) for row in rows)])
    name = min(wanted, WIDEST_NAME)
    columns: list[_Column] = []
    room = width - 2 - min(name, NARROWEST_NAME)
    for column in _COLUMNS:
        if column.width + 1 <= room and (minute or column.title != "LAST MIN"):
            columns.append(column)
            room -= column.width + 1
    more_name = min(name - min(name, NARROWEST_NAME), room)
    name, room = min(name, NARROWEST_NAME) + more_name, room - more_name
    widths = {column.title: column.width for column in columns}
    for title, most in _GROW:
        if title in widths:
            more = min(most - widths[title], room)
            widths[title], room = widths[title] + more, room - more
    ordered = sorted(columns, key=lambda column: _ORDER.index(column.title))
    titles = [fitted(column.title, widths[column.title], right=column.right) for column in ordered]
    lines = [Line(" ".join([" ", fitted("RULE", name), *titles]).rstrip()[:width], TITLE)]
    for row in rows:
        cells = [
            fitted(column.cell(row, widths[column.title], glyphs), widths[column.title], right=column.right)
            for column in ordered
        ]
        is_chosen = row.rule.name == chosen
        text = " ".join([glyphs.arrow if is_chosen else " ", fitted(row.rule.name, name, glyphs.more), *cells])
        lines.append(Line(fitted(text, width), CHOSEN) if is_chosen else Line(text.rstrip(), _style(row.rule)))
    return lines


def _style(rule: RuleSeen) -> str:
    if rule.binds:
        return HOLDS
    if rule.utilization >= BUSY_FROM:
        return BUSY
    return NORMAL if rule.rate else DIM


def header(parts: t.Sequence[str], width: int, more: str) -> Line:
    """As many parts as fit, the most important ones first."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if columns_of(longer) > width and text:
            break
        text = longer
    return Line(fitted(text, width, more).rstrip(), TITLE)


_CONNECTIONS = (
    ("ADDRESS", 21),
    ("RATE", 11),
    ("WAITS", 5),
    ("SHARE", 11),
    ("RTT", 8),
    ("PID", 7),
)


def connections(facts: t.Mapping[str, t.Any], width: int, glyphs: Glyphs) -> list[Line]:
    """A title, and a line for each connection of a rule."""
    found = facts["connections"]
    if found is None:
        return [Line("Its connections cannot be looked at.")]
    rows = [
        (
            f"{_bracketed(one['address'])}:{one['port']}",
            "-" if one["rate"] is None else short_rate(one["rate"]),
            _waits(one, facts["name"]),
            "-" if one["share"] is None else short_rate(one["share"]),
            "-" if one["round_trip_us"] is None else _milliseconds(one["round_trip_us"]),
            "-" if one["pid"] is None else str(one["pid"]),
            one["command"] or "",
        )
        for one in found
    ]
    widths = [size for _title, size in _CONNECTIONS]
    shown = len(widths)
    while shown > 2 and sum(widths[:shown]) + shown > width:
        shown -= 1
    rest = width - sum(widths[:shown]) - shown
    if rest < 0:
        widths[0] = max(width - sum(widths[1:shown]) - shown, 1)
    titles = [fitted(title, size, right=place > 0) for place, (title, size) in enumerate(zip(_titles(), widths))]
    has_process = shown == len(widths) and rest >= 8
    process = ["PROCESS"] if has_process else []
    lines = [Line(" ".join([*titles[:shown], *process])[:width], TITLE)]
    for row in rows:
        cells = [fitted(row[place], widths[place], glyphs.more, right=place > 0) for place in range(shown)]
        command = [fitted(row[-1], rest, glyphs.more).rstrip()] if has_process else []
        lines.append(Line(" ".join([*cells, *command]).rstrip(), HOLDS if row[2] == "yes" else NORMAL))
    return lines


def _titles() -> list[str]:
    return [title for title, _size in _CONNECTIONS]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _waits(one: t.Mapping[str, t.Any], name: str) -> str:
    if not one["waits"]:
        return "no" if one["paced"] else "free"
    return "yes" if one["binding_rule"] == name else "other"


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:.3g} ms" if microseconds < 999_500 else f"{microseconds / 1_000_000:.3g} s"


def summary(facts: t.Mapping[str, t.Any], since: float | None) -> list[str]:
    """What is told of a rule above its connections, a paragraph each. ``since``: for how many seconds it binds."""
    limit = "unfinished" if facts["limit"] is None else short_rate(facts["limit"])
    used = "" if facts["utilization"] is None else f", {round(100 * facts['utilization'])} %"
    counters = facts["counters"]
    reasons = [f"{number} {why}" for why, number in counters["drops"].items() if number]
    notices = [f"{number} {why}" for why, number in counters["notices"].items() if number]
    texts = [
        f"{facts['name']}: {limit}, now {short_rate(facts['rate'])}{used}. {_binds(facts, since)}",
        f"{facts['active_connections']} connections send, {facts['waiting_connections']} wait for it, "
        f"{facts['waiting_elsewhere']} for another rule; {facts['open_connections']} are open.",
    ]
    dropped = f"Dropped: {', '.join(reasons)}. " if reasons else ""
    noticed = f"Told to slow down: {', '.join(notices)}." if notices else ""
    texts += [dropped + noticed] if reasons or notices else []
    texts += [f"{one['connections']} not paced: {one['reason']}." for one in facts["unpaced"] or ()]
    texts += [f"Why not all is used: {facts['reason']}."] if facts["reason"] else []
    texts += [
        f"{one['cgroup']}: {short_rate(one['rate'])}, {round(100 * (one['utilization'] or 0))} %"
        f"{', held back' if one['binds'] else ''}"
        for one in (facts["budgets"] or ())[:3]
    ]
    return texts


def _binds(facts: t.Mapping[str, t.Any], since: float | None) -> str:
    if not facts["binds"]:
        other = facts["binding_rule"]
        return f"{other} holds its senders back." if other else "It holds nobody back."
    seen = f" for {since:.0f} s, as far as was watched" if since else ""
    return f"It holds its senders back{seen}."
