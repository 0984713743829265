# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What bash completes after `limiter`, made of the commands and their options."""

from __future__ import annotations

import argparse

from .manual import commands
from .parser import build

# Others give names: a directory those of users, packages those of units. So they are not given to `compgen -W`, which
# expands its words as a shell does, commands in them included; and what is put into the command line is quoted.
_SCRIPT = """\
# {mark}.
_limiter() {{
\tlocal word=$2 before=$3 command=${{COMP_WORDS[1]}} words=() one quoted
\tif [[ $COMP_CWORD -eq 1 ]]; then
\t\twords=( {names} --help --version )
\telse
\t\tcase $before in
\t\t--name) mapfile -t words < <(limiter _names 2>/dev/null) ;;
\t\t--unit) mapfile -t words < <(systemctl list-unit-files --no-legend --no-pager 2>/dev/null | cut -d " " -f 1) ;;
\t\t--user) mapfile -t words < <(compgen -u) ;;
\t\t-p | --pid | why) mapfile -t words < <(cd /proc && printf "%s\\n" [0-9]*) ;;
{values}
\t\t--cgroup-path | --container | -o | --bpf-obj | -r | --rate | -b | --bucket | --cgid | --write) ;;
\t\t--duration | --max-events | --address | --port | --interval) ;;
\t\t*)
\t\t\tcase $command in
{options}
\t\t\tesac
\t\t\t;;
\t\tesac
\tfi
\tCOMPREPLY=()
\tfor one in "${{words[@]}}"; do
\t\tprintf -v quoted %q "$one"
\t\t[[ $one != "$word"* && $quoted != "$word"* ]] || COMPREPLY+=("$quoted")
\tdone
}}
complete -o default -F _limiter limiter
"""


def completion(mark: str) -> str:
    """The script. ``mark`` is a comment in it."""
    found = commands(build())
    values = {
        option: " ".join(action.choices)
        for _name, command in found
        for action in command._actions
        if action.choices
        for option in action.option_strings
    }
    return _SCRIPT.format(
        mark=mark,
        names=" ".join(name for name, _command in found),
        values="\n".join(f"\t\t{option}) words=( {words} ) ;;" for option, words in values.items()),
        options="\n".join(f"\t\t\t{name}) words=( {_options(command)} ) ;;" for name, command in found),
    )


def _options(command: argparse.ArgumentParser) -> str:
    return " ".join(option for action in command._actions for option in action.option_strings)
