# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of open descriptors: each is looked at once, and for a limited time.

LIMITER_TABLES=100x524288 makes so many processes with so many descriptors, and not 20x15000; how long tasks take beside
them is printed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import apart
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import tables, tagging
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets.syscalls import syscall
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.work import following
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import Child, child, until

# Processes that share one table (clone with CLONE_FILES); with `copies` each has one of its own.
SHARING = """
import ctypes, os, resource, signal, socket, sys
libc = ctypes.CDLL(None)
how, count, descriptors = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
most = max(descriptors + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
null = os.open(os.devnull, os.O_RDONLY)
for _number in range(descriptors):
    os.dup(null)
number = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine, 220)
pids = []
for _number in range(count - 1):
    pid = libc.syscall(number, (0x400 if how == "shared" else 0) | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        libc.prctl(1, signal.SIGKILL)
        while True:
            libc.pause()
    pids.append(pid)
print("ready", *pids, flush=True)
sys.stdin.read()
"""
THREADS = """
import ctypes, sys, threading
libc = ctypes.CDLL(None)
begun = threading.Barrier(5)

def run(own):
    if own:
        assert libc.unshare(0x400) == 0
    begun.wait()
    threading.Event().wait()

for number in range(4):
    threading.Thread(target=run, args=(number == 0,), daemon=True).start()
begun.wait()
print("ready", flush=True)
sys.stdin.read()
"""


def family(process: Child) -> list[int]:
    return [process.pid, *map(int, process.words)]


def found(*pids: int) -> list[tables.Table]:
    return list(tables.Finder(syscall()).tables(pids))


def test_a_table_that_processes_share_is_found_once() -> None:
    with child(SHARING, "shared", "20", "10") as process:
        assert [table.process for table in found(*family(process))] == [process.pid]


def test_tables_of_their_own_are_found_one_by_one() -> None:
    with child(SHARING, "copies", "20", "10") as process:
        assert len(found(*family(process))) == 20


@pytest.mark.every_kernel
def test_threads_share_a_table_but_for_those_that_do_not() -> None:
    with child(THREADS) as process:
        assert len(processes.threads(process.pid)) == 5
        assert len(found(process.pid)) == 2


def test_a_kernel_that_compares_no_tables_gives_one_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_KCMP", {})
    with child(SHARING, "shared", "3", "10") as process:
        assert len(found(*family(process))) == 3
        tagged: list[int] = []
        sockets, missed = tagging.tag(family(process), tagging.Tags(lambda fd: tagged.append(os.fstat(fd).st_ino)))
        assert (sockets, missed, len(tagged)) == (1, [], 1)


@pytest.fixture
def clean_host() -> Iterator[None]:
    with limiter.clean_host():
        limiter.program()
        yield


def test_a_look_that_takes_too_long_is_ended_and_that_is_told(
    clean_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "LOOKS", 0.0)
    with child(SHARING, "copies", "3", "1000") as process:
        made = limiter.rule(name="it", pids=family(process), rate="1m")
        (told,) = made["unenforced"]
        assert "descriptors was ended" in told
        purged = limiter.purge("all")
        assert any("descriptors was ended" in text for text in purged["warnings"])


def test_what_a_list_takes_is_looked_at_together(clean_host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one child, however many rules the list has; so a large table of one keeps no other from being seen."""
    looked: list[list[int]] = []
    real = tagging.tag_apart

    def tag_apart(pids: Iterable[int], *arguments: Any) -> tagging.Tagged:
        looked.append(sorted(pids))
        return real(looked[-1], *arguments)

    monkeypatch.setattr(following, "tag_apart", tag_apart)
    with child() as one, child() as other, child() as third:
        pids = sorted(process.pid for process in (one, other, third))
        listed = [{"name": f"r{pid}", "pids": [pid], "rate": "1m"} for pid in pids]
        for _again in range(2):
            limiter.rules(*listed)
            assert looked == [pids]
            looked.clear()


def test_a_look_that_comes_too_late_accuses_nobody(clean_host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter.rule(name="it", rate="1m")
    monkeypatch.setattr(apart, "IN_ALL", 0.0)
    purged = limiter.purge("all")
    assert any("was not done in time" in text for text in purged["warnings"])
    assert not any("locked" in text for text in purged["warnings"])


@pytest.mark.parametrize("how", ["shared", "copies"])
def test_large_tables_keep_no_task_waiting_without_a_word(clean_host: None, how: str) -> None:
    """Neither a purge, which looks at all processes, nor a rule for one of them."""
    count, descriptors = os.environ.get("LIMITER_TABLES", "20x15000").split("x")
    # What it says if it had no time for all: by the clock of the processor, and on a busy machine by that of the wall.
    told = ("was ended", "waiting", "in time")

    def measured(what: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        begin, used = time.monotonic(), sum(os.times()[:4])
        result = work()
        print(
            f"{what} took {time.monotonic() - begin:.2f} s, {sum(os.times()[:4]) - used:.2f} s of a processor, beside "
            f"{count} processes, {how}, with {descriptors} descriptors; warnings: {len(result['warnings'])}"
        )
        return result

    with child() as other, child(SHARING, how, count, descriptors) as process:
        for whose, pid in (("another's", other.pid), ("one of theirs", process.pid)):
            made = measured(f"a rule for {whose}", functools.partial(limiter.rule, name="it", pid=pid, rate="1m"))
            assert all(any(words in text for words in told) for text in made["unenforced"])
            purged = measured("a purge", lambda: limiter.purge("all"))
            assert all(any(words in text for words in told) for text in purged["warnings"])
            assert limiter.snapshot() == limiter.nothing()


def test_small_tables_are_looked_at_before_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = tables.Table.entries

    def entries(self: tables.Table, *arguments: object) -> Iterator[tables.Entry]:
        looked.append(self.process)
        return real(self)

    monkeypatch.setattr(tables.Table, "entries", entries)
    with child(SHARING, "copies", "1", "2000") as large, child(SHARING, "copies", "1", "5") as small:
        tagging.tag([large.pid, small.pid], tagging.Tags(lambda fd: None))
        assert looked[:2] == [small.pid, large.pid]


@pytest.mark.parametrize("processes_and_sockets", [(1, 200), (50, 20)])
def test_many_sockets_are_all_tagged(processes_and_sockets: tuple[int, int]) -> None:
    """200 connections of one process, and 1,000 sockets of 50 processes."""
    count, each = processes_and_sockets
    code = (
        "import os, socket, sys\n"
        "kept, pids = [], []\n"
        "for _process in range(int(sys.argv[1])):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        kept += [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _number in range(int(sys.argv[2]))]\n"
        "        break\n"
        "    pids.append(pid)\n"
        "else:\n"
        "    print('ready', *pids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with child(code, str(count), str(each)) as process:
        pids = [int(word) for word in process.words]

        def ready() -> bool:
            return all(sum(1 for _entry in table.entries()) >= each for table in found(*pids))

        until(ready)
        inodes: set[int] = set()
        tagged = tagging.tag(pids, tagging.Tags(lambda fd: inodes.add(os.fstat(fd).st_ino)))
        assert tagged == (count * each, [])
        assert len(inodes) == count * each


@pytest.mark.parametrize("processes_and_connections", [(1, 200), (50, 20)])
def test_many_connections_are_all_limited_by_a_task(
    clean_host: None, processes_and_connections: tuple[int, int]
) -> None:
    """200 connections of one process, and 1,000 of 50; how long the task takes is printed."""
    count, each = processes_and_connections
    code = (
        "import os, socket, sys\n"
        "count, each, port = map(int, sys.argv[1:])\n"
        "pids, done = [], os.pipe()\n"
        "for _process in range(count):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        kept = [socket.create_connection(('127.0.0.1', port)) for _number in range(each)]\n"
        "        os.write(done[1], b'.')\n"
        "        break\n"
        "    pids.append(pid)\n"
        "else:\n"
        "    for _process in pids:\n"
        "        os.read(done[0], 1)\n"
        "    print('ready', *pids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        process = stack.enter_context(child(code, str(count), str(each), str(server.getsockname()[1])))
        limiter.rule(name="other", rate="1m")
        begin, used = time.monotonic(), sum(os.times()[:4])
        made = limiter.rule(name="it", pids=[int(word) for word in process.words], rate="1m")
        print(
            f"a rule for {count} processes with {each} connections each took {time.monotonic() - begin:.2f} s, "
            f"{sum(os.times()[:4]) - used:.2f} s of a processor"
        )
        assert made["unenforced"] == []
        assert limiter.info(name="it", gather=["rules"])["rules"][0]["unlimited"] == []


def test_a_socket_of_a_process_that_is_gone_is_no_error() -> None:
    with socket.socket() as ours:
        assert list(tables.Table(2**22 + 1, 2**22 + 1).entries()) == []
        assert tables.Table(os.getpid(), os.getpid()).is_internet(ours.fileno())
        assert not tables.Table(os.getpid(), os.getpid()).is_internet(99999)


# What /proc/PID/fdinfo says of an io_uring: of 6.18, of 5.10, and of each while it is in use.
RINGS = {
    "numbers": (
        b"pos:\t0\nino:\t77\nSqThread:\t-1\nUserFiles:\t3\n    0: socket:[123]\n    1: /dev/null\n    2: <none>\n"
        b"UserBufs:\t1\n    0: 0x7f00/4096\n",
        {123},
    ),
    "names": (b"pos:\t0\nUserFiles:\t3\n    0: TCP\n    1: UNIX-STREAM\n    2: UDPv6\nUserBufs:\t0\n", {":0", ":2"}),
    "no files": (b"pos:\t0\nUserFiles:\t0\nUserBufs:\t0\n", set()),
    "in use": (b"pos:\t0\nSqThread:\t-1\n", {tables.BUSY}),
    "in use, 5.10": (b"pos:\t0\nUserFiles:\t3\nUserBufs:\t1\n    0: 0x7f00/4096\n", {tables.BUSY}),
}


@pytest.mark.parametrize("kind", RINGS)
def test_what_a_kernel_tells_of_the_files_of_an_io_uring_is_understood(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, wanted = RINGS[kind]
    monkeypatch.setattr(processes, "read_file", lambda path: text)
    assert tables.Table(1, 1).registered(5) == wanted


def test_a_ring_that_is_always_busy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.Table, "entries", lambda self, alive: iter([tables.Entry(5, None)]))
    monkeypatch.setattr(tables.Table, "registered", lambda self, ring: {tables.BUSY})
    (told,) = tagging.tag([os.getpid()], tagging.Tags(lambda fd: None)).missed
    assert "may have in an io_uring" in told
