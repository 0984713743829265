# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that come from a file, held against an argument specification as Ansible does it for a task's."""

from __future__ import annotations

import typing as t

from ..core.errors import LimiterError
from .argspec import Spec


def checked(spec: Spec, given: object, where: str) -> dict[str, t.Any]:
    """The options by their names, with what is not given at its default. ``where`` begins every error.

    Raises LimiterError ``bad_options``.
    """
    if not isinstance(given, dict):
        raise _refused(f"{where}{_shown(given)} is refused", "it is no mapping of options", "Give name and rate, say")
    names = {alias: name for name, about in spec.items() for alias in (name, *about.get("aliases", ()))}
    found: dict[str, t.Any] = {}
    for option, value in given.items():
        if option not in names:
            raise _refused(f"{where}there is no option {option!r}", "", f"Options are {', '.join(spec)}")
        name = names[option]
        if name in found:
            raise _refused(f"{where}{name} is given twice", "once by another name", "Give it once")
        if value is not None:
            found[name] = _value(spec[name], value, f"{where}{option}")
    missing = [name for name, about in spec.items() if about.get("required") and name not in found]
    if missing:
        raise _refused(f"{where}{missing[0]} is missing", "", f"Give {missing[0]}")
    return {**{name: about["default"] for name, about in spec.items() if "default" in about}, **found}


def _value(about: t.Mapping[str, t.Any], value: object, where: str) -> object:
    kind = about["type"]
    if kind == "list":
        entry = {"type": about["elements"], **({"options": about["options"]} if "options" in about else {})}
        entries = value if isinstance(value, list) else [value]
        return [_value(entry, one, f"{where}[{index}]") for index, one in enumerate(entries)]
    if kind == "dict":
        return checked(about["options"], value, f"{where}: ")
    simple = not isinstance(value, (list, dict))
    if kind in ("str", "path") and simple:
        text = str(value)
        if "choices" in about and text not in about["choices"]:
            raise _refused(f"{where}: {text!r} is refused", "", f"Give one of {', '.join(about['choices'])}")
        return text
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and simple and not isinstance(value, (bool, float)):
        try:
            return int(str(value))
        except ValueError:
            pass
    forms = {"int": "a whole number", "bool": "true or false"}
    raise _refused(f"{where}: {_shown(value)} is refused", f"it is not {forms.get(kind, 'a single value')}", "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refused(what: str, why: str, remedy: str) -> LimiterError:
    return LimiterError("bad_options", what, why, remedy)
