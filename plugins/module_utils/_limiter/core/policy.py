# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rule is apart from its name and its members: a table of its fields, by where they are kept. The modules'
options, the request, the diff, the facts and the stored form follow from it. CONTRIBUTING.md says what else a new field
needs.
"""

from __future__ import annotations

import typing as t

from .rates import parse_bucket, parse_rate, show_rate

Given = t.Mapping[str, int]  # the fields that a task gives: name -> value


class Limit(t.NamedTuple):
    """A rule's value for each field of `LIMIT`, in that order: what the kernel keeps by the rule."""

    rate: int  # bytes per second
    bucket: int  # bytes


class InPlace(t.NamedTuple):
    """A rule's value for each field of `IN_PLACE`: what the kernel keeps by the rule's places. Without places there is
    nothing else than the defaults.
    """

    each: bool = False  # every cgroup that a place names has a budget of its own


class Config(t.NamedTuple):
    """A field of struct rate_limit_config, bpf/layout.h."""

    name: str
    form: str  # its type, as the module struct writes it


def _parse_flag(option: str, value: object) -> int:
    return bool(value)


class Field(t.NamedTuple):
    name: str  # in options, facts, files, and in Limit or InPlace
    option: t.Mapping[str, t.Any]  # its argument specification
    parse: t.Callable[[str, object], int]  # takes the option's name and value; raises LimiterError
    show: t.Callable[[int], str]  # its part of a line in the diff
    # Takes the options that are given and the rule's old value, which a new rule lacks; returns the value where this
    # option is not given, or None where a new rule needs it.
    otherwise: t.Callable[[Given, int | None], int | None] = lambda given, old: old
    config: Config | None = None  # None: not kept there


LIMIT = (
    Field(
        name="rate",
        option={"type": "str"},
        parse=parse_rate,
        show=show_rate,
        config=Config("rate_bps", "Q"),
    ),
    Field(
        name="bucket",
        option={"type": "str"},
        parse=parse_bucket,
        show=lambda value: f"bucket {value} B",
        otherwise=lambda given, old: given.get("rate", old),
        config=Config("bucket_size", "Q"),
    ),
)
IN_PLACE = (
    Field(
        name="each",
        option={"type": "bool"},
        parse=_parse_flag,
        show=lambda value: "each of " if value else "",  # before each place
    ),
)
# Kept as the file itself, which has all other fields.
PERSISTENT = Field(
    name="persistent",
    option={"type": "bool"},
    parse=_parse_flag,
    show=lambda value: "persistent",
)
FILED = (*LIMIT, *IN_PLACE)
FIELDS = (*FILED, PERSISTENT)


def parse(where: str, options: t.Mapping[str, object]) -> dict[str, int]:
    """The fields that are given among a rule's options. ``where`` begins every error."""
    return {
        field.name: field.parse(f"{where}{field.name}", options[field.name])
        for field in FIELDS
        if options.get(field.name) is not None
    }


def wanted(given: Given, old: Limit | None) -> dict[str, int | None]:
    """The wanted value of every field of a limit; None where a new rule needs the option."""
    return _wanted(LIMIT, given, old._asdict() if old else {})


def wanted_in_place(given: Given, old: InPlace) -> InPlace:
    return InPlace(**t.cast("dict[str, t.Any]", _wanted(IN_PLACE, given, old._asdict())))


def _wanted(fields: t.Sequence[Field], given: Given, old: t.Mapping[str, int]) -> dict[str, int | None]:
    return {
        field.name: given[field.name] if field.name in given else field.otherwise(given, old.get(field.name))
        for field in fields
    }


def show(limit: Limit) -> list[str]:
    """A limit in a diff."""
    return [field.show(value) for field, value in zip(LIMIT, limit)]


def show_places(in_place: InPlace, paths: t.Iterable[str]) -> list[str]:
    """What a rule limits in place, in a diff."""
    how = "".join(field.show(value) for field, value in zip(IN_PLACE, in_place))
    return [f"limits {how}{path}" for path in paths]


def facts(limit: Limit | None, in_place: InPlace | None, persistent: bool | None) -> dict[str, int | None]:
    """Every field in a result; None if there is none or it could not be read."""
    known = values(limit, in_place)
    return {**{field.name: known.get(field.name) for field in FILED}, PERSISTENT.name: persistent}


def values(limit: Limit | None, in_place: InPlace | None) -> dict[str, int]:
    """By the fields' names."""
    return {**(limit._asdict() if limit else {}), **(in_place._asdict() if in_place else {})}
