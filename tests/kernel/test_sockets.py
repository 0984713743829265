# SPDX-License-Identifier: GPL-3.0-or-later
"""Borrowing the open sockets of other processes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import borrow, tables, tagging
from ansible_collections.speed_limiter.ebpf.tests.support.children import WAIT, child, zombie

# Opened in another order than they are to be bound in: UDP over IPv6, one listener, one connection from itself to
# itself (two ends), one UNIX pair, one netlink, one pipe.
SOCKETS = """
import os, socket, sys
datagram = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
pair = socket.socketpair()
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
pipe = os.pipe()
twice = os.dup(client.fileno())
kept = [listener, client, server, datagram]
if len(sys.argv) > 1:
    os.fork()
print("ready", *(os.fstat(it.fileno()).st_ino for it in kept), flush=True)
sys.stdin.read()
"""


class Bound:
    """Stands for the map that the real ``bind`` writes to."""

    def __init__(self) -> None:
        self.inodes: list[int] = []
        self.listening: list[bool] = []

    def __call__(self, fd: int) -> None:
        borrowed = socket.socket(fileno=fd)
        self.inodes.append(os.fstat(fd).st_ino)
        listens = borrowed.type == socket.SOCK_STREAM and borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        self.listening.append(bool(listens))
        borrowed.detach()


def tag(pids: list[int], tag_one: Callable[[int], None]) -> int:
    """How many sockets were tagged; nothing may have been missed."""
    count, missed = tagging.tag(pids, tagging.Tags(tag_one))
    assert not missed
    return count


def missed(pids: list[int], tag_one: Callable[[int], None]) -> list[str]:
    """What could not be tagged."""
    return tagging.tag(pids, tagging.Tags(tag_one)).missed


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_internet_socket_is_bound_once_and_listeners_first() -> None:
    bound = Bound()
    with child(SOCKETS) as process:
        inodes = [int(word) for word in process.words]
        during = open_files()
        assert tag([process.pid], bound) == 4
        assert open_files() == during
    assert sorted(bound.inodes) == sorted(inodes)
    assert bound.listening == [True, False, False, False]
    assert bound.inodes[0] == inodes[0]


def test_what_two_processes_share_is_bound_once() -> None:
    bound = Bound()
    with child(SOCKETS, "fork") as process:
        family = [process.pid, *children_of(process.pid)]
        assert len(family) == 2
        assert tag(family, bound) == 4
        assert len(set(bound.inodes)) == len(bound.inodes) == 4


def children_of(pid: int) -> list[int]:
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes

    return processes.descendants([pid])


def test_a_socket_option_set_through_the_copy_holds_for_the_process() -> None:
    code = (
        "import socket, sys\n"
        "it = socket.socket(socket.AF_INET, socket.SOCK_STREAM)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print('ready', it.getsockopt(socket.SOL_SOCKET, socket.SO_MARK), flush=True)\n"
    )

    def mark(fd: int) -> None:
        borrowed = socket.socket(fileno=fd)
        borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 77)
        borrowed.detach()

    with child(code) as process:
        assert tag([process.pid], mark) == 1
        answer, _errors = process.process.communicate("\n", timeout=20)
    assert answer == "ready 77\n"


def test_a_connection_that_comes_while_we_look_is_found() -> None:
    """The process opens one more socket each time that one of its sockets is bound, three times."""
    code = (
        "import os, socket, sys\n"
        "kept = [socket.create_server(('127.0.0.1', 0))]\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); print('more', flush=True)\n"
    )
    bound = Bound()
    with child(code) as process:

        def bind(fd: int) -> None:
            bound(fd)
            if len(bound.inodes) <= 3:
                process.process.stdin.write("\n")
                process.process.stdin.flush()
                assert process.process.stdout.readline() == "more\n"

        assert tag([process.pid], bind) == 4


def test_a_process_that_never_stops_opening_does_not_hold_us() -> None:
    code = (
        "import os, socket, sys\n"
        "kept = [socket.create_server(('127.0.0.1', 0))]\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); print('more', flush=True)\n"
    )
    bound = Bound()
    with child(code) as process:

        def bind(fd: int) -> None:
            bound(fd)
            process.process.stdin.write("\n")
            process.process.stdin.flush()
            assert process.process.stdout.readline() == "more\n"

        assert 2 < tag([process.pid], bind) < 100


def test_the_dead_and_those_without_sockets_are_left_out() -> None:
    with child() as gone:
        gone.end()
    with zombie() as dead, child(WAIT) as plain, child(SOCKETS) as process:
        assert tag([gone.pid, dead, plain.pid, 2, process.pid], Bound()) == 4
        assert tag([gone.pid, dead, plain.pid, 2], Bound()) == 0


def test_a_descriptor_that_became_a_file_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list and the loan the process closed a socket and opened something else, or nothing."""
    entries = [tables.Entry(number, 1) for number in (0, 1, 2, 99)]
    monkeypatch.setattr(borrow.Borrower, "entries", lambda self, table: iter(entries))
    with child("import sys, os; os.close(2); print('ready', flush=True); sys.stdin.read()") as process:
        assert tag([process.pid], Bound()) == 0


def test_an_error_of_the_caller_passes_through_and_nothing_stays_open() -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOMEM, "full")

    with child(SOCKETS) as process:
        before = open_files()
        with pytest.raises(OSError, match="full"):
            tag([process.pid], fail)
        assert open_files() == before


def test_where_the_kernel_lends_nothing_the_cause_is_told() -> None:
    """Without CAP_SYS_PTRACE a process of another user is out of reach, as under seccomp or Yama."""
    code = (
        "import sys\n"
        "from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import tagging\n"
        "print(*tagging.tag([int(sys.argv[1])], tagging.Tags(lambda fd: None)).missed)\n"
    )
    with child(SOCKETS) as process:
        answer = subprocess.run(
            [
                "setpriv",
                "--bounding-set=-sys_ptrace",
                "--inh-caps=-sys_ptrace",
                sys.executable,
                "-c",
                code,
                str(process.pid),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "EACCES (Permission denied)" in answer.stdout
    assert f"open sockets of process {process.pid}" in answer.stdout


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_old_kernels_are_told(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def syscall(*arguments: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(borrow, "syscall", lambda: syscall)
    with child(SOCKETS) as process:
        told = missed([process.pid], Bound())
    assert len(told) == 1
    for words in (f"4 open sockets of process {process.pid}", errno.errorcode[number]):
        assert words in told[0]
