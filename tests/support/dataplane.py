# SPDX-License-Identifier: GPL-3.0-or-later
"""The program by the simplest means: compiled from bpf/, loaded by libbpf, rules written straight into its maps.

So a test of the program does not depend on the loader that the collection ships; benchmarks measure the program alone.
"""

from __future__ import annotations

import functools
import os
import platform
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout

from . import bpf

SOURCE = Path(__file__).resolve().parents[2] / "bpf"
FLAGS = ["-target", "bpf", "-O2", "-g", "-Wall", "-Werror", "-mcpu=v3"]
# Where Debian has asm/types.h, which the kernel's headers include.
FLAGS += ["-idirafter", f"/usr/include/{platform.machine()}-linux-gnu"]


def cgroup2() -> Path:
    """Where cgroup2 is mounted; on a hybrid host that is not /sys/fs/cgroup."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="ascii").splitlines():
        fields, _separator, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise RuntimeError("no cgroup2 is mounted here")


@functools.cache
def _types() -> Path:
    """A directory with the running kernel's types as C, which take seconds to write on a slow machine."""
    directory = Path(tempfile.mkdtemp(prefix="types-", dir="/run/sandbox"))
    with open(directory / "vmlinux.h", "wb") as header:
        subprocess.run(
            ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c"], stdout=header, check=True
        )
    return directory


def compile_object(source: Path, target: Path) -> Path:
    """Compiles one program, against the running kernel's types where it includes them."""
    types: list[str | Path] = ["-I", _types()] if '"vmlinux.h"' in source.read_text(encoding="utf-8") else []
    subprocess.run(["clang", *FLAGS, *types, "-I", SOURCE, "-c", source, "-o", target], check=True)
    return target


def load_program(program: Path, name: str) -> int:
    """Loads an object's program, and gives its descriptor; nothing of it is pinned."""
    with bpf.Object(program) as opened:
        opened.load(name)
        return opened.program(name)


class State(NamedTuple):
    """bpf/layout.h: struct rate_limit_state."""

    tokens: int
    last_update_ns: int
    lock: int
    fraction: int
    packets: int
    bytes: int
    dropped_bytes: int
    rate: int
    bucket: int
    generation: int
    swept: int
    limit: int
    cgroup: int
    shared_packets: int
    use_start_ns: int
    use_bytes: int
    use_rate: int
    use_withheld_ns: int
    use_delayed_ns: int
    use_bound_ns: int
    use_since_ns: int
    once_bytes: int
    fair: layout.FairShare
    drops: tuple[int, ...]
    notices: tuple[int, ...]
    delayed_packets: int = 0
    delay_ns: int = 0

    @property
    def dropped_packets(self) -> int:
        return sum(self.drops)


class Dataplane:
    """A loaded and attached program. Rules are named by the cgroups whose ids are their keys. ``paced``: TCP is."""

    def __init__(self, program: Path, cgroup: Path | None = None, paced: bool = False) -> None:
        self.cgroup = cgroup or cgroup2()
        # Not settle_sockets: only the collection reads it, and Linux 5.10 refuses it.
        programs = ["limit_egress", "pace_sockets"] if paced else ["limit_egress"]
        with bpf.Object(program) as opened:
            opened.load(*programs)
            self.program = opened.program("limit_egress")
            self.pacer = opened.program("pace_sockets") if paced else None
            self.config = opened.map("rate_limit_config_map", 16)
            self.state = opened.map("rate_limit_state_map", layout.STATE.size)
            self.member = opened.map("rate_limit_member_map", 8)
            self.socket = opened.map("rate_limit_socket_map", 8)
            self.pacing = opened.map("rate_limit_pacing_map", layout.PACING.size)
            self.control = opened.map("rate_limit_control_map", layout.CONTROL.size)
        self.generation = 0
        self.tagged_sockets = 0
        self.departure = layout.DEPARTURE_AUTO
        bpf.attach(str(self.cgroup), self.program)
        if self.pacer is not None:
            bpf.attach(str(self.cgroup), self.pacer, bpf.SOCK_OPS)

    def close(self) -> None:
        if self.pacer is not None:
            bpf.detach(str(self.cgroup), self.pacer, bpf.SOCK_OPS)
            os.close(self.pacer)
        bpf.detach(str(self.cgroup), self.program)
        os.close(self.program)
        for opened in (self.config, self.state, self.member, self.socket, self.pacing, self.control):
            opened.close()

    def set_rule(self, cgroup: Path, rate: int, bucket: int) -> None:
        """Makes a rule, with a full bucket and its own cgroup as its member; bytes and bytes per second."""
        self.state[key_of(cgroup)] = bytes(layout.STATE.size)
        self.set_config(cgroup, rate, bucket)
        self.add_member(cgroup, cgroup)

    def spend(self, rule: Path) -> float:
        """Empties a rule's bucket, and returns since when it fills again, in seconds of the monotonic clock."""
        now = time.monotonic_ns()
        fields = dict(zip(layout.STATE_FIELDS, layout.STATE.unpack(self.state[key_of(rule)])))
        fields.update(tokens=0, last_update_ns=now)
        self.state[key_of(rule)] = layout.STATE.pack(*fields.values())
        return now / 1e9

    def set_config(self, rule: Path, rate: int, bucket: int) -> None:
        self.config[key_of(rule)] = struct.pack("=QQ", rate, bucket)
        self.changed_members()

    def add_member(self, cgroup: Path, rule: Path) -> None:
        self.member[key_of(cgroup)] = key_of(rule)
        self.changed_members()

    def remove_member(self, cgroup: Path) -> None:
        del self.member[key_of(cgroup)]
        self.changed_members()

    def tag_socket(self, descriptor: int, rule: Path) -> None:
        """Charges an open socket to a rule, whatever cgroup it was made in."""
        self.socket[struct.pack("=i", descriptor)] = key_of(rule)
        self.tagged_sockets = 1
        self._write_control()

    def changed_members(self) -> None:
        self.generation += 1
        self._write_control()

    def _write_control(self) -> None:
        self.control[bytes(4)] = layout.pack_control(
            layout.Control(
                generation=self.generation,
                tagged_sockets=self.tagged_sockets,
                pacing=layout.PACING_OFF if self.pacer is None else layout.PACING_ON,
                departure=self.departure,
            )
        )

    def state_of(self, rule: Path) -> State:
        fields = layout.STATE.unpack(self.state[key_of(rule)])
        fair, drops, notices = (layout.STATE_FIELDS.index(name) for name in ("fair.share", "drops[0]", "notices[0]"))
        learned = layout.FairShare._make(fields[fair:drops])
        delayed = layout.STATE_FIELDS.index("delayed_packets")
        counted = (fields[drops:notices], fields[notices:delayed], *fields[delayed : delayed + 2])
        return State._make((*fields[:fair], learned, *counted))


def key_of(cgroup: Path) -> bytes:
    """A cgroup's id, which is the number of its directory."""
    return struct.pack("=Q", cgroup.stat().st_ino)
