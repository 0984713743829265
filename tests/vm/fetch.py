# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of Debian's suites, fetched over the mirror that this machine is set up with, and kept in a cache directory.

apt does it, with lists of its own, so that the machine's own lists and packages stay as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FRESH = 24 * 3600  # seconds for which a kernel that was fetched counts as the newest
MOVING = ("sid", "unstable", "testing")  # suites that get new series
LIMIT = 1200  # seconds that apt and unpacking may take together
OUR_END = ("setpriv", "--pdeathsig", "KILL")  # what is started so dies with who started it


class FetchError(Exception):
    """Why there is no kernel, in one line."""


class Kernel(NamedTuple):
    """A kernel that can be booted. ``modules`` is the directory that holds a directory named ``release``."""

    name: str  # suite-series
    release: str  # as uname -r says it
    package: str  # the package's version
    image: Path
    modules: Path


def fetch(suite: str, series: str, cache: Path) -> Kernel:
    """The newest plain amd64 kernel of a series in a suite. Raises FetchError."""
    place = cache / f"{suite}-{series}"
    known = read(place)
    if known and time.time() - (place / "kernel.json").stat().st_mtime < FRESH:
        return known
    apt = Apt(suite, cache)
    apt.update()
    release, package = apt.newest(series)
    if known and (known.release, known.package) == (release, package):
        os.utime(place / "kernel.json")
        return known
    # Made elsewhere and renamed when it is whole: what was killed half-way is fetched again.
    with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as directory:
        unpack(apt, release, Path(directory))
        record = {"release": release, "package": package}
        (Path(directory) / "kernel.json").write_text(json.dumps(record), encoding="ascii")
        shutil.rmtree(place, ignore_errors=True)
        os.rename(directory, place)
        os.mkdir(directory)  # which its owner removes
    fetched = read(place)
    if fetched is None:
        raise FetchError(f"{suite}: the package of {release} holds no kernel with modules")
    return fetched


def read(place: Path) -> Kernel | None:
    """The kernel that is kept there, if it is whole."""
    try:
        known = json.loads((place / "kernel.json").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    release = known["release"]
    # Newer suites keep the image beside its modules; virtme-ng looks for lib/modules beside boot/.
    image, modules = place / "root/boot" / f"vmlinuz-{release}", place / "root/lib/modules"
    if not image.is_file() or not (modules / release).is_dir():
        return None
    return Kernel(place.name, release, known["package"], image, modules)


def unpack(apt: Apt, release: str, directory: Path) -> None:
    archives, root = directory / "archives", directory / "root"
    archives.mkdir()
    for package in apt.parts(release):
        apt.run("apt-get", "-qq", "download", package, cwd=archives)
    for archive in archives.glob("*.deb"):
        subprocess.run([*OUR_END, "dpkg", "-x", str(archive), str(root)], check=True, timeout=LIMIT)
    shutil.rmtree(archives)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    if (root / "usr/lib/modules" / release / "vmlinuz").exists():
        (root / "boot").mkdir(exist_ok=True)
        (root / "boot" / f"vmlinuz-{release}").symlink_to(f"../usr/lib/modules/{release}/vmlinuz")
    depmod = ["depmod", "-b", str(root), release]  # which some packages leave to their installation
    subprocess.run(depmod, check=True, timeout=LIMIT, env=with_sbin(), stderr=subprocess.DEVNULL)


def mirror() -> str:
    """Debian's archive, as this machine's apt is configured; DEBIAN_MIRROR goes before. Raises FetchError."""
    if os.environ.get("DEBIAN_MIRROR"):
        return os.environ["DEBIAN_MIRROR"]
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise FetchError(f"apt-get does not say where packages come from: {error}") from error
    for address in found:
        if urlsplit(address).path.rstrip("/").rpartition("/")[2] == "debian":
            return address
    raise FetchError("no mirror of Debian is in this machine's apt sources; set DEBIAN_MIRROR to the address of one")


class Apt:
    """apt with the lists of one suite, of which the machine's own apt knows nothing."""

    def __init__(self, suite: str, cache: Path) -> None:
        self.suite, self.address = suite, mirror()
        lists, sources = cache / "lists" / suite, cache / "lists" / f"{suite}.list"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        sources.write_text(f"deb {signed}{self.address} {suite} main\n", encoding="ascii")
        settings = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": lists,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",  # another user could not write below a private directory
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
            "Acquire::https::Timeout": "30",
        }
        self.options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self.deadline = time.monotonic() + LIMIT

    def run(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        command = [*OUR_END, tool, *self.options, *arguments]
        remaining = max(1.0, self.deadline - time.monotonic())
        try:
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=remaining, check=False)
        except subprocess.TimeoutExpired as error:
            raise FetchError(f"{self.suite}: {tool} {arguments[-1]} was not done within {LIMIT} s") from error
        if done.returncode:
            raise FetchError(f"{self.suite}: {tool} {arguments[-1]}: {complaint(done.stderr)}")
        return done.stdout

    def update(self) -> None:
        """Raises FetchError where the suite cannot be reached; old lists would hide that."""
        try:
            self.run("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")
        except FetchError as error:
            raise FetchError(f"the suite {self.suite} cannot be reached: {error}") from error

    def newest(self, series: str) -> tuple[str, str]:
        """Release and package version; the newest of all where a suite that moves on every few weeks has left the
        series behind. Raises FetchError, which says what the suite has instead.
        """
        found = re.findall(r"^linux-image-(\d+\.\d+\S*-amd64) ", self.run("apt-cache", "search", "-n", "."), re.M)
        plain = sorted((name for name in found if not re.search("cloud|rt-", name)), key=numbers)
        matching = [name for name in plain if name.startswith((f"{series}.", f"{series}-", f"{series}+"))]
        if self.suite in MOVING and all(numbers(name)[:2] > numbers(series) for name in plain):
            matching = plain
        if not matching:
            has = ", ".join(sorted({".".join(map(str, numbers(name)[:2])) for name in plain})) or "none"
            raise FetchError(f"the suite {self.suite} has no kernel {series}; it has: {has}")
        release = matching[-1]
        return release, self.field(f"linux-image-{release}", "Version")

    def parts(self, release: str) -> list[str]:
        """The packages that make up a kernel: one, or since Linux 6.17 or so three."""
        image = f"linux-image-{release}"
        depends = re.findall(r"[a-z0-9.+-]+", self.field(image, "Depends"))
        return [image, *(name for name in depends if name in (f"linux-binary-{release}", f"linux-modules-{release}"))]

    def field(self, package: str, name: str) -> str:
        shown = self.run("apt-cache", "show", "--no-all-versions", package)
        found = re.search(rf"^{name}: (.*)$", shown, re.M)
        return found[1] if found else ""


def numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release.partition("-amd64")[0])]


def complaint(errors: str) -> str:
    """The first error in apt's words, on one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return next((line[3:] for line in lines if line.startswith("E: ")), lines[-1] if lines else "no reason was given")


def with_sbin() -> dict[str, str]:
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
