# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `limiter`, their options, and all that help and manual say of them."""

from __future__ import annotations

import argparse
import sys
import typing as t

from ...core.rates import BUCKET_FORMS, RATE_FORMS
from ...core.tracing import DIRECTIONS, OUTCOMES

DESCRIPTION = "Limits how much network bandwidth groups of processes use. Ansible's modules see the same rules."

EXIT_STATUS = (
    ("0", "Done, or nothing was to be done; with --check: it could be done."),
    ("1", "Refused: nothing was changed. The reason is on the standard error, with its kind in parentheses."),
    ("2", "The command line is wrong."),
    ("3", "From restore: a stored rule is not applied, for the reason on the standard error; all others are."),
    ("130", "Interrupted: what was begun is undone. (129 and 143: the same, by SIGHUP and SIGTERM.)"),
)

EXAMPLES = (
    ("limiter set -p 1234 -r 5m", "Process 1234 and its children send at most 5 MiB/s together."),
    ("limiter set --name web -r 160mbit --unit nginx", "A service is limited where it is, over its restarts."),
    ("limiter move -p 9999 --last", "Another process joins the rule that was set last."),
    ("limiter top", "Watch all rules; Enter shows the connections of one."),
    ("limiter why 812", "Is it the limiter that makes process 812 slow?"),
    ("limiter unset -p 1234", "The process goes back to the cgroup that it came from."),
    (
        "limiter trace --unit nginx --reason empty",
        "Show packets of a service that found no tokens, and who else saw them.",
    ),
    ("limiter apply --purge --check --diff rules.json", "Show what would change if these were the only rules."),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> t.NoReturn:
        self.exit(2, f"limiter: {message}\nTry '{self.prog} --help'.\n")


def build() -> argparse.ArgumentParser:
    """The parser; what it returns has the command's name as ``command``."""
    parser = _Parser(
        prog="limiter",
        description=DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version of the collection, and end")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", prog="limiter")
    common = _common()
    for add in (_set, _move, _unset, _apply, _restore, _list, _top, _why, _trace, _metrics, _reload, _unload, _purge):
        add(_Adding(commands, common))
    return parser


def parse(parser: argparse.ArgumentParser, words: t.Sequence[str]) -> argparse.Namespace:
    """The arguments. What a command does not know is told by that command: only the whole parser sees it."""
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        if arguments.command is not None:
            parser.prog = f"limiter {arguments.command}"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _epilog() -> str:
    status = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_STATUS)
    examples = "\n".join(f"  {line}\n      {meaning}" for line, meaning in EXAMPLES)
    return (
        f"exit status:\n{status}\n\nexamples:\n{examples}\n\n`limiter COMMAND --help` tells the options of a command."
    )


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("what is shown")
    group.add_argument("--check", action="store_true", help="change nothing; show what would be changed")
    group.add_argument("--diff", action="store_true", help="show what is changed as it was and as it is")
    group.add_argument("--json", action="store_true", help="print the result of the Ansible module, as JSON")
    return common


class _Adding(t.NamedTuple):
    commands: t.Any
    common: argparse.ArgumentParser

    def __call__(self, name: str, text: str, more: str = "", changes: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = self.commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
            parents=[self.common] if changes else [],
            allow_abbrev=False,
        )
        return parser


def _set(add: _Adding) -> None:
    parser = add(
        "set",
        "make a rule, or change one",
        "Without a name, the rule belongs to one process and is called pid-PID. Nothing is taken out of a rule.",
    )
    _name(parser, "name of the rule")
    _pids(parser, "a process that the rule takes, with its children; can be given several times")
    _limits(parser)
    _no_children(parser)
    _cgroup_paths(
        parser,
        "a cgroup that is limited in place, with all below it, and again whenever it is made anew; a star stands for a "
        "part of a name. Can be given several times",
    )
    _named(
        parser,
        "a unit of systemd, running or not, with its sockets; a@ stands for all instances of a template",
        "a user, by name or number, at each login",
        "a container that runs, by name or id",
    )
    parser.add_argument(
        "--each", action="store_true", default=None, help="every cgroup that matches gets a limit of its own"
    )
    parser.add_argument(
        "--everything", action="store_true", help="also where the limit would hold for your own connection to this host"
    )
    _persistent(parser)


def _persistent(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--persistent",
        action="store_true",
        default=None,
        help="store the rule, without processes, for the next boot; what is stored follows every later change",
    )
    chosen.add_argument(
        "--no-persistent", action="store_false", dest="persistent", help="remove what is stored of the rule"
    )


def _move(add: _Adding) -> None:
    parser = add("move", "move processes into a rule that is there")
    _pids(parser, "a process, which is moved with its children; can be given several times", required=True)
    _no_children(parser)
    chosen = parser.add_mutually_exclusive_group(required=True)
    _name(chosen, "the rule of this name")
    _cgroup_paths(chosen, "the rule of this cgroup, /speed_limiter/NAME")
    chosen.add_argument("--cgid", type=int, metavar="ID", dest="cgroup_id", help="the rule whose cgroup has this id")
    chosen.add_argument("--last", action="store_true", help="the rule that was last changed")


def _unset(add: _Adding) -> None:
    parser = add(
        "unset",
        "let processes or a cgroup go, or remove a rule",
        "Processes go back to the cgroups that they came from. A rule whose name alone is given is removed.",
    )
    _name(parser, "name of the rule")
    _pids(parser, "a process that goes back, with its children; can be given several times")
    _no_children(parser)
    _cgroup_paths(parser, "a cgroup that is limited in place and shall not be; can be given several times")
    _named(parser, "the same for a unit of systemd", "the same for a user", "the same for a container")


def _apply(add: _Adding) -> None:
    parser = add(
        "apply",
        "make the rules of files, all or none",
        "A file has a list of rules, or a mapping whose key rules has one; each rule has the options of the Ansible "
        "module speed_limit_rules. Files are JSON, or YAML if their names end with .yml or .yaml and Python's yaml is "
        "installed.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file of rules; - is the standard input")
    parser.add_argument(
        "--purge", action="store_true", help="remove all other rules, but for those that belong to one process"
    )


def _restore(add: _Adding) -> None:
    parser = add(
        "restore",
        "make the stored rules, as at boot",
        "Rules that were made with --persistent are stored in /etc/speed_limiter/rules.d. What is wrong with one of "
        "them keeps no other from being made. Where no program is loaded, the object that lies there is loaded, and "
        "built only where it cannot be. The unit speed_limiter.service runs this before the network is up.",
    )
    parser.add_argument("--cgroup-path", metavar="PATH", default="/", help="where a program that is loaded is attached")
    parser.add_argument(
        "--no-pacing", action="store_false", dest="pacing", help="a program that is loaded leaves TCP to the bucket"
    )
    _departure(parser, "auto")


def _list(add: _Adding) -> None:
    parser = add(
        "list",
        "show the rules, processes or programs",
        "NOW is what a rule let pass in the last second, BINDS whether it holds its senders back. A pipe gets the "
        "whole width, a terminal what fits it.",
        changes=False,
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "-p",
        "--pid",
        type=int,
        nargs="?",
        const=0,
        metavar="PID",
        help="the processes in rules; or this one, and the rules that limit it",
    )
    shown.add_argument("--bpf", action="store_true", help="the BPF programs that see what is sent, ours or not")
    _name(parser, "only this rule")
    parser.add_argument("--cgroup-path", metavar="PATH", help="only what limits this cgroup, or a process in it")
    parser.add_argument("--json", action="store_true", help="print the result of speed_limit_info, as JSON")


def _top(add: _Adding) -> None:
    parser = add(
        "top",
        "watch the rules",
        "A line for each: limit, rate, use, the last minute, drops, connections that wait, processes. Enter shows the "
        "connections of a rule, ? the other keys. Where the output is no terminal, it is printed once.",
        changes=False,
    )
    parser.add_argument("--once", action="store_true", help="print the table once, after the interval")
    parser.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="look this often, from 0.1 to 3600; less often where that would take more than a twentieth of a core",
    )
    parser.add_argument("--json", action="store_true", help="print what speed_limit_info gathers as use, once, as JSON")


def seconds(text: str) -> float:
    found = float(text)
    if not 0.1 <= found <= 3600:
        raise ValueError
    return found


def _why(add: _Adding) -> None:
    parser = add(
        "why",
        "say what the limiter does to a process",
        "Which rules hold for it, which one holds it back now, for how long that was seen, and what it would get "
        "without. It looks for a second.",
        changes=False,
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process")
    parser.add_argument("--json", action="store_true", help="print the result of speed_limit_info, as JSON")


def _trace(add: _Adding) -> None:
    parser = add(
        "trace",
        "show what becomes of packets, and why",
        "A session is a packet: the BPF programs that saw it, in order, and what the rules decided. All options that "
        "choose packets must fit. Rules limit meanwhile as always; a task that loads or unloads the program ends it.",
        changes=False,
    )
    parser.add_argument(
        "--duration", type=float, metavar="SECONDS", help="end after so many seconds; by default 5, at most 3600"
    )
    parser.add_argument(
        "--max-events", type=int, metavar="NUMBER", help="end after so many packets; by default 100, at most 10000"
    )
    _name(parser, "only packets that this rule holds for")
    _cgroup_paths(parser, "only packets of this cgroup and those below it; stars and several are allowed")
    _named(parser, "the same for a unit of systemd", "the same for a user", "the same for a container")
    parser.add_argument(
        "-p", "--pid", type=int, metavar="PID", help="only packets of the sockets of this process, without its children"
    )
    parser.add_argument("--direction", choices=DIRECTIONS, help="packets that leave, by default; that arrive; or both")
    parser.add_argument(
        "--reason",
        action="append",
        choices=OUTCOMES,
        dest="reasons",
        help="only packets of which this was decided; can be given several times",
    )
    parser.add_argument("--address", metavar="ADDRESS", help="only packets from or to this address or network")
    parser.add_argument("--port", type=int, metavar="PORT", help="only packets from or to this port of TCP or UDP")
    parser.add_argument(
        "-o",
        "--bpf-obj",
        metavar="OBJECT",
        dest="object",
        help="the object that was loaded, where it is an unusual one",
    )
    parser.add_argument("--json", action="store_true", help="print the result of speed_limit_trace at the end, as JSON")


def _metrics(add: _Adding) -> None:
    parser = add(
        "metrics",
        "show figures of all rules for Prometheus",
        "In its text format, as the textfile collector of node_exporter reads it from a file.",
        changes=False,
    )
    parser.add_argument("--write", metavar="FILE", help="replace this file in one step instead of printing")
    parser.set_defaults(json=False)


def _reload(add: _Adding) -> None:
    parser = add(
        "reload",
        "load the program again, or for the first time",
        "It is replaced without a gap; rules and counters stay. Where it is attached, and whether it paces, stay too "
        "unless they are given.",
    )
    parser.add_argument(
        "-o",
        "--bpf-obj",
        metavar="OBJECT",
        help="an object file that was built elsewhere; by default /usr/lib/speed_limiter/limiter.bpf.o, built anew "
        "where it is out of date",
    )
    parser.add_argument("--cgroup-path", metavar="PATH", help="attach it to this cgroup; rules limit what is below it")
    pacing = parser.add_mutually_exclusive_group()
    pacing.add_argument("--pacing", action="store_true", default=None, help="pace TCP at its fair share of a rule")
    pacing.add_argument(
        "--no-pacing", action="store_false", dest="pacing", help="leave TCP to the token bucket alone, too"
    )
    _departure(parser, None)


def _departure(parser: argparse.ArgumentParser, default: str | None) -> None:
    text = "whether packets wait where their device has the queueing discipline fq"
    parser.add_argument("--departure", choices=("auto", "off"), default=default, help=text)


def _unload(add: _Adding) -> None:
    add("unload", "unload the program", "Rules stay and limit nothing until it is loaded again.")


def _purge(add: _Adding) -> None:
    parser = add("purge", "remove all rules", "Processes go back to the cgroups that they came from.")
    parser.add_argument(
        "--scope",
        choices=["stale", "rules", "all"],
        default="rules",
        help="stale: only what was left behind; rules: all rules, the default; all: the program, too",
    )


def _name(parser: t.Any, text: str) -> None:
    parser.add_argument("--name", metavar="NAME", help=text)


def _pids(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    parser.add_argument(
        "-p", "--pid", type=int, action="append", metavar="PID", dest="pids", required=required, help=text
    )


def _cgroup_paths(parser: t.Any, text: str) -> None:
    parser.add_argument("--cgroup-path", action="append", metavar="PATH", dest="cgroup_paths", help=text)


def _named(parser: argparse.ArgumentParser, unit: str, user: str, container: str) -> None:
    parser.add_argument("--unit", action="append", metavar="UNIT", dest="units", help=unit)
    parser.add_argument("--user", action="append", metavar="USER", dest="users", help=user)
    parser.add_argument("--container", action="append", metavar="NAME", dest="containers", help=container)


def _no_children(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-children",
        action="store_false",
        dest="children",
        help="leave children that run already; what a process starts later is limited with it in any case",
    )


def _limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-r", "--rate", metavar="RATE", help=f"what it may send: {RATE_FORMS}")
    parser.add_argument(
        "-b",
        "--bucket",
        metavar="BYTES",
        help=f"how much may be sent at once after a pause: {BUCKET_FORMS}; by default what the rate sends in a second",
    )


def usage(parser: argparse.ArgumentParser) -> t.NoReturn:
    """What is said where no command is given."""
    parser.print_usage(sys.stderr)
    parser.error("no command is given")
