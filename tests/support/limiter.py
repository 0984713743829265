# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's modules, run in this process on the sandbox's kernel; what they leave; who is charged to what.

`task` calls the very function that a module calls, with options that went through the module's own argument
specification; only Ansible's transport is missing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.leaves import own_rule
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Memory
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front import task as ansible_task
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory, store
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import budgets, build, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import places as kernel_places
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf, load
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import leaves, processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.root import check_root

from .children import DEADLINE, refused, until
from .running_kernel import OBJECT

_NO_TYPES = "preserve_access_index\n#endif /* __VMLINUX_H__ */"  # nothing is compiled with them
_MODULES = "ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front.modules"

# ---- the modules


def run_command(arguments: Sequence[str], check_rc: bool = False) -> tuple[int, str, str]:
    """AnsibleModule.run_command; what was compiled once is copied the next time, by any process of the sandbox."""
    if "-o" in arguments:
        place = arguments.index("-o") + 1
        command = (arguments[0], *_stand_in, *arguments[1:place])
        shutil.copyfile(OBJECT or _compiled(command), arguments[place])
        return 0, "", ""
    if OBJECT and "btf" in arguments:
        return 0, _NO_TYPES, ""
    return _run(tuple(arguments))


_stand_in: tuple[str, ...] = ()


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Meanwhile what is built is a program that a kernel verifies in a fifth of the time (passes_all.h), or the object
    that was given for all tests. Nothing that was built stays.
    """
    global _stand_in
    _stand_in = ("-include", str(Path(__file__).with_name("passes_all.h")))
    _forget_built()
    try:
        yield
    finally:
        _stand_in = ()
        _forget_built()


def _forget_built() -> None:
    for path in (build.STAMP, build.OBJECT):
        Path(path).unlink(missing_ok=True)


def run_uncached(arguments: Sequence[str], check_rc: bool = False) -> tuple[int, str, str]:
    """AnsibleModule.run_command, as far as the ports use it."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=check_rc)
    return done.returncode, done.stdout, done.stderr


_run = functools.cache(run_uncached)


@functools.cache
def _compiled(arguments: tuple[str, ...]) -> str:
    output = f"/run/sandbox/{hashlib.sha256(repr(arguments).encode()).hexdigest()}.o"
    if not os.path.exists(output):
        subprocess.run([*arguments, f"{output}.{os.getpid()}"], check=True)
        os.rename(f"{output}.{os.getpid()}", output)
    return output


@functools.cache
def _module(name: str) -> tuple[Any, ArgumentSpecValidator, dict[str, Any]]:
    module = importlib.import_module(f"{_MODULES}.{name.removeprefix('speed_limit_')}")
    with mock.patch.object(ansible_task, "run") as run:
        module.main()
    work, spec = run.call_args.args
    return work, ArgumentSpecValidator(spec), dict(run.call_args.kwargs)


def task(module_name: str, /, check: bool = False, **options: Any) -> dict[str, Any]:
    """The result of a module. LimiterError as in the module; what its argument specification refuses has the kind
    ``options``.
    """
    work, validator, more = _module(module_name)
    if more.get("root", True):
        check_root()
    validated = validator.validate(options)
    if validated.error_messages:
        if all(isinstance(error, ansible_task.DECLARED) for error in validated.errors.errors):
            more["parse"](validated.validated_parameters)
        raise LimiterError("options", "; ".join(validated.error_messages))
    module = SimpleNamespace(params=validated.validated_parameters, check_mode=check, run_command=run_command)
    with closing_maps():
        result: dict[str, Any] = work(module)
    return result


@contextlib.contextmanager
def closing_maps() -> Iterator[None]:
    """A module leaves that to the end of its process."""
    opened: list[Maps] = []

    def keep(libbpf: Libbpf, any_version: bool = False) -> Maps | None:
        maps = real(libbpf, any_version)
        opened.extend([maps] if maps else [])
        return maps

    real = Maps.open
    with mock.patch.object(Maps, "open", keep):
        try:
            yield
        finally:
            for maps in opened:
                maps.close()


def rule(**options: Any) -> dict[str, Any]:
    return task("speed_limit_rule", **options)


def rules(*listed: dict[str, Any], **options: Any) -> dict[str, Any]:
    return task("speed_limit_rules", rules=list(listed), **options)


def program(**options: Any) -> dict[str, Any]:
    return task("speed_limit_program", **options)


def purge(scope: str = "rules", **options: Any) -> dict[str, Any]:
    return task("speed_limit_purge", scope=scope, **options)


def info(**options: Any) -> dict[str, Any]:
    return task("speed_limit_info", **options)


# ---- what is on the host


def opened_maps() -> Maps:
    """Those of the program, to be closed."""
    maps = Maps.open(load())
    assert maps is not None
    return maps


class Snapshot(NamedTuple):
    """All that the limiter has made; cgroups by their paths, so that a rule made again is the same. No counters."""

    cgroups: tuple[str, ...]
    limits: dict[str, Limit]
    states: tuple[str, ...]
    members: dict[str, str]
    pins: tuple[str, ...]
    program: tuple[str, str] | None
    remembered: Memory
    files: tuple[str, ...]
    stored: dict[str, str]  # for the next boot
    places: dict[int, str | None]


def snapshot(*pids: int) -> Snapshot:
    """What is there now, and where these processes are."""
    remembered, warnings = memory.read()
    assert not warnings
    cgroups, libbpf = Cgroups.find(), load()
    current = Attachments(libbpf, cgroups.mount).current()

    def name(cgroup_id: int) -> str:
        return libbpf.cgroup_path_of(cgroups.mount, cgroup_id) or f"gone: {cgroup_id}"

    in_place: dict[str, str] = {}
    limits: dict[int, Limit] = {}
    states: set[int] = set()
    members: dict[int, int] = {}
    if (maps := Maps.open(libbpf)) is not None:
        with maps:
            limits, states, members = maps.limits(), maps.state_rules(), {**maps.members(), **maps.leaves()}
            in_place = {place.pattern: name(place.rule) for place in kernel_places.read(maps).values()}
    found = {pid: processes.read(pid) for pid in pids}
    managed = cgroups.absolute(cgroups.managed)
    made = sorted(directory[len(cgroups.mount) :] for directory, _below, _files in os.walk(managed))
    made += sorted(leaves.named(cgroups))
    return Snapshot(
        cgroups=tuple(made),
        limits={name(key): limit for key, limit in limits.items()},
        states=tuple(sorted(name(key) for key in states)),
        members={name(member): name(owner) for member, owner in members.items()} | in_place,
        pins=tuple(sorted(_listed(pins.PIN_DIR))),
        program=(current.identity, current.cgroup) if current else None,
        remembered=remembered,
        files=tuple(sorted(set(_listed(memory.DIRECTORY)) - {"lock", *memory.CLAIMS})),
        stored=_stored(),
        places={pid: process.cgroup if process else None for pid, process in found.items()},
    )


def nothing(*pids: int) -> Snapshot:
    """A host that the limiter was never on: what a purge of everything leaves, with these processes at home."""
    places = {pid: process.cgroup if (process := processes.read(pid)) else None for pid in pids}
    return Snapshot((), {}, (), {}, (), None, memory.EMPTY, (), {}, places)


def _stored() -> dict[str, str]:
    """All that is in /etc/speed_limiter, with what a killed task left there."""
    top = Path(store.DIRECTORY).parent
    found = sorted(path for path in top.rglob("*") if path.is_file())
    return {str(path.relative_to(top)): path.read_text() for path in found}


def _listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def counters() -> dict[str, Counters]:
    """Of each rule, with its budgets."""
    cgroups, libbpf = Cgroups.find(), load()
    maps = Maps.open(libbpf)
    if maps is None:
        return {}
    with maps:
        found = {key: seen for key in maps.state_rules() if (seen := maps.counters(key))}
        found.update({key: seen.counters for key, seen in budgets.counted(maps).items()})
    paths = {key: libbpf.cgroup_path_of(cgroups.mount, key) or "" for key in found}
    return {own_rule(paths[key]) or f"gone: {key}": seen for key, seen in found.items()}


def packets() -> dict[str, int]:
    """How many packets each rule has seen."""
    return {name: seen.packets + seen.dropped_packets for name, seen in counters().items()}


@contextlib.contextmanager
def clean_host() -> Iterator[Cgroups]:
    """Nothing of ours before, and nothing after, whatever the test did."""
    try:
        yield Cgroups.find()
    finally:
        purge("all")
        assert snapshot() == nothing()


@contextlib.contextmanager
def refused_unchanged(kind: str, *words: str, pids: tuple[int, ...] = ()) -> Iterator[None]:
    """What is inside must be refused with that kind of error, which says these words, and change nothing."""
    before = snapshot(*pids)
    with refused(kind, *words):
        yield
    assert snapshot(*pids) == before


def refuse_leaves(cgroup: str) -> None:
    """From now on the processes of a cgroup can only be kept in the own cgroup of a rule."""
    Path(Cgroups.find().absolute(cgroup), "cgroup.max.descendants").write_text("0")


# ---- processes that send

# The first process of a chain waits to be told to begin, so that it can be moved home before it opens its sockets; each
# forks the next one. Then each sends one packet through the socket that it is told, which is opened if it is a new one.
_SENDERS = """
import os, socket, struct, sys
channels = [socket.socket(fileno=int(number)) for number in sys.argv[2:]]
channels[0].recv(100)
channel = channels[0]
for following in channels[1:]:
    if os.fork():
        break
    channel = following
sockets = {
    "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "tcp": socket.create_connection(("127.0.0.1", int(sys.argv[1]))),
}
sockets["tcp"].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each packet waits for the last one's ACK
channel.send(b"%d %d" % (os.getpid(), sockets["tcp"].getsockname()[1]))
while name := channel.recv(100).decode():
    if name == "rate":
        channel.send(sockets["tcp"].getsockopt(socket.SOL_SOCKET, 47, 8))  # SO_MAX_PACING_RATE
        continue
    if name not in sockets:
        sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if name == "tcp":
        sockets[name].send(b"x")
    else:
        sockets[name].sendto(b"x", ("127.0.0.1", 9))
    channel.send(b"sent")
os._exit(0)
"""


class Sender:
    """One process with a UDP and a TCP socket that it opened at home."""

    def __init__(self, pid: int, channel: socket.socket, connection: socket.socket) -> None:
        self.pid, self._channel, self._connection = pid, channel, connection

    def is_paced(self) -> bool:
        """Whether its TCP connection is told how fast to send."""
        self._channel.send(b"rate")
        return _answer(self._channel) != b"\xff" * 8

    def charged(self, through: str = "udp") -> set[str]:
        """The rules that a packet which it sends now is charged to."""
        before = packets()
        self._channel.send(through.encode())
        assert _answer(self._channel) == b"sent"
        if through == "tcp":
            # Acknowledged at once, or it may be sent again while someone else is being looked at.
            self._connection.recv(1)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return {name for name, seen in packets().items() if seen > before.get(name, 0)}


@contextlib.contextmanager
def senders(home: str, count: int = 1) -> Iterator[list[Sender]]:
    """A process, its child, its grandchild ... in the cgroup ``home``, which is made and removed."""
    cgroups = Cgroups.find()
    directory = Path(cgroups.absolute(home))
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: until(lambda: _removed(directory)))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pairs = [socket.socketpair() for _process in range(count)]
        theirs = [str(their.fileno()) for _our, their in pairs]
        process = subprocess.Popen(
            [sys.executable, "-c", _SENDERS, str(listener.getsockname()[1]), *theirs],
            pass_fds=[int(fd) for fd in theirs],
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        for our, their in pairs:
            their.close()
            stack.enter_context(our)
        cgroups.move(process.pid, home)
        pairs[0][0].send(b"go")
        answers = [[int(word) for word in _answer(our).split()] for our, _their in pairs]
        accepted = {peer[1]: stack.enter_context(connection) for connection, peer in _accept(listener, count)}
        yield [Sender(pid, our, accepted[port]) for (pid, port), (our, _their) in zip(answers, pairs)]


def _accept(listener: socket.socket, count: int) -> list[tuple[socket.socket, tuple[str, int]]]:
    return [listener.accept() for _connection in range(count)]


def _answer(channel: socket.socket) -> bytes:
    if not select.select([channel], [], [], DEADLINE)[0]:
        raise TimeoutError("a sender does not answer")
    return channel.recv(100)


def _removed(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()
