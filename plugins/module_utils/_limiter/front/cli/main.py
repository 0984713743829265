# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`limiter` from its arguments to its exit status. No traceback reaches a user."""

from __future__ import annotations

import errno
import os
import signal
import sys
import typing as t

from ...core.errors import LimiterError
from ...generated.version import VERSION
from ..call import Result
from . import commands, parser
from .tables import is_unicode, printable

DONE, REFUSED, PARTLY = 0, 1, 3
READER_GONE = 128 + signal.SIGPIPE
DEFAULT_WIDTH = 80
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptedBySignal(KeyboardInterrupt):
    """A signal to end. Only the first one counts: while what was begun is undone, others are not heard."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__()


def main(words: t.Sequence[str] | None = None) -> int:
    """The exit status."""
    _listen()
    try:
        return _guarded(sys.argv[1:] if words is None else words)
    except KeyboardInterrupt as interrupt:
        _say("interrupted: what was begun is undone (interrupted)")
        return 128 + getattr(interrupt, "number", signal.SIGINT)
    except BrokenPipeError:
        _close_output()
        return READER_GONE
    finally:
        _close_output()


def _listen() -> None:
    def end(number: int, _frame: object) -> None:
        for other in _ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise InterruptedBySignal(number)

    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell that runs this in the background
            signal.signal(number, end)


def _guarded(words: t.Sequence[str]) -> int:
    arguments = None
    try:
        built = parser.build()
        if list(words) == ["_names"]:  # the completion in a shell asks
            _print(commands.rule_names())
            return DONE
        arguments = parser.parse(built, words)
        if arguments.version:
            _print(commands.version())
            return DONE
        if arguments.command is None:
            parser.usage(built)
        arguments.tell = _print
        result = commands.run(arguments)
        for warning in _warnings(arguments, result):
            _say(f"warning: {warning}")
        for problem in result.get("problems", ()):
            _say(problem)
        _print(_lines(arguments, result))
        return PARTLY if result.get("problems") else DONE
    except LimiterError as error:
        hint = ""
        if error.kind == "other_schema":
            hint = f" This command is of version {VERSION}; the role setup installs the collection's own."
        return _refused(arguments, f"{error}{hint}", error.kind)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = error.filename or "a file of the host"
        why = f"{errno.errorcode.get(error.errno or 0, 'OSError')} ({error.strerror})"
        return _refused(arguments, f"{what} could not be used: {why}. What was done is undone.", "os_error")
    except Exception as error:  # a defect: told in one line, with its place
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}, line {place.lineno}"
        text = f"this is a defect of limiter: {type(error).__name__}: {error} ({where}). What was done is undone."
        return _refused(arguments, text, "defect")


def _refused(arguments: t.Any, text: str, kind: str) -> int:
    if getattr(arguments, "json", False):
        _print(_json({"failed": True, "kind": kind, "msg": text}))
    _say(f"{text} ({kind})")
    return REFUSED


def _warnings(arguments: t.Any, result: Result) -> list[str]:
    found = list(result.get("warnings", ()))
    if arguments.command != "list":
        return found
    from . import shown

    return [*found, *shown.idle(result)]


def _lines(arguments: t.Any, result: Result) -> list[str]:
    if arguments.json:
        return _json(result)
    if "lines" in result:
        return t.cast("list[str]", result["lines"])
    from . import shown

    if arguments.command == "trace":
        return [shown.traced(result)]
    if arguments.command == "list":
        return shown.listing(result, _width(), _more())
    if arguments.command == "why":
        return shown.why(result, _width())
    if arguments.command == "restore":
        return shown.restored(result, arguments.check, arguments.diff)
    if arguments.command == "unset" and not result["changed"]:
        return [f"unchanged: {shown.nothing_to_unset(result, arguments)}"]
    return shown.change(result, arguments.check, arguments.diff)


def _json(result: Result) -> list[str]:
    import json

    return [json.dumps(result, indent=2)]


def _width() -> int | None:
    """Of the terminal; None where the output goes elsewhere."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def _more() -> str:
    """What ends a text that was cut, as the terminal can show it."""
    return "\u2026" if is_unicode() else "..."


def _print(lines: t.Iterable[str]) -> None:
    if sys.stdout is None:
        return
    _escaping(sys.stdout)
    for line in lines:
        sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    try:
        if sys.stderr is not None:
            _escaping(sys.stderr)
            sys.stderr.write(f"limiter: {printable(text)}\n")
    except OSError:
        pass  # nobody reads it


def _escaping(stream: t.Any) -> None:
    """What the terminal's encoding lacks is shown by its number."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """What could not be written is not tried again when Python ends, which would complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
