# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cgroup2 hierarchy: where it is mounted, the rules' own cgroups in it, and who is in which cgroup."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import typing as t

from ...core.errors import EMPTY, LimiterError
from ...core.patterns import Pattern, bad_path
from .. import mounts
from ..errnos import errno_text
from . import processes, trees

_PREFERRED = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
# "max" or empty is no limit; all of them are absent in the root. What is guaranteed (memory.low) or shared by weight
# is not listed: every cgroup has some weight, and the warning is about limits.
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "memory.swap.high", "memory.zswap.max") + (
    "cpu.max",
    "cpuset.cpus",
    "pids.max",
)
# An exiting process counts for rmdir(2) a moment longer than it is listed.
_RMDIR_SECONDS = 1.0


class Cgroups:
    """One cgroup2 mount. Cgroups are named by their path below it (``/``, ``/system.slice/a.service``).

    Inside a cgroup namespace ``/`` is the namespace's root; what lies above it is invisible from here.
    """

    managed: t.Final = "/speed_limiter"

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.too_large: dict[str, None] = {}  # those of which not all was found, since too much is below them

    @classmethod
    def find(cls) -> Cgroups:
        """The cgroup2 mount of this host. LimiterError ``no_cgroup2`` where none can be used."""
        found = [mount for mount in mounts.listed() if mount.kind == "cgroup2"]
        whole = [mount for mount in found if mount.root == "/"]
        usable = [mount.point for mount in whole if mount.visible]
        for point in (*_PREFERRED, *usable):
            if point in usable:
                return cls(point)
        if len(whole) < len(found):
            why = f"only a part of cgroup2 is mounted, at {next(mount.point for mount in found if mount.root != '/')}"
        elif whole:
            why = f"the cgroup2 mount at {whole[0].point} is hidden by another mount"
        else:
            why = "no cgroup2 file system is mounted on this host"
        raise LimiterError(
            "no_cgroup2",
            "cgroup2 cannot be used",
            why,
            "Mount it (mkdir -p /sys/fs/cgroup/unified; mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified), "
            "or boot with the kernel parameter systemd.unified_cgroup_hierarchy=1",
        )

    # ---- names

    def absolute(self, cgroup: str) -> str:
        """The directory of a cgroup. LimiterError ``unusable_cgroup`` for one outside of our namespace (``/..``)."""
        if ".." in cgroup.split("/"):
            raise LimiterError(
                "unusable_cgroup",
                f"the cgroup {cgroup} cannot be used",
                "it is outside of this cgroup namespace",
                "Run the task on the host, not in a container",
            )
        return self.mount if cgroup == "/" else self.mount + cgroup

    def relative(self, option: str, path: str) -> str:
        """The name of a cgroup from a path below the mount point, or from a path as in /proc/PID/cgroup.

        The cgroup need not exist. Raises LimiterError ``bad_cgroup_path``, which begins with ``option``.
        """
        inside = path
        if path == self.mount or path.startswith(f"{self.mount}/"):
            inside = path[len(self.mount) :]
        elif path == "/sys/fs/cgroup" or path.startswith("/sys/fs/cgroup/"):
            raise bad_path(option, path, f"it is not in cgroup2, which is mounted at {self.mount}")
        parts = [part for part in inside.split("/") if part not in ("", ".")]
        if not path:
            raise bad_path(option, path, "it is empty", EMPTY)
        if ".." in parts:
            raise bad_path(option, path, "'..' is not accepted")
        if "\0" in path or "\n" in path:
            raise bad_path(option, path, "no cgroup has a NUL or a line end in its name")
        directory = self.mount
        try:
            device = os.lstat(directory).st_dev
            for part in parts:
                directory = f"{directory}/{part}"
                status = os.lstat(directory)
                kind = status.st_mode & 0o170000
                if kind == 0o120000:
                    raise bad_path(option, path, f"{directory} is a symbolic link")
                if kind != 0o040000:
                    raise bad_path(option, path, f"{directory} is a file, not a cgroup")
                if status.st_dev != device:
                    raise bad_path(option, path, f"{directory} is on another file system")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise bad_path(option, path, errno_text(error)) from None
        except ValueError as error:  # half a surrogate pair, which no file can have in its name
            raise bad_path(option, path, str(error)) from None
        return "/" + "/".join(parts)

    def exists(self, cgroup: str) -> bool:
        return self.identifier(cgroup) is not None

    def identifier(self, cgroup: str) -> int | None:
        """The kernel's id of a cgroup (64 bits, never used again in this boot); None where there is no such cgroup."""
        try:
            status = os.lstat(self.absolute(cgroup))
        except (OSError, ValueError, LimiterError):
            return None
        return status.st_ino if status.st_mode & 0o170000 == 0o040000 else None

    def is_roots(self, cgroup: str) -> bool:
        """Whether only root can make cgroups in it. One that is gone is."""
        try:
            status = os.lstat(self.absolute(cgroup))
        except OSError:
            return True
        return status.st_uid == 0 and not status.st_mode & 0o022

    def depth(self, cgroup: str) -> int:
        """Levels below ``/``, which is 0. What lies above a cgroup namespace's root cannot be seen nor counted."""
        return 0 if cgroup == "/" else cgroup.count("/")

    def matching(self, pattern: Pattern) -> list[str]:
        """The cgroups that a pattern names now; of very many a part."""
        found = [""]
        for name in pattern.names:
            if isinstance(name, str):
                found = [f"{above}/{name}" for above in found]
            else:
                found, full = trees.fitting(self.mount, found, name)
                self.too_large.update(dict.fromkeys(full))
        return [cgroup or "/" for cgroup in found if self.exists(cgroup or "/")]

    # ---- the rules' own cgroups

    def rule_cgroup(self, name: str) -> str:
        return f"{self.managed}/{name}"

    def rule_names(self) -> list[str]:
        """The directories right below ours, sorted."""
        return sorted(self._children(self.managed))

    def rules_by_id(self) -> dict[int, str]:
        """Names of rules by their cgroups' ids, for the price of a list: it comes with the inode numbers."""
        try:
            with os.scandir(self.absolute(self.managed)) as entries:
                return {entry.inode(): entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except OSError:
            return {}

    def any_in_rules(self) -> bool:
        """Whether a process is in a rule's own cgroup: usually they are all in leaves."""
        return not trees.is_empty(self.absolute(self.managed))

    def make_rule(self, name: str) -> int:
        """Makes a rule's cgroup, and ours around it, where they are missing; the cgroup's id.

        LimiterError ``cgroup_not_made``.
        """
        directory = self.absolute(self.rule_cgroup(name))
        try:
            if not _mkdir(directory):
                _mkdir(self.absolute(self.managed))
                _mkdir(directory)
        except OSError as error:
            raise _not_made(directory, error) from None
        made = self.identifier(self.rule_cgroup(name))
        if made is None:
            raise LimiterError(
                "cgroup_not_made",
                f"the cgroup {directory} could not be made",
                "something else has that name",
                "Give the rule another name",
            )
        return made

    def make(self, cgroup: str) -> bool:
        """Makes one cgroup; whether it was not there before. LimiterError ``cgroup_not_made``, ``no_cgroup``."""
        directory = self.absolute(cgroup)
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise LimiterError(
                "no_cgroup", f"{os.path.dirname(cgroup)} disappeared while this task ran", "", "Run the task again"
            ) from None
        except OSError as error:
            raise _not_made(directory, error) from None
        return True

    def remove(self, cgroup: str) -> None:
        """Removes a cgroup and the empty ones below it; gone already is fine.

        LimiterError ``busy_cgroup`` while processes are there, ``cgroup_not_removed`` where the kernel refuses.
        """
        with trees.walked(self.absolute(cgroup)) as tree:
            for directory in reversed(tree.directories):
                if tree.complete:
                    self._remove_one(directory, cgroup)
                else:
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
        if not tree.complete:
            raise LimiterError(
                "cgroup_not_removed",
                f"the cgroup {self.absolute(cgroup)} is not removed yet",
                f"more than {trees.MOST} cgroups were below it",
                "Run the task again, which removes more of them; if there are as many again, end who makes them",
            )

    def remove_managed(self) -> bool:
        """Removes our cgroup around the rules' if nothing is in it; whether it is gone."""
        try:
            os.rmdir(self.absolute(self.managed))
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _children(self, cgroup: str) -> list[str]:
        return trees.children(self.absolute(cgroup))

    def _remove_one(self, directory: str, cgroup: str) -> None:
        deadline = time.monotonic() + _RMDIR_SECONDS
        while True:
            try:
                os.rmdir(directory)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                pids = self.pids(cgroup)
                if error.errno == errno.EBUSY and not pids and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                there = ", ".join(f"{pid} ({processes.command(pid)})" for pid in pids[:5])
                more = f" and {len(pids) - 5} more" if len(pids) > 5 else ""
                raise LimiterError(
                    "busy_cgroup" if pids else "cgroup_not_removed",
                    f"the cgroup {self.absolute(cgroup)} cannot be removed",
                    f"processes are in it: {there}{more}" if pids else errno_text(error),
                    "Run the task again; if the same ones are there again, something puts them back: stop it first",
                ) from None

    # ---- processes

    def pids(self, cgroup: str, recursive: bool = True) -> list[int]:
        """The processes of a cgroup (and of those below it), each once; none where it is gone."""
        with trees.walked(self.absolute(cgroup), recursive, only_populated=True) as tree:
            if not tree.complete:
                self.too_large[cgroup] = None
            return list(dict.fromkeys(pid for directory in tree.directories for pid in self._pids(directory)))

    def _pids(self, directory: str) -> list[int]:
        listed: list[int] = []
        try:
            listed = _numbers(f"{directory}/cgroup.procs")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # threaded: only its threads can be read
                return []
        if not listed:
            # Also a process whose first thread has ended is found by the others only.
            try:
                listed = [processes.leader(thread) or 0 for thread in _numbers(f"{directory}/cgroup.threads")]
            except OSError:
                return []
        return [pid for pid in listed if pid]  # 0: of another pid namespace

    def move(self, pid: int, cgroup: str) -> None:
        """Moves a process, all threads. LimiterError ``dead_process``, ``kernel_thread``, ``unusable_cgroup``."""
        if pid <= 0:  # 0 would move the writer
            raise _dead(pid)
        try:
            fd = os.open(f"{self.absolute(cgroup)}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"%d" % pid)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise _dead(pid) from None
            what = f"process {pid} ({processes.command(pid)}) cannot be moved to the cgroup {cgroup}"
            if error.errno == errno.EINVAL and processes.is_kernel_thread(pid):
                raise LimiterError(
                    "kernel_thread", what, f"it is a kernel thread: {errno_text(error)}", "Limit the programs that send"
                ) from None
            raise LimiterError("unusable_cgroup", what, _unusable(error), "Choose another cgroup") from None

    def limits(self, cgroup: str) -> list[str]:
        """The memory, CPU and pids limits that hold in a cgroup, from it or from above: who leaves it loses them.

        Limits of ``/`` (which a namespace's root may have) are not lost, since the rules are below it; nor are those of
        cgroup v1, which has hierarchies of its own.
        """
        found: dict[str, None] = {}
        while cgroup not in ("/", ""):
            try:
                directory = self.absolute(cgroup)
            except LimiterError:  # above our namespace: nothing can be known
                break
            for name in _LIMITS:
                words = (processes.read_file(f"{directory}/{name}") or b"").split()
                if words and words[0] != b"max":
                    found[name] = None
            cgroup = os.path.dirname(cgroup)
        return [name for name in _LIMITS if name in found]


def _mkdir(path: str) -> bool:
    """Whether the directory is there now; not if the one above is missing."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    return True


def _numbers(path: str) -> list[int]:
    """As processes.read_file(), but the errno matters here."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while chunk := os.read(fd, 65536):
            text += chunk
        return [int(word) for word in text.split()]
    finally:
        os.close(fd)


def _not_made(directory: str, error: OSError) -> LimiterError:
    remedies = {
        errno.EAGAIN: "Raise cgroup.max.depth and cgroup.max.descendants of the cgroups above",
        errno.EROFS: "Mount cgroup2 so that it can be written; in a container, limit from the host instead",
        errno.EACCES: "Run the task as root (become: true)",
        errno.EPERM: "Run the task as root (become: true)",
    }
    return LimiterError(
        "cgroup_not_made",
        f"the cgroup {directory} could not be made",
        errno_text(error),
        remedies.get(error.errno or 0, ""),
    )


def _dead(pid: int) -> LimiterError:
    return LimiterError("dead_process", f"there is no process {pid}", "it never was, or has ended", "Give a living one")


def _unusable(error: OSError) -> str:
    reasons = {
        errno.ENOENT: "it does not exist, or not in this cgroup namespace",
        errno.ENODEV: "it was removed",
        errno.EBUSY: "it gives controllers to the cgroups below it (cgroup.subtree_control), and so takes no processes",
        errno.EOPNOTSUPP: "it is in a threaded subtree and is not a valid domain (cgroup.type)",
        errno.EACCES: "it may not be written",
    }
    reason = reasons.get(error.errno or 0)
    return f"{reason}: {errno_text(error)}" if reason else errno_text(error)
