# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned maps. A rule is the id of its own cgroup; rates are bytes per second, buckets bytes.

Every method may raise KernelError. Writers hold the host's lock; the programs only read config, member and control.
After members or limits were changed comes one `Maps.bump_generation`: the programs keep copies.
"""

from __future__ import annotations

import errno
import os
import socket
import typing as t

from ...core import catalog, layout, schemas
from ...core.errors import LimiterError
from ...core.layout import Control
from ...core.policy import Limit
from ...core.reasons import Counters
from . import pins
from .libbpf import KernelError, Libbpf, reason

_ANY, _NOEXIST, _LOCK = 0, 1, 4  # BPF_ANY, BPF_NOEXIST, BPF_F_LOCK
_BATCH = 4096
MANY = 64  # rules: reading the entries of so many one by one takes longer than reading all there are
_IPPROTO_MPTCP = 262


class Map:
    """An open map. Keys and values are bytes of exactly its sizes."""

    def __init__(self, libbpf: Libbpf, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self._libbpf, self._ffi = libbpf, libbpf.ffi
        info = libbpf.info(fd, "bpf_map_info")
        self._key_size, self._value_size = info.key_size, info.value_size
        self._value = self._ffi.new("char[]", self._value_size)

    def lookup(self, key: bytes, flags: int = _ANY) -> bytes | None:
        result = self._libbpf.try_call("bpf_map_lookup_elem_flags", self.fd, key, self._value, flags)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self._error("read", -result)
        return bytes(self._ffi.buffer(self._value))

    def update(self, key: bytes, value: bytes, flags: int = _ANY) -> bool:
        """False where the key exists already and ``flags`` forbid that."""
        result = self._libbpf.try_call("bpf_map_update_elem", self.fd, key, value, flags)
        if result == -errno.EEXIST:
            return False
        if result == -errno.E2BIG:
            size = self._libbpf.info(self.fd, "bpf_map_info").max_entries
            raise LimiterError(
                "map_full",
                f"the BPF map {self.name} is full",
                f"it has room for {size} entries: {reason(errno.E2BIG)}",
                "Remove rules or members that are no longer needed (speed_limit_purge with scope stale finds some), "
                "or let several cgroups be members of one rule",
            )
        if result < 0:
            raise self._error("written", -result)
        return True

    def delete(self, key: bytes) -> bool:
        """Whether the key was there."""
        result = self._libbpf.try_call("bpf_map_delete_elem", self.fd, key)
        if result < 0 and result != -errno.ENOENT:
            raise self._error("written", -result)
        return result == 0

    def items(self, flags: int = _ANY) -> tuple[bytes, bytes]:
        """All keys and all values, each joined, in the same order."""
        try:
            return self._items_in_batches(flags)
        except KernelError as error:
            if error.errno == errno.EPERM:
                raise
            return self._items_one_by_one(flags)  # this kernel has no batches for this type of map

    def entries(self, flags: int = _ANY) -> t.Iterator[tuple[bytes, bytes]]:
        """Each key with its value, as `items`."""
        keys, values = self.items(flags)
        for place in range(len(keys) // self._key_size):
            yield (
                keys[place * self._key_size : (place + 1) * self._key_size],
                values[place * self._value_size : (place + 1) * self._value_size],
            )

    def _items_in_batches(self, flags: int) -> tuple[bytes, bytes]:
        new = self._ffi.new
        options = new("struct bpf_map_batch_opts *", (self._ffi.sizeof("struct bpf_map_batch_opts"), flags, 0))
        size, keys, values = _BATCH, b"", b""
        count, here, following = new("uint32_t *"), self._ffi.NULL, new("char[]", 8)
        while True:
            key_buffer, value_buffer = new("char[]", size * self._key_size), new("char[]", size * self._value_size)
            while True:
                count[0] = size
                result = self._libbpf.try_call(
                    "bpf_map_lookup_batch", self.fd, here, following, key_buffer, value_buffer, count, options
                )
                if result < 0 and result != -errno.ENOENT:
                    break
                keys += self._ffi.buffer(key_buffer, count[0] * self._key_size)[:]
                values += self._ffi.buffer(value_buffer, count[0] * self._value_size)[:]
                if result == -errno.ENOENT:  # the end
                    return keys, values
                here = following
            if result != -errno.ENOSPC:  # ENOSPC: one bucket of the kernel's hash table holds more than that
                raise self._error("read", -result)
            size *= 2

    def _items_one_by_one(self, flags: int) -> tuple[bytes, bytes]:
        keys: list[bytes] = []
        values: list[bytes] = []
        key, following = self._ffi.NULL, self._ffi.new("char[]", self._key_size)
        while True:
            result = self._libbpf.try_call("bpf_map_get_next_key", self.fd, key, following)
            if result == -errno.ENOENT:
                return b"".join(keys), b"".join(values)
            if result < 0:
                raise self._error("read", -result)
            key = following
            found = bytes(self._ffi.buffer(key))
            value = self.lookup(found, flags)
            if value is not None:
                keys.append(found)
                values.append(value)

    def _error(self, verb: str, number: int) -> KernelError:
        return KernelError(f"the BPF map {self.name} cannot be {verb}", number)


class Maps:
    """The maps, open. Close them, or use a with block."""

    def __init__(self, libbpf: Libbpf, fds: t.Mapping[str, int], schema: int) -> None:
        self._fds, self.schema = list(fds.values()), schema
        self._maps = {name: Map(libbpf, name, fd) for name, fd in fds.items()}
        self._config, self._state, self._member = map(self.of, (catalog.CONFIG, catalog.STATE, catalog.MEMBER))
        self._socket, self._pacing, self._control = map(self.of, (catalog.SOCKET, catalog.PACING, catalog.CONTROL))
        self._sockets_looked_up = 0  # what control.tagged_sockets is at least

    @classmethod
    def open(cls, libbpf: Libbpf, any_version: bool = False) -> Maps | None:
        """The pinned maps; None where they are not all pinned (none ever were, or a first load was killed half way).

        Those of an earlier version (`is_earlier`) can be read, and changed but for states, which are its programs'.
        ``any_version`` also opens those that a version made which is not known. Of these only control and what sockets
        were told may be used: what it takes to release them, which is alike in all versions.
        Raises LimiterError: as `pins.check`, ``other_schema``.
        """
        while True:  # who looks holds no lock, and the pins of a new layout may be moving
            before = pins.inodes()
            try:
                maps = cls._open(libbpf, any_version)
            except LimiterError:
                if before == pins.inodes():
                    raise
                continue
            if maps is None or (before == pins.inodes() and maps.control().schema == maps.schema):
                return maps
            maps.close()

    @classmethod
    def _open(cls, libbpf: Libbpf, any_version: bool) -> Maps | None:
        pins.check(libbpf, schema=None)
        if not pins.exists(catalog.CONTROL.name):
            return None
        fds: dict[str, int] = {}
        try:
            fds[catalog.CONTROL.name] = libbpf.get(pins.path(catalog.CONTROL.name))
            schema = _control(Map(libbpf, catalog.CONTROL.name, fds[catalog.CONTROL.name])).schema
            rows = [row for row in catalog.MAPS if row.since <= schema]
            if not all(pins.exists(row.name) for row in rows):
                os.close(fds.pop(catalog.CONTROL.name))
                return None
            if schemas.is_known(schema):
                pins.check(libbpf, schema)
            elif not any_version:
                raise other_schema(schema)
            places = pins.places(schema) if schema == layout.SCHEMA else {}
            for row in rows:
                if row is not catalog.CONTROL:
                    fds[row.name] = libbpf.get(pins.path(places.get(row, row.name)))
            maps = cls(libbpf, fds, schema)
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            raise
        return maps

    @property
    def is_earlier(self) -> bool:
        """Whether an earlier version made them, whose layout is known."""
        return self.schema != layout.SCHEMA and self.is_known

    @property
    def is_known(self) -> bool:
        return schemas.is_known(self.schema)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def of(self, row: catalog.MapRow) -> Map:
        return self._maps[row.name]

    def entries(self, row: catalog.MapRow) -> t.Iterator[tuple[bytes, bytes]]:
        """Keys and values as they are; a state is read under its lock."""
        return self.of(row).entries(_LOCK if row is catalog.STATE else _ANY)

    def limits(self) -> dict[int, Limit]:
        if self.is_earlier and schemas.changed(catalog.CONFIG, self.schema):
            entries = self._config.entries()
            return {layout.ID.unpack(key)[0]: schemas.unpack_limit(self.schema, value) for key, value in entries}
        keys, values = self._config.items()
        return dict(zip(_ids(keys), map(Limit._make, layout.CONFIG.iter_unpack(values))))

    def limit(self, rule: int) -> Limit | None:
        data = self._config.lookup(layout.ID.pack(rule))
        return None if data is None else schemas.unpack_limit(self.schema, data)

    def set_limit(self, rule: int, limit: Limit) -> None:
        """Raises LimiterError ``map_full``. Packets are measured by it from the next `bump_generation` on."""
        self._config.update(layout.ID.pack(rule), layout.pack_limit(limit))

    def remove_limit(self, rule: int) -> bool:
        return self._config.delete(layout.ID.pack(rule))

    def make_state(self, rule: int, bucket: int) -> None:
        """A full bucket and counters of 0, unless the rule has a state already. Raises LimiterError ``map_full``."""
        state = layout.pack_full_state(bucket, 0)  # 0: another time namespace's clock would not do
        self._state.update(layout.ID.pack(rule), state, _NOEXIST)

    def state(self, rule: int) -> layout.State | None:
        """What a rule has and has counted, and what its controller knows; read under the state's lock."""
        data = self._state.lookup(layout.ID.pack(rule), _LOCK)
        return None if data is None else schemas.unpack_state(self.schema, data)

    def states(self, rules: int) -> t.Callable[[int], layout.State | None]:
        """What tells as `state`; of many rules, what all had at this one look."""
        if rules <= MANY:
            return self.state
        found = dict(self.entries(catalog.STATE))

        def state(rule: int) -> layout.State | None:
            data = found.get(layout.ID.pack(rule))
            return None if data is None else schemas.unpack_state(self.schema, data)

        return state

    def counters(self, rule: int) -> Counters | None:
        found = self.state(rule)
        return None if found is None else found.counters

    def state_rules(self) -> set[int]:
        """The rules that have a state, or whose budgets have one."""
        keys, values = self._state.items()
        if self.schema < catalog.SLOT.since:  # before budgets
            return set(_ids(keys))
        owners = (item[0] for item in layout.STATE_LIMIT.iter_unpack(values))
        return {owner or rule for rule, owner in zip(_ids(keys), owners) if owner != layout.NO_RULE}

    def remove_state(self, rule: int) -> bool:
        return self._state.delete(layout.ID.pack(rule))

    def members(self) -> dict[int, int]:
        """Cgroup id of each member -> rule; without leaves."""
        return {member: rule for member, rule in self._members().items() if not rule & layout.LEAF}

    def leaves(self) -> dict[int, int]:
        """Cgroup id of each leaf -> rule."""
        return {member: rule & ~layout.LEAF for member, rule in self._members().items() if rule & layout.LEAF}

    def _members(self) -> dict[int, int]:
        keys, values = self._member.items()
        return dict(zip(_ids(keys), _ids(values)))

    def member(self, cgroup_id: int) -> int | None:
        """The rule that a cgroup is a member of, as a leaf or not."""
        data = self._member.lookup(layout.ID.pack(cgroup_id))
        return None if data is None else t.cast(int, layout.ID.unpack(data)[0]) & ~layout.LEAF

    def add_member(self, cgroup_id: int, rule: int, leaf: bool = False) -> None:
        """Raises LimiterError ``map_full``. What sockets are charged to follows with the next `bump_generation`."""
        self._member.update(layout.ID.pack(cgroup_id), layout.ID.pack(rule | layout.LEAF if leaf else rule))

    def remove_member(self, cgroup_id: int) -> bool:
        return self._member.delete(layout.ID.pack(cgroup_id))

    def forget(self, rule: int) -> None:
        """Takes a rule out. Its limit goes first: from then on packets pass, whoever is still charged to it, and the
        rule counts as half made.
        """
        self.remove_limit(rule)
        self.remove_member(rule)
        self.remove_state(rule)

    def bump_generation(self) -> None:
        """Makes stale what the programs keep: attributions, limits; to be called after members or limits were changed.

        Reading and writing are two steps: the host's lock keeps other writers away, and the program only reads.
        """
        self.write_control(_following(self.control()))

    def tag_socket(self, fd: int, rule: int) -> None:
        """Tags one open socket with a rule, which charges it whatever cgroup it belongs to.

        The kernel never relabels an open socket, so that is how a process's connections follow it into a rule.
        """
        self._socket.update(layout.FD.pack(fd), layout.ID.pack(rule))
        looked_up = 2 if _is_mptcp(fd) else 1
        if looked_up > self._sockets_looked_up:
            control = self.control()
            if looked_up > control.tagged_sockets:
                self.write_control(control._replace(tagged_sockets=looked_up))
            self._sockets_looked_up = looked_up

    def release_socket(self, fd: int) -> None:
        """Tags one open socket as released: the rule that it was tagged with or made in no longer holds for it."""
        self.tag_socket(fd, layout.RELEASED)

    def socket_rule(self, fd: int) -> int | None:
        data = self._socket.lookup(layout.FD.pack(fd))
        return None if data is None else t.cast(int, layout.ID.unpack(data)[0])

    def pacing(self, fd: int) -> layout.Pacing | None:
        """What a socket was told about its pacing; None where no program has told it anything."""
        data = self._pacing.lookup(layout.FD.pack(fd))
        return None if data is None else layout.unpack_pacing(data)

    def forget_pacing(self, fd: int) -> None:
        self._pacing.delete(layout.FD.pack(fd))

    def set_pacing(self, pacing: int) -> None:
        """Says to the programs whether sockets are paced: layout.PACING_OFF and so on. Nothing where they know it."""
        control = self.control()
        if control.pacing != pacing:
            control = control._replace(pacing=pacing)
            # Where there never was a rule nothing is cached, and the programs shall go on passing everything at once.
            self.write_control(_following(control) if control.generation else control)

    def control(self) -> Control:
        return _control(self._control)

    def graph(self) -> layout.Graph:
        """The graph of places in use."""
        data = self.of(catalog.GRAPH).lookup(layout.INDEX.pack(0))
        return layout.Graph() if data is None else layout.Graph._make(layout.GRAPH.unpack(data))

    def write_graph(self, graph: layout.Graph) -> None:
        self.of(catalog.GRAPH).update(layout.INDEX.pack(0), layout.GRAPH.pack(*graph))

    def write_control(self, control: Control) -> None:
        self._control.update(layout.INDEX.pack(0), layout.pack_control(control))


def other_schema(found: int) -> LimiterError:
    newer = "Run that version, which is newer, or " if found > layout.SCHEMA else "Run "
    return LimiterError(
        "other_schema",
        f"the maps in {pins.PIN_DIR} are of another version of this collection, whose rules still hold",
        f"their schema is {found}, this version's is {layout.SCHEMA}",
        f"{newer}speed_limit_purge with scope=all, which ends that version's program and removes its rules, then the "
        "tasks that make the rules",
    )


def _control(control: Map) -> Control:
    data = control.lookup(layout.INDEX.pack(0))
    return Control(schema=0) if data is None else layout.unpack_control(data)


def _following(control: Control) -> Control:
    """With the next generation; never 0, which says that there was never a member."""
    return control._replace(generation=(control.generation + 1) & 0xFFFFFFFF or 1)


def _is_mptcp(fd: int) -> bool:
    """Whether a socket sends through subflows of its own, which nobody can tag from here."""
    with socket.socket(fileno=os.dup(fd)) as copy:
        return copy.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == _IPPROTO_MPTCP


def _ids(data: bytes) -> t.Iterator[int]:
    return (item[0] for item in layout.ID.iter_unpack(data))
