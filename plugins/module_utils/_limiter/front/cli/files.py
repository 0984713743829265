# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of rules, for `limiter apply`."""

from __future__ import annotations

import json
import sys
import typing as t

from ...core.errors import LimiterError
from ...core.model import Request
from ...core.request import parse_requests, where_of
from ...host.errnos import errno_text
from ..argspec import rule_spec
from ..options import checked

FORMS = "a list of rules, or a mapping with the list as its key rules, each with the options of speed_limit_rules"


def requests_of(paths: t.Sequence[str]) -> tuple[Request, ...]:
    """What the files ask for, together; ``-`` is the standard input.

    Raises LimiterError: ``unreadable_file``, ``bad_file``, ``no_yaml``, and what `parse_requests` raises.
    """
    spec, rules, wheres = rule_spec(), [], []
    for path in paths:
        for index, rule in enumerate(_rules(path)):
            where = f"{path}: {where_of(index, rule)}"
            rules.append(checked(spec, rule, where))
            wheres.append(where)
    return parse_requests(rules, wheres)


def _rules(path: str) -> list[t.Any]:
    content = _parsed(path, _read(path))
    if isinstance(content, dict) and list(content) == ["rules"]:
        content = content["rules"]
        if isinstance(content, dict):
            remedy = 'Give a list, in which each rule has its name: [{"name": "a", ...}]'
            raise LimiterError("bad_file", f"{path}: rules is a mapping", "", remedy)
    if not isinstance(content, list):
        raise LimiterError("bad_file", f"{path} has no rules", "", f"Give {FORMS}")
    return content


def _read(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise LimiterError("unreadable_file", f"{path} cannot be read", errno_text(error)) from None


def _parsed(path: str, data: bytes) -> t.Any:
    """JSON; or YAML where the file's name says so, which needs a package that few hosts have."""
    try:
        if not path.endswith((".yml", ".yaml")):
            return json.loads(data)
        return _yaml(path, data)
    except (ValueError, RecursionError) as error:
        remedy = "" if path.endswith((".yml", ".yaml")) else "The name of a file in YAML ends with .yml or .yaml"
        raise LimiterError("bad_file", f"{path} is no JSON", str(error), remedy) from None


def _yaml(path: str, data: bytes) -> t.Any:
    try:
        import yaml
    except ImportError as error:
        raise LimiterError(
            "no_yaml",
            f"{path} cannot be read",
            f"{sys.executable} cannot read YAML: {error}",
            "Install python3-yaml (Debian, Ubuntu) or python3-pyyaml (Fedora, RHEL, SUSE), or give JSON",
        ) from None
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise LimiterError("bad_file", f"{path} is no YAML", str(error)) from None
