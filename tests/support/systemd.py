# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with systemd for tests: this machine's own systemd, booted in namespaces on this machine's kernel in a second.

    with booted() as host:  # or the fixture `host` of tests/kernel/conftest.py, which serves a whole file
        host.unit("a.service", "[Service]\nExecStart=/bin/sleep inf")
        host.run("systemctl", "start", "a")
        assert host.cgroup("/system.slice/a.service").is_dir()
        host.reboot()

systemd is the first process of the host. The host has its own cgroup2 (all of the hierarchy, as it sees it), bpffs,
/run, /proc, /dev, /tmp and network (or that of a namespace that is named); it sees this machine's /usr and the
checkout. D-Bus, logind and journald run; units that are for hardware do not. /etc and /var are few files of its own and
stay over a reboot. What is in the kernel is gone then: cgroups, programs, maps.

A test runs outside, in the sandbox. It looks in through `cgroup()` (the host's cgroups) and `path()` (its files).
Inside it runs programs with `run()` and modules with `task()` and `refused()`, in ``init.scope``, where systemd is.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups

from . import elsewhere
from .children import until

PROGRAM = "/usr/lib/systemd/systemd"
CHECKOUT = Path(__file__).resolve().parents[2]
UNITS = "/etc/systemd/system"
# Of this machine's /etc, what PAM, D-Bus, programs and their libraries read.
_SETTINGS = (
    "alternatives containers dbus-1 group gshadow ld.so.cache ld.so.conf ld.so.conf.d login.defs nsswitch.conf "
    "pam.conf pam.d passwd protocols security services shadow shells ssl"
)
# For hardware, or slow, or changes of the kernel that all share.
_MASKED = (
    "dev-hugepages.mount dev-mqueue.mount getty.target kmod-static-nodes.service "
    "proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount "
    "sys-kernel-debug.mount sys-kernel-tracing.mount systemd-binfmt.service systemd-firstboot.service "
    "systemd-journald-audit.socket systemd-modules-load.service systemd-pstore.service "
    "systemd-random-seed.service systemd-repart.service systemd-sysctl.service systemd-sysusers.service "
    "systemd-timesyncd.service systemd-tmpfiles-clean.timer systemd-udev-trigger.service systemd-udevd.service "
    "systemd-udevd-control.socket systemd-udevd-kernel.socket tmp.mount"
)
# A cgroup's directory and a command that is to run there.
_INTO = 'echo 0 >"$1/cgroup.procs"; shift; exec "$@"'
# Run in new namespaces, with the root, systemd's path and what is to be seen of this machine.
_BECOME = """
set -eu
root=$1 usr=$2 program=$3
shift 3
mount --bind "$root" "$root"
cd "$root"
mount --rbind "$usr" usr
for seen; do
    case $seen in /run/*|/tmp/*) ;; *) mkdir -p ".$seen"; mount --rbind "$seen" ".$seen" ;; esac
done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf -o mode=0700 bpf sys/fs/bpf
mount -o remount,bind,ro sys
mount -t tmpfs -o mode=0755 tmpfs dev
mkdir dev/pts dev/shm
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do mknod -m 666 "dev/${node% *}" c 1 "${node#* }"; done
mknod -m 666 dev/tty c 5 0
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
for seen; do
    case $seen in /run/*|/tmp/*) mkdir -p ".$seen"; mount --rbind "$seen" ".$seen" ;; esac
done
hostname host
mkdir -p .old
pivot_root . .old
umount -l /.old
exec env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin "$program" --log-target=journal --show-status=0
"""

_numbers = itertools.count()


class Host:
    """One that has booted."""

    def __init__(self, directory: Path, network: str | None = None, userland: str = "") -> None:
        self._root, self._network, self._userland = directory, network, userland
        self._outer: subprocess.Popen[bytes] | None = None
        self.pid = 0  # systemd's, as this test sees it
        self._furnish()
        self._boot()

    # ---- to look in

    def path(self, path: str) -> Path:
        """A file of the host, as this test finds it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def cgroup(self, path: str) -> Path:
        """The directory of a cgroup that the host calls so."""
        return Path(f"{self._cgroup}{path}".rstrip("/"))

    def cgroup_of(self, pid: int) -> str:
        """What the host calls the cgroup of a process; the pid is this test's."""
        found = processes.read(pid)
        return found.cgroup[len(f"/{self._cgroup.name}") :] or "/" if found else "gone"

    # ---- to act inside

    @property
    def prefix(self) -> list[str]:
        """What to write before a command that is to run inside."""
        enter = [
            "nsenter",
            f"--target={self.pid}",
            "--mount",
            "--cgroup",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
            "--root",
            "--wd",
        ]
        return ["sh", "-ec", _INTO, "sh", str(self.cgroup("/init.scope")), *enter]

    def run(self, *command: str, fails: bool | None = False) -> str:
        """What a command inside prints; it must succeed, or with ``fails`` fail (None: either)."""
        done = subprocess.run(
            [*self.prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert fails in (None, bool(done.returncode)), f"{' '.join(command)}: {done.stdout}"
        return done.stdout.strip()

    def task(self, module: str, /, **options: Any) -> dict[str, Any]:
        """The result of a module that runs inside, as `limiter.task`."""
        text = elsewhere.said(self.prefix, f"task({module!r}, **{options!r})")
        result: dict[str, Any] = ast.literal_eval(text.splitlines()[-1])
        return result

    def refused(self, module: str, /, **options: Any) -> str:
        """The error of a module that runs inside, as ``kind: text``."""
        return elsewhere.error_of(self.prefix, f"task({module!r}, **{options!r})").strip()

    def unit(self, name: str, text: str) -> None:
        """Writes a unit, and has systemd read it."""
        (self._root / UNITS.lstrip("/") / name).write_text(f"{text}\n")
        self.run("systemctl", "daemon-reload")

    def user(self, name: str, uid: int) -> None:
        """Makes a user, who is not logged in."""
        for file, line in (
            ("passwd", f"{name}:x:{uid}:{uid}::/tmp:/bin/sh"),
            ("shadow", f"{name}:*:1::::::"),
            ("group", f"{name}:x:{uid}:"),
        ):
            with (self._root / "etc" / file).open("a") as text:
                text.write(f"{line}\n")

    # ---- its life

    def reboot(self) -> None:
        """Pulls the plug and boots again: what was in memory is gone, also what was in the kernel."""
        self.end()
        self._boot()

    def end(self) -> None:
        if self._outer is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._outer.pid, 9)
        self._outer.kill()
        self._outer.wait()
        self._outer = None
        until(self._is_removed)

    def _furnish(self) -> None:
        for name in ("usr", "proc", "sys", "dev", "run", "tmp", "root", "var/log/journal", "etc/systemd/system"):
            (self._root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path(f"{self._userland}/{name}").is_dir():
                (self._root / name).symlink_to(f"usr/{name}")
        (self._root / "var/run").symlink_to("/run")
        etc = self._root / "etc"
        for name in _SETTINGS.split():
            here = Path(f"{self._userland}/etc", name)
            if here.is_dir():
                shutil.copytree(here, etc / name, symlinks=True)
            elif here.exists():
                shutil.copy2(here, etc / name)
        passwd = (etc / "passwd").read_text().splitlines(keepends=True)
        (etc / "passwd").write_text("".join(line for line in passwd if not 1000 <= int(line.split(":")[2]) < 60000))
        (etc / "hostname").write_text("host\n")
        (etc / "machine-id").write_text(f"{os.getpid():032x}\n")
        (etc / "os-release").symlink_to("../usr/lib/os-release")
        for name in _MASKED.split():
            (self._root / UNITS.lstrip("/") / name).symlink_to("/dev/null")
        (self._root / UNITS.lstrip("/") / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")

    def _boot(self) -> None:
        self._cgroup = Path(Cgroups.find().mount, f"host-{os.getpid()}-{next(_numbers)}")
        self._cgroup.mkdir()
        network = ["nsenter", f"--net=/run/netns/{self._network}"] if self._network else ["unshare", "--net"]
        apart = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--propagation=private"]
        apart += [
            "--cgroup",
            "--uts",
            "--ipc",
            "sh",
            "-c",
            _BECOME,
            "sh",
            str(self._root),
            f"{self._userland}/usr",
            PROGRAM,
        ]
        command = ["sh", "-ec", _INTO, "sh", str(self._cgroup), *network, *apart, *self._seen()]
        log = (self._root / "boot.log").open("wb")
        with log:
            self._outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(self._has_started)
            until(self._has_booted)
        except BaseException as error:
            said = (self._root / "boot.log").read_text()
            self.end()
            raise RuntimeError(f"systemd does not boot: {error}; {said}") from error

    def _seen(self) -> list[str]:
        """The directories that it sees of this machine, beside /usr: those that tests' own programs are in."""
        seen = [str(CHECKOUT), sys.prefix, sys.base_prefix, "/run/sandbox"]
        return [path for path in dict.fromkeys(seen) if not path.startswith("/usr")]

    def _has_started(self) -> bool:
        assert self._outer is not None and self._outer.poll() is None, "it has ended"
        self.pid = next((pid for pid in processes.descendants([self._outer.pid]) if _runs(pid) == PROGRAM), 0)
        return bool(self.pid)

    def _has_booted(self) -> bool:
        assert self._outer is not None and self._outer.poll() is None, "it has ended"
        if not self.cgroup("/init.scope").is_dir():
            return False
        asked = subprocess.run(
            [*self.prefix, "systemctl", "is-system-running"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() in ("running", "degraded")

    def _is_removed(self) -> bool:
        for directory, _below, _files in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        return not self._cgroup.exists()


def _runs(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe")
    return ""


@contextlib.contextmanager
def booted(network: str | None = None, userland: str = "") -> Iterator[Host]:
    """A new host; ``network``: in that network namespace, a name of `ip netns`, for example `net.Pair.sender`.

    ``userland``: with the /usr and the /etc of another Debian, which debootstrap has made there (with systemd, dbus and
    libpam-systemd). Modules run in it only if it has this Python.
    """
    with tempfile.TemporaryDirectory(dir="/run", prefix="host-") as directory:
        os.chmod(directory, 0o755)
        host = Host(Path(directory), network, userland)
        try:
            yield host
        finally:
            host.end()
