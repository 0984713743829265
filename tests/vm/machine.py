# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual machines: virtme-ng and QEMU boot a kernel on this machine's own files, which the guest can only read.

A guest runs in a PID namespace whose first process dies with whoever started it, even by SIGKILL; with it the rest.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .fetch import OUR_END, Kernel, with_sbin

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
VNG = CHECKOUT / ".venv/bin/vng"
KVM = Path("/dev/kvm")

BOOT = 480  # seconds; without KVM, on two cores that another guest uses, less than a minute is usual
GRACE = 240  # seconds between steps, and that a step may take longer than its own limit before the guest is ended
KVM_TRIAL = 60  # seconds; with KVM a boot takes three
# Drivers of what a guest has and no test uses; loading these takes longer than all else of a boot without KVM.
_NEEDLESS = [
    "acpi_cpufreq",
    "aesni_intel",
    "crc32_pclmul",
    "crct10dif_pclmul",
    "ghash_clmulni_intel",
    "i2c_i801",
    "iTCO_wdt",
    "i6300esb",
    "joydev",
    "kvm_amd",
    "kvm_intel",
    "lpc_ich",
    "pcspkr",
    "powernow_k8",
    "psmouse",
    "sha1_ssse3",
    "sha256_ssse3",
    "sha512_ssse3",
    "sr_mod",
    "ahci",
]
_SPACE = [*OUR_END, "unshare", "--pid", "--fork", "--kill-child=KILL"]


class Share(NamedTuple):
    """A directory of this machine that a guest can mount by its tag."""

    tag: str
    path: Path
    writable: bool = False

    def options(self) -> list[str]:
        path = str(self.path).replace(",", ",,")
        access = "" if self.writable else ",readonly=on"
        return [
            "-fsdev",
            f"local,id={self.tag},path={path},security_model=none,multidevs=remap{access}",
            "-device",
            f"virtio-9p-pci,fsdev={self.tag},mount_tag={self.tag}",
        ]


class Outcome(NamedTuple):
    """How a guest ended. ``wrong``: a line that says why it did not end by itself with 0; empty where it did."""

    up: bool
    wrong: str


_running: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()


def end_all() -> None:
    """Ends every guest, of whatever thread, with the whole run."""
    _ending.set()
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Its namespace dies with it; what it has just forked does only from its next steps on, so its group dies, too."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def ending() -> bool:
    """Whether the whole run ends."""
    return _ending.is_set()


class Guest:
    """One boot of a kernel. ``directory`` is for the console's log and for what virtme-ng writes; ``say`` gets each
    line that the guest prints; ``limit`` gets the same and says, by a number of seconds, when a new time limit begins.
    ``measures``: without KVM its clock is the number of instructions that it has executed, a nanosecond each, and jumps
    to the next timer when it has nothing to do. So a busy machine makes it slow, and leaves what it measures as it is.
    """

    def __init__(
        self,
        kernel: Kernel,
        directory: Path,
        kvm: bool,
        say: Callable[[str], None] = lambda line: None,
        limit: Callable[[str], float | None] = lambda line: None,
        measures: bool = False,
    ) -> None:
        self.kernel, self.directory, self.kvm, self.say, self.limit = kernel, directory, kvm, say, limit
        self.measures = measures and not kvm
        self.console = directory / "console.log"

    def run(self, command: str, shares: list[Share], seconds: float = BOOT, disk: Path | None = None) -> Outcome:
        """Boots, runs the command as root in the guest, which can read the disk, and ends. It begins with BOOT or
        another limit. Raises nothing but what interrupts it.
        """
        scratch = self.directory / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        # A user's own settings of virtme-ng are not to matter; its temporary files are to go with us.
        path = f"{VNG.parent}:{with_sbin()['PATH']}"
        environment = {**os.environ, "PATH": path, "HOME": str(scratch), "TMPDIR": str(scratch)}
        with subprocess.Popen(
            [*_SPACE, *self.vng(command, shares, disk)],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            keeper = threading.Thread(target=self._keep, args=(process,))
            keeper.start()
            _running.add(process)
            if ending():
                _kill(process)  # it was started while the others were ended
            try:
                return self._watch(process, seconds)
            finally:
                _kill(process)
                _running.remove(process)
                process.wait()
                keeper.join()
                shutil.rmtree(scratch, ignore_errors=True)

    def vng(self, command: str, shares: list[Share], disk: Path | None) -> list[str]:
        options = [option for share in shares for option in share.options()]
        # virtme-ng's five serial devices have 64 queues each, and QEMU waits for an eventfd of every queue whenever it
        # waits, thousands of times a second: that took as much of the machine as the guest itself.
        options += ["-global", "virtio-serial-pci.ioeventfd=off"]
        if disk:
            name = str(disk).replace(",", ",,")
            options += ["-drive", f"if=none,id=disk,format=raw,readonly=on,file={name}"]
            options += ["-device", "virtio-blk-pci,drive=disk"]
        if self.measures:
            options += ["-icount", "shift=0,sleep=off"]
        return [
            str(VNG),
            "--verbose",  # the console goes to stderr
            "--force-9p",
            *([] if self.kvm else ["--disable-kvm"]),
            # By the clock of instructions the CPUs take turns, and would wait for each other's.
            *("--run", str(self.kernel.image), "--cpus", "1" if self.measures else "2", "--memory", "2G"),
            *("--append", "mitigations=off"),  # which without KVM cost most of the time
            *("--append", f"modprobe.blacklist={','.join(_NEEDLESS)}"),
            f"--qemu-opts={shlex.join(options)}",
            *("--", command),
        ]

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr
        with self.console.open("wb", buffering=0) as log:
            while block := os.read(process.stderr.fileno(), 65536):
                log.write(block)

    def _watch(self, process: subprocess.Popen[bytes], seconds: float) -> Outcome:
        assert process.stdout
        up, last, rest = False, "", b""
        limit, since = seconds, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(since + limit - time.monotonic()):
                    doing = f"the last it said was: {last}" if up else "it did not boot"
                    return Outcome(up, self._wrong(f"hung: nothing ended within {limit:.0f} s; {doing}"))
                block = os.read(process.stdout.fileno(), 65536)
                *lines, rest = (rest + block).split(b"\n")
                for line in (one.decode(errors="replace").rstrip("\r") for one in lines):
                    up = up or line.startswith("@up")
                    last = line.strip() or last
                    self.say(line)
                    new = self.limit(line)
                    if new is not None:
                        limit, since = new, time.monotonic()
                if not block:
                    break
        status = process.wait()
        if status == 0:
            return Outcome(up, "")
        if ending():
            return Outcome(up, f"{self.kernel.name}: ended before its time, as the whole run was")
        what = f"ended with status {status}" if up else "did not boot"
        return Outcome(up, self._wrong(f"{what}; the last it said was: {last or self.last_of_console()}"))

    def _wrong(self, what: str) -> str:
        return f"{self.kernel.name}: the guest {what}; its console: {self.console}"

    def last_of_console(self) -> str:
        """The last line of the console that says something."""
        try:
            text = self.console.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "nothing"
        lines = [line for line in map(plain, text.splitlines()) if line]
        return lines[-1] if lines else "nothing"


def plain(line: str) -> str:
    """Without the terminal's control sequences, which the firmware and QEMU print."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[\x00-\x1f]", "", line).strip()


def find_accelerator(kernel: Kernel, directory: Path) -> tuple[bool, str]:
    """Whether guests can use KVM, by trying it, and a line that says so."""
    slow = "guests run without KVM, 10 to 20 times slower"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return False, f"there is no {KVM} for us: {slow}"
    guest = Guest(kernel, directory, kvm=True)
    outcome = guest.run(
        "grep -q kvm-clock /sys/devices/system/clocksource/clocksource0/available_clocksource", [], KVM_TRIAL
    )
    if not outcome.wrong:
        return True, f"{KVM} works"
    return False, f"{KVM} is there, and {kernel.name} does not boot with it ({guest.last_of_console()}): {slow}"


def quoted(path: Path) -> str:
    """For a shell."""
    return shlex.quote(str(path))


def end_on_signals() -> None:
    """SIGTERM and SIGHUP unwind like ctrl-C, so that everything that was started ends and is removed."""

    def unwind(number: int, _frame: object) -> None:
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # once is enough
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unwind)
