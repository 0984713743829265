# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that keep whoever deals with them waiting, by a page that never comes (FUSE,
userfaultfd)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from .children import Child, child

_BEGIN = """
import ctypes, fcntl, mmap, os, socket, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
"""
_PAGE = {
    "userfaultfd": """
faults = libc.syscall(int(sys.argv[1]), 0o2000000)
assert faults >= 0, os.strerror(ctypes.get_errno())
fcntl.ioctl(faults, 0xc018aa3f, struct.pack("QQQ", 0xaa, 0, 0))  # UFFDIO_API
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(faults, 0xc020aa00, struct.pack("QQQQ", address, 4096, 1, 0))  # UFFDIO_REGISTER
""",
    "fuse": """
page = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 4096, flags=mmap.MAP_PRIVATE)
page.madvise(mmap.MADV_RANDOM)  # no reading ahead: who needs the page asks for it, and waits for the answer
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
""",
}
# A file system with one file, of which nothing can be read: it never answers. Nor does it say whether it has "silent".
_FUSE = """
import ctypes, os, struct, sys
device, directory = os.open("/dev/fuse", os.O_RDWR), sys.argv[1]
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
assert ctypes.CDLL(None).mount(b"held_up", directory.encode(), b"fuse", 0, options.encode()) == 0
print("ready", flush=True)

def attributes(node):
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("=6Q10I", node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

while True:
    request = os.read(device, 1 << 20)
    _length, code, unique, node = struct.unpack_from("=IIQQ", request)
    if code == 15 or code in (2, 42):  # READ; FORGET, BATCH_FORGET have no answer
        continue
    if code == 1 and request[40:].startswith(b"silent"):  # LOOKUP
        continue
    answer = {
        26: struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 4096, 1, 1, 0, *[0] * 8),  # INIT
        1: struct.pack("=4Q2I", 2, 0, 60, 60, 0, 0) + attributes(2),  # LOOKUP
        3: struct.pack("=Q2I", 60, 0, 0) + attributes(node),  # GETATTR
        14: struct.pack("=Q2I", 0, 2, 0),  # OPEN; FOPEN_KEEP_CACHE, or it waits for the page, too
        25: b"",  # FLUSH
        18: b"",  # RELEASE
    }.get(code)
    error = -38 if answer is None else 0
    os.write(device, struct.pack("=IiQ", 16 + len(answer or b""), error, unique) + (answer or b""))
"""
# A call to send that never ends keeps the socket locked. It is in a network namespace that no process is in and only
# this sandbox has a name for: others' tasks, which look at all namespaces that they find, must not wait for it.
SOCKET = """
home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open("/run/netns/held_up", os.O_RDONLY)
assert libc.setns(there, 0x40000000) == 0
listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname())
peer, _address = listener.accept()
assert libc.setns(home, 0x40000000) == 0
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


PAGES = [
    "userfaultfd",
    pytest.param("fuse", marks=pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this kernel has no FUSE")),
]


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """That of SOCKET."""
    subprocess.run(["ip", "netns", "add", "held_up"], check=True)
    try:
        subprocess.run(["nsenter", "--net=/run/netns/held_up", "ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", "held_up"], check=True)


def _served(stack: contextlib.ExitStack, serving: contextlib.ExitStack) -> str:
    """The directory of a file system that does not answer. Who waits for it ends when ``serving`` is closed."""
    directory = tempfile.mkdtemp(dir="/run")
    stack.callback(os.rmdir, directory)
    serving.callback(Child(_FUSE, directory).end)
    stack.callback(subprocess.run, ["umount", "-l", directory], check=True)
    return directory


@contextlib.contextmanager
def silent_path() -> Iterator[str]:
    """Whoever asks whether there is such a file is kept waiting."""
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as serving:
        yield f"{_served(stack, serving)}/silent"


@contextlib.contextmanager
def attackers(code: str, count: int = 1, page: str = "userfaultfd") -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        argument = str(_USERFAULTFD)
        serving = contextlib.ExitStack()
        if page == "fuse":
            argument = f"{_served(stack, serving)}/file"
        them: list[Child] = []
        try:
            for _number in range(count):
                them.append(stack.enter_context(child(_BEGIN + _PAGE[page] + code, argument)))
            yield them
        finally:
            serving.close()  # first, since nobody who waits for it can end
