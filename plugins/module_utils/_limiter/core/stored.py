# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is stored of a rule, for the next boot. Pure; `host/store.py` has the files.

A rule is stored as a JSON object: ``schema``, its fields as in `policy.FILED`, and its ``places``. Each place has the
pattern ``path``, and what the operator named it by: ``unit``, ``user`` with ``uid``, or ``container``. What is not
understood as a whole is refused as a whole: half a rule could limit what nobody meant.
"""

from __future__ import annotations

import typing as t

from . import patterns, policy
from .errors import LimiterError
from .model import File, Refused, Rule, StoredPlace, StoredRule
from .policy import InPlace, Limit

SCHEMA = 1
KINDS = ("unit", "user", "container")

_MOST_SHOWN = 100  # characters of what is refused


def form(rule: Rule, file: File | None = None, named: t.Iterable[StoredPlace] = ()) -> StoredRule:
    """What a rule is stored as. What the operator named its places by is known from the file that is there, or from
    what he names now; another name for what is stored already changes nothing.
    """
    limit = t.cast(Limit, rule.limit)  # who stores a rule that has none is refused before
    known = {place.path: place for place in (*named, *(file.places if isinstance(file, StoredRule) else ()))}
    return StoredRule(limit, tuple(known.get(path, StoredPlace(path)) for path in rule.places), rule.in_place)


def to_json(stored: StoredRule) -> dict[str, t.Any]:
    """What `from_json` reads."""
    fields = policy.values(stored.limit, stored.in_place)
    return {
        "schema": SCHEMA,
        # Earlier versions of this schema refuse fields that they do not know, so they get them only where they matter.
        **{name: value for name, value in fields.items() if value != InPlace._field_defaults.get(name)},
        "places": [_place_to_json(place) for place in stored.places],
    }


def from_json(value: object) -> File:
    """A stored rule, or why it is refused, in one sentence."""
    try:
        return _read(value)
    except _NewerError as error:
        return Refused(str(error), newer=True)
    except _WrongError as error:
        return Refused(str(error))
    except LimiterError as error:
        what = _cut(error.what)
        return Refused(f"{what}: {error.why}" if error.why else what, kind=error.kind, remedy=error.remedy)


def show(file: File) -> str:
    """A file in a diff."""
    if isinstance(file, Refused):
        return "stored in a file that is refused"
    places = policy.show_places(file.in_place, [place.path for place in file.places])
    return f"stored as {', '.join([*policy.show(file.limit), *places])}"


class _WrongError(Exception):
    pass


class _NewerError(Exception):
    pass


def _read(value: object) -> StoredRule:
    if not isinstance(value, dict):
        raise _WrongError("it holds no JSON object")
    schema = value.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise _WrongError(f"its schema is {_shown(schema)}, which is no number of a schema")
    if schema > SCHEMA:
        raise _NewerError(f"its schema is {_shown(schema)}, and this version of the collection knows {SCHEMA} at most")
    _check_keys(value, ("schema", *(field.name for field in policy.FILED), "places"))
    for field in policy.FILED:
        if field.name in value:
            _check_type(field, value[field.name])
    given = policy.parse("", value)
    limit = policy.wanted(given, None)
    missing = [name for name, number in limit.items() if number is None]
    if missing:
        raise _WrongError(f"{missing[0]} is missing")
    places = value.get("places", [])
    if not isinstance(places, list):
        raise _WrongError("places is no list")
    found = sorted((_read_place(place) for place in places), key=lambda place: place.path)
    for before, place in zip(found, found[1:]):
        if before.path == place.path:
            raise _WrongError(f"the path {place.path} is there twice")
    in_place = policy.wanted_in_place(given, InPlace())
    return StoredRule(Limit(**t.cast("dict[str, int]", limit)), in_place=in_place).with_places(tuple(found))


def _check_type(field: policy.Field, value: object) -> None:
    if field.option["type"] == "bool":
        if not isinstance(value, bool):
            raise _WrongError(f"{field.name} {_shown(value)} is neither true nor false")
    elif not (_is_integer(value) or isinstance(value, str)):
        raise _WrongError(f"{field.name} {_shown(value)} is no number")


def _read_place(value: object) -> StoredPlace:
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise _WrongError(f"the place {_shown(value)} has no path")
    kinds = [kind for kind in KINDS if kind in value]
    if len(kinds) > 1:
        raise _WrongError(f"the place {value['path']} is {' and '.join(kinds)} at once")
    kind = kinds[0] if kinds else ""
    _check_keys(value, ("path", *kinds, *(["uid"] if kind == "user" else [])))
    name = value.get(kind, "")
    if not isinstance(name, str):
        raise _WrongError(f"the {kind} {_shown(name)} is no text")
    uid = value.get("uid")
    if uid is not None and not _is_integer(uid):
        raise _WrongError(f"the uid {_shown(uid)} is no number")
    path = value["path"]
    if "\0" in path or "\n" in path or _is_broken(path) or _is_broken(name):
        raise _WrongError(f"the path {_shown(path)} has characters that no cgroup's name has")
    return StoredPlace(str(patterns.parse("path", path)), kind, name, uid)


def _place_to_json(place: StoredPlace) -> dict[str, t.Any]:
    named = {place.kind: place.name} if place.kind else {}
    return {"path": place.path, **named, **({} if place.uid is None else {"uid": place.uid})}


def _check_keys(value: dict[t.Any, t.Any], known: t.Sequence[str]) -> None:
    unknown = [key for key in value if key not in known]
    if unknown:
        raise _WrongError(f"this version of the collection does not know its field {_shown(unknown[0])}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _is_broken(text: str) -> bool:
    """Whether it cannot be the kernel's: JSON can hold half a character."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return True
    return False
