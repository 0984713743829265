# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that are hard to find: each is limited once its process comes under a rule, or the result tells of it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import kernel
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.sockets import borrow, syscalls
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import Child, child

lends_of_threads = pytest.mark.skipif(kernel.version() < (6, 9), reason="pidfds of threads came with Linux 6.9")
lends_no_threads = pytest.mark.skipif(kernel.version() >= (6, 9), reason="pidfds of threads came with Linux 6.9")

# Sends what it is told to through the socket that it was told of, TCP or UDP.
BEGIN = """
import array, ctypes, mmap, os, socket, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
kind, port = sys.argv[1], int(sys.argv[2])

def opened():
    it = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    it.connect(("127.0.0.1", port))
    return it

def serve(it):
    print("ready", flush=True)
    for _line in sys.stdin:
        it.send(b"x" * 100)
        print("sent", flush=True)
    os._exit(0)
"""
# Nothing but a thread is left of the process.
HEADLESS = """
it = opened()
threading.Thread(target=serve, args=(it,)).start()
libc.pthread_exit(None)
"""
# Only a thread has it, in a table of its own.
ALONE = """
def alone():
    assert libc.unshare(0x400) == 0
    serve(opened())

thread = threading.Thread(target=alone)
thread.start()
thread.join()
"""
# On its way to the process itself.
IN_FLIGHT = """
here, there = socket.socketpair()
it = opened()
here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [it.fileno()]))])
it.close()

def receive():
    _data, ancillary, _flags, _address = there.recvmsg(1, socket.CMSG_SPACE(4))
    return socket.socket(fileno=array.array("i", ancillary[0][2])[0])

class Late:
    it = None
    def send(self, data):
        self.it = self.it or receive()
        self.it.send(data)

serve(Late())
"""
# Among the registered files of an io_uring, which sends through it (IORING_OP_SEND, IOSQE_FIXED_FILE).
IN_RING = """
parameters = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, parameters)
assert ring >= 0
it = opened()
files = (ctypes.c_int * 1)(it.fileno())
assert libc.syscall(427, ring, 2, files, 1) == 0
it.close()
mask_at, array_at = struct.unpack_from("=I", parameters, 48)[0], struct.unpack_from("=I", parameters, 64)[0]
rings = mmap.mmap(ring, 4096, offset=0)
entries = mmap.mmap(ring, 4096, offset=0x10000000)
tail_at = struct.unpack_from("=I", parameters, 44)[0]

class Ring:
    def send(self, data):
        self.data = ctypes.create_string_buffer(data, len(data))
        entry = struct.pack("=BBHiQQII", 26, 1, 0, 0, 0, ctypes.addressof(self.data), len(data), 0)
        entries[0:64] = entry.ljust(64, bytes(1))
        tail = struct.unpack_from("=I", rings, tail_at)[0]
        mask = struct.unpack_from("=I", rings, mask_at)[0]
        rings[array_at + 4 * (tail & mask):array_at + 4 * (tail & mask) + 4] = bytes(4)
        rings[tail_at:tail_at + 4] = struct.pack("=I", tail + 1)
        assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1

serve(Ring())
"""
FOUND = {"the first thread has ended": HEADLESS, "a thread with a table of its own": ALONE}
NAMED = {
    "on its way in a UNIX socket": (IN_FLIGHT, "1 descriptor that process"),
    "a registered file of an io_uring": (IN_RING, "1 socket that process"),
}


@pytest.fixture
def port() -> Iterator[int]:
    """Takes datagrams and connections; what connections send is never read."""
    with limiter.clean_host(), socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("127.0.0.1", number))
            yield number


def send(process: Child) -> None:
    process.process.stdin.write("\n")
    process.process.stdin.flush()
    assert process.process.stdout.readline() == "sent\n"


def charged(process: Child) -> bool:
    """Whether what it sends now is charged to the rule `it`."""
    before = limiter.packets()["it"]
    send(process)
    return limiter.packets()["it"] > before


@lends_of_threads
@pytest.mark.parametrize("kind", ["udp", pytest.param("tcp", marks=pytest.mark.every_kernel)])
@pytest.mark.parametrize("where", FOUND)
def test_the_sockets_of_each_thread_are_found(port: int, where: str, kind: str) -> None:
    with child(BEGIN + FOUND[where], kind, str(port)) as process:
        send(process)
        made = limiter.rule(name="it", pid=process.pid, rate="1m")
        assert made["unenforced"] == []
        assert charged(process)
        assert limiter.info(gather=["rules"])["rules"][0]["unlimited"] == []


@lends_no_threads
@pytest.mark.parametrize("kind", ["udp", pytest.param("tcp", marks=pytest.mark.every_kernel)])
@pytest.mark.parametrize("where", FOUND)
def test_the_sockets_that_the_kernel_does_not_lend_are_named(port: int, where: str, kind: str) -> None:
    with child(BEGIN + FOUND[where], kind, str(port)) as process:
        made = limiter.rule(name="it", pid=process.pid, rate="1m")
        assert [text for text in made["unenforced"] if f"1 open socket of process {process.pid}" in text]
        assert set(made["unenforced"]) <= set(made["warnings"])


@pytest.mark.parametrize("kind", ["udp", "tcp"])
@pytest.mark.parametrize("where", NAMED)
def test_what_no_descriptor_leads_to_is_named(port: int, where: str, kind: str) -> None:
    code, words = NAMED[where]
    with child(BEGIN + code, kind, str(port)) as process:
        made = limiter.rule(name="it", pid=process.pid, rate="1m")
        (told,) = made["unenforced"]
        assert words in told
        assert str(process.pid) in told
        assert told in made["warnings"]
        assert limiter.info(gather=["rules"])["rules"][0]["unlimited"] == [told.partition(": ")[2]]
        again = limiter.rule(name="it", pid=process.pid, rate="1m")
        assert again["unenforced"] == [told]
        assert not again["changed"]
        if where.startswith("on its way"):
            send(process)
            then = limiter.rule(name="it", pid=process.pid, rate="1m")
            assert then["unenforced"] == []
            assert charged(process)


@pytest.mark.parametrize("accepts", [True, False], ids=["and is accepted in time", "and is not"])
def test_a_connection_that_waits_to_be_accepted_is_found_or_named(port: int, accepts: bool) -> None:
    code = (
        "import socket, sys, threading\n"
        "server = socket.create_server(('127.0.0.1', 0), backlog=8)\n"
        "made = [socket.create_connection(server.getsockname()) for _number in range(3)]\n"
        "print('ready', server.getsockname()[1], flush=True)\n"
        "sys.stdin.readline()\n"
        "taken = [server.accept()[0] for _number in range(3)]\n"
        "print('sent', flush=True)\n"
        "for line in sys.stdin:\n"
        "    taken[0].send(b'x'); print('sent', flush=True)\n"
    )
    with child(code) as process:
        if accepts:
            send(process)
        made = limiter.rule(name="it", pid=process.pid, rate="1m")
        if accepts:
            assert made["unenforced"] == []
        else:
            assert [text for text in made["unenforced"] if "3 connections that process" in text and "accepted" in text]
            send(process)
            assert limiter.rule(name="it", pid=process.pid, rate="1m")["unenforced"] == []
        assert charged(process)


def test_a_connection_that_comes_after_its_listener_was_tagged_is_not_named(port: int) -> None:
    code = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0), backlog=8)\n"
        "print('ready', server.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with child(code) as process:
        limiter.rule(name="it", pid=process.pid, rate="1m")
        with socket.create_connection(("127.0.0.1", int(process.words[0]))):
            assert limiter.rule(name="it", pid=process.pid, rate="1m")["unenforced"] == []


def test_a_socket_that_lost_its_tag_is_told(port: int) -> None:
    """As one that was received from another process after the rule was made."""
    with child(BEGIN + "serve(opened())", "udp", str(port)) as process:
        limiter.rule(name="it", rate="1m")
        Path(Cgroups.find().absolute("/speed_limiter/it/cgroup.procs")).write_text(str(process.pid))
        (told,) = limiter.info(gather=["rules"])["rules"][0]["unlimited"]
        assert f"1 open socket of process {process.pid}" in told
        assert limiter.rule(name="it", pid=process.pid, rate="1m")["unenforced"] == []
        assert limiter.info(gather=["rules"])["rules"][0]["unlimited"] == []
        assert charged(process)


def test_where_the_kernel_forbids_tracing_the_result_says_so(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with kernel.yama.ptrace_scope=3, which allows a look at descriptors, and lends none."""
    real = syscalls.syscall()

    def forbidding(number: int, *arguments: int) -> int:
        if number == 438:  # pidfd_getfd
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(number, *arguments)

    monkeypatch.setattr(borrow, "syscall", lambda: forbidding)
    with child(BEGIN + "serve(opened())", "udp", str(port)) as process:
        made = limiter.rule(name="it", pid=process.pid, rate="1m")
        (told,) = made["unenforced"]
        assert f"1 open socket of process {process.pid}" in told
        assert "EPERM (Operation not permitted)" in told
        assert limiter.info(gather=["rules"])["rules"][0]["unlimited"] == [told.partition(": ")[2]]
        assert not charged(process)
