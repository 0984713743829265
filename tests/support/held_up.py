# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that keep whoever deals with them waiting, by a page that never comes (userfaultfd)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .children import Child, child

_PAGE = """
import ctypes, fcntl, mmap, os, socket, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
faults = libc.syscall({userfaultfd}, 0o2000000)
assert faults >= 0, os.strerror(ctypes.get_errno())
fcntl.ioctl(faults, 0xc018aa3f, struct.pack("QQQ", 0xaa, 0, 0))  # UFFDIO_API
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(faults, 0xc020aa00, struct.pack("QQQQ", address, 4096, 1, 0))  # UFFDIO_REGISTER
"""
# A call to send that never ends keeps the socket locked. The connection is its own other end, so it is there twice.
SOCKET = """
listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname())
peer, _address = listener.accept()
threading.Thread(target=lambda: libc.send(connection.fileno(), ctypes.c_void_p(address), 4096, 0), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""
# Its command line lies there (PR_SET_MM_MAP, which needs no privilege).
COMMAND_LINE = """
def number(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1])
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
code, end_code, stack = (int(stat[place]) for place in (23, 24, 25))
data, end_data, brk = (int(stat[place]) for place in (42, 43, 44))
arguments, end_arguments, environment, end_environment = (int(stat[place]) for place in (45, 46, 47, 48))
now = libc.sbrk
now.restype = ctypes.c_void_p
fields = struct.pack("11QQII", code, end_code, data, end_data, brk, now(0), stack, address, address + 64, environment,
                     end_environment, 0, 0, 0xffffffff)
buffer = ctypes.create_string_buffer(fields, len(fields))
assert libc.prctl(35, 14, buffer, len(fields), 0) == 0, os.strerror(ctypes.get_errno())
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine, 282)


@contextlib.contextmanager
def attackers(code: str, count: int = 1) -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child(_PAGE.format(userfaultfd=_USERFAULTFD) + code)) for _number in range(count)]
