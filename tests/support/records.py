# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures in JSON that a diff can be read of: each record, an element of a list, has a line of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable


def dumps(value: object, margin: str = "") -> str:
    """As `json.dumps` with sorted keys."""
    inner = margin + " "
    if isinstance(value, dict) and value:
        parts = (f"{json.dumps(key)}: {dumps(part, inner)}" for key, part in sorted(value.items()))
        return _joined("{", parts, "}", margin, inner)
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return _joined("[", (json.dumps(part, sort_keys=True) for part in value), "]", margin, inner)
    return json.dumps(value)


def _joined(begin: str, parts: Iterable[str], end: str, margin: str, inner: str) -> str:
    body = ",\n".join(f"{inner}{part}" for part in parts)
    return f"{begin}\n{body}\n{margin}{end}"
