# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual page limiter(8), made of what --help says."""

from __future__ import annotations

import argparse
import typing as t

from ...generated.version import VERSION
from .parser import DESCRIPTION, EXAMPLES, EXIT_STATUS, build

SUMMARY = "limit the network bandwidth of groups of processes"
FILES = (
    ("/usr/lib/speed_limiter/limiter.bpf.o", "The program, as it was built for this host or copied to it."),
    ("/sys/fs/bpf/speed_limiter/", "Its maps and links."),
    ("/sys/fs/cgroup/speed_limiter/", "The rules, a cgroup each (below the mount point of cgroup2, wherever that is)."),
    ("/run/speed_limiter/", "The lock, and where processes came from."),
)


def manual(mark: str) -> str:
    """The page in man(7). ``mark`` is a comment in it."""
    parser = build()
    lines = [f'.\\" {mark}.', f'.TH LIMITER 8 "" "speed_limiter.ebpf {VERSION}" "System Administration"']
    lines += [".SH NAME", f"limiter \\- {_text(SUMMARY)}", ".SH SYNOPSIS"]
    for name, command in commands(parser):
        lines += [".SY limiter", f"\\fB{name}\\fR {_usage(command)}", ".YS"]
    lines += [".SY limiter", "\\fB\\-\\-version\\fR", ".YS", ".SH DESCRIPTION", _text(DESCRIPTION), ".SH COMMANDS"]
    for name, command in commands(parser):
        lines += [f".SS limiter {name}", _text(command.description or ""), *_options(_own(command))]
    shared = dict(commands(parser))["set"]
    lines += [".SH OPTIONS OF ALL COMMANDS THAT CHANGE SOMETHING", *_options(_shared(shared))]
    lines += [".SH EXIT STATUS", *_terms(EXIT_STATUS), ".SH FILES", *_terms(FILES), ".SH EXAMPLES", *_terms(EXAMPLES)]
    lines += [".SH SEE ALSO", ".BR tc (8),", ".BR bpftool (8),", ".BR cgroups (7)"]
    return "\n".join(lines) + "\n"


def commands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """The commands by their names."""
    action = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return list(action.choices.items())


def _usage(command: argparse.ArgumentParser) -> str:
    """The options, without those that all commands have."""
    exclusive = [group._group_actions for group in command._mutually_exclusive_groups]
    together = {id(action): group for group in exclusive for action in group}
    parts: list[str] = []
    done: set[int] = set()
    for action in [*(one for one in _own(command) if one.option_strings), *_own(command)]:
        if id(action) in done:
            continue
        group = together.get(id(action), [action])
        done.update(id(one) for one in group)
        text = " | ".join(_form(one) for one in group)
        required = group[0].required or any(
            each.required for each in command._mutually_exclusive_groups if each._group_actions == group
        )
        if required and len(group) > 1:
            text = f"({text})"
        parts.append(text if required else f"[{text}]")
    return " ".join(parts)


def _form(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"\\fI{_value(action)}\\fR{'...' if action.nargs == '+' else ''}"
    option = f"\\fB{_text(action.option_strings[0])}\\fR"
    return option if action.nargs == 0 else f"{option} {_argument(action)}"


def _options(actions: t.Iterable[argparse.Action]) -> list[str]:
    lines = []
    for action in actions:
        forms = ", ".join(f"\\fB{_text(option)}\\fR" for option in action.option_strings) or f"\\fI{_value(action)}\\fR"
        if action.option_strings and action.nargs != 0:
            forms += f" {_argument(action)}"
        text = action.help or ""
        lines += [".TP", forms, _text(f"{text[0].upper()}{text[1:]}.")]
    return lines


def _argument(action: argparse.Action) -> str:
    value = f"\\fI{_value(action)}\\fR"
    return f"[{value}]" if action.nargs == "?" else value


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(action.choices)
    return str(action.metavar)


def _own(command: argparse.ArgumentParser) -> list[argparse.Action]:
    shared = {id(action) for action in _shared(command)}
    return [action for action in command._actions if id(action) not in shared and action.dest != "help"]


def _shared(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        action for group in command._action_groups if group.title == "what is shown" for action in group._group_actions
    ]


def _terms(terms: t.Iterable[tuple[str, str]]) -> list[str]:
    return [line for term, text in terms for line in (".TP", f"\\fB{_text(term)}\\fR", _text(text))]


def _text(text: str) -> str:
    """As man(7) has it: a hyphen that can be copied, and no line that begins with a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
