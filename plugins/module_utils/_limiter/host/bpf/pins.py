# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of pins: who may write there could hand us maps of his own, so it must be root's alone."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

from ...core import catalog, layout, schemas
from ...core.errors import LimiterError
from .. import mounts
from ..errnos import errno_text
from .libbpf import KernelError, Libbpf, closing_fd, mount_bpffs, private_bpffs

_UNCHANGING = [row for row in catalog.MAPS if not row.next]  # in all versions

BPFFS = "/sys/fs/bpf"
PIN_DIR = f"{BPFFS}/speed_limiter"
_bpffs = BPFFS  # another one while `aside`


def directory() -> str:
    """Where our pins are: PIN_DIR, or what stands in for it."""
    return f"{_bpffs}/speed_limiter"


def path(name: str) -> str:
    return f"{directory()}/{name}"


@contextlib.contextmanager
def aside(libbpf: Libbpf, empty: bool = False) -> t.Iterator[None]:
    """Meanwhile a directory that nobody else sees, and that nothing outlives, stands in for ours.

    It has the same pins, or is ``empty``. So who may change nothing can look at what is not pinned as if it were.
    Raises LimiterError as `check`, and KernelError.
    """
    global _bpffs
    with contextlib.ExitStack() as stack:
        names = [] if empty or not is_mounted() else list(filter(exists, catalog.PINS))
        fds = [(name, stack.enter_context(closing_fd(libbpf.get(path(name))))) for name in names]
        before, mounted = _bpffs, stack.enter_context(closing_fd(private_bpffs()))
        _bpffs = f"/proc/self/fd/{mounted}"
        try:
            os.mkdir(directory(), 0o700)
            for name, fd in fds:
                libbpf.call("bpf_obj_pin", fd, path(name).encode())
            yield
        finally:
            _bpffs = before


def is_mounted() -> bool:
    """Whether a bpffs is what one sees at /sys/fs/bpf."""
    return _bpffs != BPFFS or any(mount.point == BPFFS and mount.kind == "bpf" for mount in mounts.listed())


def exists(name: str) -> bool:
    return os.path.lexists(path(name))


def inodes() -> list[int]:
    """Others once pins of ours have come, gone or moved. It takes no descriptor: who is out of them is told, too."""
    found = []
    for name in sorted(catalog.PINS):
        try:
            found.append(os.lstat(path(name)).st_ino)
        except OSError:
            found.append(0)
    return found


def foreign() -> list[str]:
    """Names in our directory that are not ours; they are left alone."""
    return sorted(set(_listed(PIN_DIR)) - set(catalog.PINS))


def places(schema: int) -> dict[catalog.MapRow, str]:
    """Under which pins this version's maps are, or will be, where a program of that schema was loaded before."""
    if schema == layout.SCHEMA:  # some may not have been renamed yet, after the change to it
        return {row: row.next if row.next and exists(row.next) else row.name for row in catalog.MAPS}
    changed = {row: row.next if schemas.changed(row, schema) else row.name for row in catalog.MAPS}
    return {**changed, catalog.CARRIED: catalog.CARRIED.name}


def check(libbpf: Libbpf | None = None, schema: int | None = layout.SCHEMA) -> None:
    """Refuses a directory that someone else could have filled.

    Raises LimiterError: ``unsafe_pin_directory`` where the directory, or anything in it, is a symlink or not root's, or
    where its mode lets others in; with ``libbpf`` also ``foreign_pin`` where one of our names is not what it should be,
    and ``not_permitted`` where we may open none. ``schema``: of the values in our maps; None: they may be of any size.
    """
    if not os.path.lexists(directory()):
        return
    root = os.stat(_bpffs)
    if root.st_uid != 0 or (root.st_mode & 0o022 and not root.st_mode & stat.S_ISVTX):
        raise _unsafe(BPFFS, f"its owner is uid {root.st_uid} and its mode {stat.S_IMODE(root.st_mode):04o}")
    _check_owner(directory())
    status = os.stat(directory(), follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        raise _unsafe(PIN_DIR, "it is not a directory")
    if status.st_mode & 0o077:
        raise _unsafe(PIN_DIR, f"its mode is {stat.S_IMODE(status.st_mode):04o}, where only 0700 keeps others out")
    for name in _listed():
        _check_owner(path(name))
    if libbpf is not None:
        for row in (*catalog.MAPS, catalog.CARRIED):
            if exists(row.name):
                known = schema is not None and not (row.next and exists(row.next))
                _check_map(libbpf, row, row.name, _size(row, schema) if known or row in _UNCHANGING else None)
        for name, row in catalog.NEXT.items():
            if exists(name):
                _check_map(libbpf, row, name, None)
        for name in (*catalog.CARRYING, catalog.UNTRACED):
            if exists(name):
                with _opened(libbpf, name, "prog"):
                    pass
        for name, hook in catalog.LINKS.items():
            if exists(name):
                _check_link(libbpf, name, hook)


def ensure() -> list[str]:
    """Mounts bpffs where it is missing, makes the directory and says what it did. Raises as `check`, or KernelError."""
    done = []
    if not is_mounted():
        if not os.path.isdir(BPFFS):
            raise LimiterError(
                "no_bpffs",
                f"bpffs cannot be mounted at {BPFFS}",
                "the directory does not exist",
                "The kernel needs CONFIG_BPF_SYSCALL, and sysfs has to be mounted at /sys",
            )
        mount_bpffs(BPFFS)
        done.append(f"mounted bpffs at {BPFFS}")
    if not os.path.lexists(PIN_DIR):
        os.mkdir(PIN_DIR, 0o700)
        done.append(f"made {PIN_DIR}")
    check()
    return done


def rename(name: str, place: str) -> None:
    """What is pinned under a name takes the place of what another one has, if anything. Raises KernelError."""
    try:
        os.rename(path(name), path(place))
    except OSError as error:
        raise KernelError(f"{path(name)} cannot be renamed to {place}", error.errno or 0) from error


def unlink(name: str) -> None:
    """Raises KernelError."""
    try:
        os.unlink(path(name))
    except OSError as error:
        raise KernelError(f"{path(name)} cannot be removed", error.errno or 0) from error


def unpin(names: t.Iterable[str]) -> None:
    """Undoes the pinning of these, and the making of the directory if nothing else is in it. Raises KernelError."""
    for name in filter(exists, names):
        unlink(name)
    with contextlib.suppress(OSError):
        os.rmdir(directory())


def drop_leftovers(libbpf: Libbpf) -> None:
    """Where not all maps are pinned: unpins those that a killed run of another version left. Nothing uses them."""
    others = [row.name for row in catalog.MAPS if exists(row.name) and not _fits(libbpf, row)]
    if others and exists(catalog.CONTROL.name):
        others.append(catalog.CONTROL.name)  # it tells of their layout
    for name in others:
        unlink(name)


def _fits(libbpf: Libbpf, row: catalog.MapRow) -> bool:
    with _opened(libbpf, row.name, "map") as fd:
        return bool(libbpf.info(fd, "bpf_map_info").value_size == row.value.size)


def remove() -> list[str]:
    """Removes our pins, then the directory if nothing else is in it; says what it removed. Raises as `check`.

    A kernel object goes with its last user: a program that is still attached keeps its maps.
    """
    removed = []
    check(schema=None)
    # Control first, without which the others are nobody's: see `drop_leftovers`.
    for name in (*catalog.LINKS, catalog.UNTRACED, *catalog.PASSING, *(row.name for row in reversed(catalog.MAPS))):
        try:
            os.unlink(path(name))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise LimiterError("foreign_pin", f"{path(name)} cannot be removed", errno_text(error), _LOOK) from error
        removed.append(path(name))
    with contextlib.suppress(OSError):
        os.rmdir(directory())
        removed.append(PIN_DIR)
    return removed


_LOOK = f"Look at what is in {PIN_DIR} and who put it there, then remove it and run the task again"


def _listed(place: str | None = None) -> list[str]:
    try:
        return os.listdir(place or directory())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unsafe(what: str, why: str) -> LimiterError:
    return LimiterError("unsafe_pin_directory", f"{what} cannot be trusted", why, _LOOK)


def _check_owner(what: str) -> None:
    try:
        status = os.stat(what, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise _unsafe(what, "it is a symbolic link")
    if status.st_uid != 0:
        raise _unsafe(what, f"its owner is uid {status.st_uid}, not root")


def _size(row: catalog.MapRow, schema: int | None) -> int:
    return row.value.size if schema is None else schemas.layout_of(row, schema).value.size


def _check_map(libbpf: Libbpf, row: catalog.MapRow, name: str, size: int | None) -> None:
    """``size``: of its values; None: any."""
    with _opened(libbpf, name, "map") as fd:
        info = libbpf.info(fd, "bpf_map_info")
    wanted = (row.type, row.key.size, info.value_size if size is None else size)
    found = (info.type, info.key_size, info.value_size)
    if found != wanted:
        raise _foreign(name, f"it is a map of {_described(*found)}, where {_described(*wanted)} is expected")


def _check_link(libbpf: Libbpf, name: str, hook: catalog.Hook) -> None:
    with _opened(libbpf, name, "link") as fd:
        info = libbpf.info(fd, "bpf_link_info")
    if info.type != hook.link_type:
        wanted = "a cgroup" if hook.link_type == catalog.CGROUP_LINK else "an iterator"
        raise _foreign(name, f"it is a BPF link, but not to {wanted}")


@contextlib.contextmanager
def _opened(libbpf: Libbpf, name: str, wanted: str) -> t.Iterator[int]:
    fd = libbpf.try_call("bpf_obj_get", path(name).encode())
    if fd == -errno.EPERM:  # not of the pin: 5.10 lets nobody without CAP_BPF open any
        raise KernelError(f"{path(name)} cannot be opened", errno.EPERM)
    if fd < 0:
        raise _foreign(name, f"it is no BPF object that can be opened: {errno_text(OSError(-fd, ''))}")
    with closing_fd(fd):
        # "anon_inode:bpf-map", "anon_inode:bpf-prog", "anon_inode:bpf_link" and so on
        kind = os.readlink(f"/proc/self/fd/{fd}").replace("_", "-").rpartition(":bpf-")[2].strip("[]")
        if kind != wanted:
            raise _foreign(name, f"it is a BPF {kind}")
        yield fd


def _foreign(name: str, why: str) -> LimiterError:
    return LimiterError("foreign_pin", f"{path(name)} is not the limiter's", why, _LOOK)


def _described(kind: int, key_size: int, value_size: int) -> str:
    return f"type {kind} with keys of {key_size} and values of {value_size} bytes"
