# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fields of a rule's limit, one row each. The modules' options, the request, the diff, the facts and the stored
form follow from it. CONTRIBUTING.md says what else a new field needs.
"""

from __future__ import annotations

import typing as t

from .rates import parse_bucket, parse_rate, show_rate

Given = t.Mapping[str, int]  # the fields that a task gives: name -> value


class Limit(t.NamedTuple):
    """A rule's value for each field, in the order of `FIELDS`."""

    rate: int  # bytes per second
    bucket: int  # bytes


class Field(t.NamedTuple):
    name: str  # in options, facts and Limit
    option: t.Mapping[str, t.Any]  # its argument specification
    parse: t.Callable[[str, object], int]  # takes the option's name and value; raises LimiterError
    # Takes the options that are given and the rule's old value, which a new rule lacks; returns the value where this
    # option is not given, or None where a new rule needs it.
    otherwise: t.Callable[[Given, int | None], int | None]
    show: t.Callable[[int], str]  # its part of a line in the diff
    stored: str  # its field of struct rate_limit_config, bpf/layout.h
    form: str  # that field's type, as the module struct writes it


FIELDS = (
    Field(
        name="rate",
        option={"type": "str"},
        parse=parse_rate,
        otherwise=lambda given, old: old,
        show=show_rate,
        stored="rate_bps",
        form="Q",
    ),
    Field(
        name="bucket",
        option={"type": "str"},
        parse=parse_bucket,
        otherwise=lambda given, old: given.get("rate", old),
        show=lambda value: f"bucket {value} B",
        stored="bucket_size",
        form="Q",
    ),
)


def parse(where: str, options: t.Mapping[str, object]) -> dict[str, int]:
    """The fields that are given among a rule's options. ``where`` begins every error."""
    return {
        field.name: field.parse(f"{where}{field.name}", options[field.name])
        for field in FIELDS
        if options.get(field.name) is not None
    }


def wanted(given: Given, old: Limit | None) -> dict[str, int | None]:
    """Every field's wanted value; None where a new rule needs the option."""
    before = old._asdict() if old else {}
    return {
        field.name: given[field.name] if field.name in given else field.otherwise(given, before.get(field.name))
        for field in FIELDS
    }


def show(limit: Limit) -> list[str]:
    """A limit in a diff."""
    return [field.show(value) for field, value in zip(FIELDS, limit)]


def facts(limit: Limit | None) -> dict[str, int | None]:
    """A limit in a result; None if there is none or it could not be read."""
    return dict(limit._asdict()) if limit else dict.fromkeys(Limit._fields)
