# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk image of the files that the steps read most, which guests lay over the same files in 9p.

Before Linux 5.17 9p reads what is mapped or cached by single pages, a message each: a module of Ansible took minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from .fetch import with_sbin
from .machine import CHECKOUT

SECONDS = 300
PACKAGES = (
    "ansible ansible_core-* jinja2 markupsafe yaml _yaml packaging resolvelib cryptography cffi _cffi_backend* psutil "
    "pytest _pytest pluggy iniconfig pygments _hypothesis* *.dist-info *.pth"
)
TOOLS = ("bpftool", "clang", "ethtool", "ip", "tc", "python3")


def make(directory: Path) -> Path:
    """Makes the image, an ext4 with the directories ``usr`` and ``checkout``."""
    stage, image = directory / "stage", directory / "image.ext4"
    shutil.rmtree(stage, ignore_errors=True)
    for part in ("usr", "checkout"):
        (stage / part).mkdir(parents=True)
    modules = libraries()
    copy(Path("/usr"), stage / "usr", [*modules, *programs(modules)], "--exclude=*/test", "--exclude=*/dist-packages")
    copy(CHECKOUT, stage / "checkout", [*tracked(), *packages()])
    size = int(subprocess.run(["du", "-sk", str(stage)], capture_output=True, text=True, check=True).stdout.split()[0])
    image.unlink(missing_ok=True)
    options = ["-q", "-O", "^has_journal", "-m", "0", "-N", str(2 * len(list(stage.rglob("*"))) + 1000)]
    command = ["mke2fs", "-t", "ext4", *options, "-d", str(stage), str(image), f"{size * 6 // 5 + 65536}k"]
    subprocess.run(command, check=True, timeout=SECONDS, env=with_sbin(), stdout=subprocess.DEVNULL)
    shutil.rmtree(stage)
    return image


def copy(source: Path, target: Path, names: list[str], *options: str) -> None:
    """Copies files and whole directories, named relative to ``source``, as they are."""
    listed = "".join(f"{name}\0" for name in dict.fromkeys(names))
    pack = ["tar", "-C", str(source), *options, "--null", "--verbatim-files-from", "-T", "-", "-cf", "-"]
    with subprocess.Popen(pack, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packer:
        assert packer.stdin
        unpacker = subprocess.Popen(["tar", "-C", str(target), "-xf", "-"], stdin=packer.stdout)
        packer.stdin.write(os.fsencode(listed))
        packer.stdin.close()
        failed = unpacker.wait(SECONDS) or packer.wait(SECONDS)
    if failed:
        raise RuntimeError(f"files of {source} could not be copied")


def libraries() -> list[str]:
    """Python's own modules, where the distribution has them."""
    place = Path(sysconfig.get_path("stdlib", vars={"base": "/usr", "installed_base": "/usr"})).resolve()
    return [str(place.relative_to("/usr"))] if place.is_relative_to("/usr") and place.is_dir() else []


def programs(modules: list[str]) -> list[str]:
    """The programs that are used, and the shared libraries of each and of Python's own modules, which are in these
    directories; the files themselves, not links to them.
    """
    tools = [path for path in (shutil.which(tool, path="/usr/bin:/usr/sbin") for tool in TOOLS) if path]
    users = [*tools, *(str(path) for one in modules for path in Path("/usr", one).glob("lib-dynload/*.so"))]
    shown = subprocess.run(["ldd", *users], capture_output=True, text=True, check=False, timeout=SECONDS).stdout
    found = [*tools, *re.findall(r"(/\S+) \(0x", shown)]
    paths = [Path(name).resolve() for name in found]
    return [str(path.relative_to("/usr")) for path in paths if path.is_relative_to("/usr")]


def tracked() -> list[str]:
    """The files of the checkout, and new ones that git does not ignore."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in listed if name and os.path.lexists(CHECKOUT / name)]


def packages() -> list[str]:
    """What the steps import of .venv."""
    site = next((CHECKOUT / ".venv/lib").glob("python3*/site-packages"))
    found = [path for pattern in PACKAGES.split() for path in site.glob(pattern)]
    return [str(path.relative_to(CHECKOUT)) for path in found]
