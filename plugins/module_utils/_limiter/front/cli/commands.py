# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each command does: the work of a module of Ansible, with the options that the arguments stand for."""

from __future__ import annotations

import argparse
import os
import typing as t

from ...core import layout
from ...core.errors import LimiterError
from ...generated.version import VERSION
from ..argspec import rule_spec
from ..call import Result

# Modules are imported where they are used: what a command does not need would cost it time.


class Command(t.NamedTuple):
    """A `Call`."""

    params: dict[str, t.Any]
    check_mode: bool

    @staticmethod
    def run_command(arguments: t.Sequence[str], check_rc: bool = False) -> tuple[int, str, str]:
        """As AnsibleModule's: in the C locale."""
        import subprocess

        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=check_rc,
            env={**os.environ, "LC_ALL": "C"},
        )
        return done.returncode, done.stdout, done.stderr


def run(arguments: argparse.Namespace) -> Result:
    """The result of the module that does what was asked for. Raises LimiterError."""
    return _COMMANDS[arguments.command](arguments)


def version() -> list[str]:
    """This version, and what differs on this host."""
    said = [f"limiter {VERSION} (speed_limiter.ebpf), schema {layout.SCHEMA}"]
    found = _schema_of_host() if os.geteuid() == 0 else None
    if found not in (None, layout.SCHEMA):
        other = "a newer" if found > layout.SCHEMA else "an earlier"
        said.append(f"what limits on this host is of {other} version, schema {found}")
    return said


def _schema_of_host() -> t.Any:
    """The schema of the maps, or None."""
    from ...work.host import Host

    try:
        host = Host.open(Command.run_command, any_version=True)
    except LimiterError:
        return None
    maps = host.maps or host.other_maps
    return maps.schema if maps else None


def rule_names() -> list[str]:
    """For the completion in a shell."""
    from ...host.groups.cgroups import Cgroups

    return Cgroups.find().rule_names()


def _rule(arguments: argparse.Namespace, state: str) -> Result:
    from ..modules.rule import work

    given = {name: getattr(arguments, name, None) for name in rule_spec()}
    options = {name: value for name, value in given.items() if value is not None}
    return work(Command({**options, "state": state}, arguments.check))


def _set(arguments: argparse.Namespace) -> Result:
    return _rule(arguments, "present")


def _move(arguments: argparse.Namespace) -> Result:
    """Into a rule that is there: where it is not, no option of `move` would make it."""
    try:
        return _set(arguments)
    except LimiterError as error:
        if error.kind not in ("no_rule", "rate_needed"):
            raise
        path = (arguments.cgroup_paths or [""])[-1]
        name = arguments.name or path.rpartition("/")[2]
        what, why = (error.what, error.why) if error.kind == "no_rule" else (f"there is no rule {name!r}", "")
        raise LimiterError("no_rule", what, why, "limiter list shows the rules; limiter set makes one") from None


def _unset(arguments: argparse.Namespace) -> Result:
    return _rule(arguments, "absent")


def _apply(arguments: argparse.Namespace) -> Result:
    from ..modules.rules import follow
    from .files import requests_of

    return follow(Command({}, arguments.check), requests_of(arguments.files), arguments.purge)


def _restore(arguments: argparse.Namespace) -> Result:
    from ..restore import restored

    return restored(Command({}, arguments.check), arguments.cgroup_path, arguments.pacing, arguments.departure)


def _list(arguments: argparse.Namespace) -> Result:
    from ..modules.info import work

    gather = ["rules"]
    if arguments.pid is not None:
        gather = ["rules", "processes"] if arguments.pid else ["processes"]
    elif arguments.bpf:
        gather = ["program", "hook"]
    asked_for = {"name": arguments.name, "pid": arguments.pid or None, "cgroup_path": arguments.cgroup_path}
    return work(Command({"gather": gather, **asked_for}, True), files=arguments.json)


def _top(arguments: argparse.Namespace) -> Result:
    if arguments.json:
        return _gathered(None)
    from ...work.watch import Watch
    from .top import screen

    watch = Watch(Command.run_command)
    why = None if arguments.once else screen.cannot_live()
    if why is None and not arguments.once:
        screen.live(watch, arguments.interval)
        return {"lines": []}
    warnings = [] if why in (None, screen.NO_TERMINAL) else [f"{why}: this is shown once"]
    return {"lines": screen.once(watch, arguments.interval), "warnings": warnings}


def _why(arguments: argparse.Namespace) -> Result:
    return _gathered(arguments.pid)


def _gathered(pid: int | None) -> Result:
    from ..modules.info import work

    asked_for = {"name": None, "pid": pid, "cgroup_path": None}
    return work(Command({"gather": ["use"], "connections": 10, **asked_for}, True))


def _trace(arguments: argparse.Namespace) -> Result:
    """Sessions are shown as they come, unless all are to be JSON."""
    from ...core import tracing
    from ..modules.trace import spec, work

    def show(session: tracing.Session) -> None:
        if not arguments.json:
            arguments.tell(tracing.lines(session))

    options = {name: getattr(arguments, name, None) for name in spec()}
    return work(Command({**options, "rule": arguments.name}, False), show)


def _metrics(arguments: argparse.Namespace) -> Result:
    from ...core import metrics
    from ..modules.info import work

    nothing = dict.fromkeys(("name", "pid", "cgroup_path"))
    seen = work(Command({"gather": ["program", "rules"], **nothing}, True), files=False)
    text = metrics.render(seen)
    warnings = seen["warnings"]
    if arguments.write is None:
        return {"lines": text.splitlines(), "warnings": warnings}
    from ...host.publish import publish

    publish(arguments.write, text.encode("utf-8", "replace"))
    return {"lines": [], "warnings": warnings}


def _program(arguments: argparse.Namespace, state: str, **options: t.Any) -> Result:
    from ..modules.program import work

    return work(Command({"state": state, **options}, arguments.check))


def _reload(arguments: argparse.Namespace) -> Result:
    place = {"cgroup_path": arguments.cgroup_path, "pacing": arguments.pacing, "departure": arguments.departure}
    return _program(arguments, "reloaded", object=arguments.bpf_obj, **place)


def _unload(arguments: argparse.Namespace) -> Result:
    return _program(arguments, "absent")


def _purge(arguments: argparse.Namespace) -> Result:
    from ..modules.purge import work

    return work(Command({"scope": arguments.scope}, arguments.check))


_COMMANDS: dict[str, t.Callable[[argparse.Namespace], Result]] = {
    "set": _set,
    "move": _move,
    "unset": _unset,
    "apply": _apply,
    "restore": _restore,
    "list": _list,
    "top": _top,
    "why": _why,
    "trace": _trace,
    "metrics": _metrics,
    "reload": _reload,
    "unload": _unload,
    "purge": _purge,
}
