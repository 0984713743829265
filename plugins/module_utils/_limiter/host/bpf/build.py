# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiling the program on this host, once for each combination of source, compiler, kernel types and architecture.

Commands run through ``run_command``, which is AnsibleModule's: (list of arguments) -> (return code, output, errors).
hashlib is imported where it is used: that takes time, and most tasks build nothing.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import typing as t

from ...core import catalog
from ...core.errors import LimiterError
from .. import files, tools
from ..errnos import errno_text
from ..kernel import BTF

RunCommand = t.Callable[..., "tuple[int, str, str]"]

SOURCE_DIR = "/usr/share/speed_limiter/src"
OBJECT = "/usr/lib/speed_limiter/limiter.bpf.o"
STAMP = f"{OBJECT}.json"  # what OBJECT was built from; written after it

OLDEST_CLANG = 12  # the first that tells the program which helpers a kernel has (__builtin_preserve_enum_value)
# v3: the newest instruction set that kernel 5.10 has.
FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall")
# As libbpf's bpf_tracing.h calls them.
_ARCHITECTURES = {
    "x86_64": "x86",
    "i686": "x86",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "powerpc",
    "s390x": "s390",
    "riscv64": "riscv",
    "loongarch64": "loongarch",
}
_SEARCHED = ("/usr/local/bin", "/usr/bin")
_ELSEWHERE = "or build the object on another host and name it with the option object (the role setup can do that)"


class Inputs(t.NamedTuple):
    """All that an object depends on; ``identity`` is ``source:`` and 48 hexadecimal digits."""

    identity: str
    compiler: str  # path
    architecture: str  # as uname says it


def inputs(run_command: RunCommand) -> Inputs:
    """What an object would be built from now. Raises LimiterError: ``no_compiler``, ``no_btf``."""
    import hashlib

    compiler, version = find_compiler(run_command)
    architecture = os.uname().machine
    digest = hashlib.sha256()
    for part in (version, _btf_digest(), architecture, " ".join(FLAGS), *_source_parts()):
        digest.update(part.encode() + b"\0")
    return Inputs(f"source:{digest.hexdigest()[:48]}", compiler, architecture)


def find_compiler(run_command: RunCommand) -> tuple[str, str]:
    """The path of clang, and what it says of its version. Raises LimiterError ``no_compiler``.

    `clang`, or where that is too old or not there the newest that has a number in its name, as Debian 11 has them.
    """
    unfit: list[str] = []
    for name in itertools.chain(["clang"], _numbered_compilers()):
        compiler = tools.find(name)
        if compiler is None:
            continue
        code, version, errors = run_command([compiler, "--version"], check_rc=False)
        if code != 0:
            unfit.append(f"{compiler} does not run: {errors.strip()}")
            continue
        number = re.search(r"clang version (\d+)", version)
        if number is None or int(number.group(1)) >= OLDEST_CLANG:
            return compiler, version
        unfit.append(f"{compiler} is {number.group()}, {OLDEST_CLANG} or newer is needed")
    raise LimiterError(
        "no_compiler",
        "the BPF program cannot be compiled",
        "; ".join(unfit) or "clang is not installed",
        "Install clang (on Debian 11 clang-13) and libbpf-dev (Debian, Ubuntu) or clang and libbpf-devel (Fedora, "
        f"RHEL, SUSE), {_ELSEWHERE}",
    )


def _numbered_compilers() -> t.Iterator[str]:
    """The newest first. A generator: where `clang` will do, the directories are not read."""
    names = {os.path.basename(path) for directory in _SEARCHED for path in glob.glob(f"{directory}/clang-[0-9]*")}
    yield from sorted((name for name in names if name[6:].isdigit()), key=lambda name: int(name[6:]), reverse=True)


def up_to_date(wanted: Inputs) -> bool:
    """Whether the object that lies there was built, completely, from these inputs."""
    return built_identity() == wanted.identity


def built_identity() -> str | None:
    """The identity of what the object that lies there was built from, if it was built here and is as it was."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            stamp = json.load(file)
        if any(files.distrust(os.stat(path, follow_symlinks=False)) for path in (STAMP, OBJECT)):
            return None
        return str(stamp["identity"]) if stamp["sha256"] == _digest(OBJECT) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build(run_command: RunCommand) -> str:
    """Compiles the object and returns its path.

    Raises LimiterError: as `inputs`, ``no_libbpf_headers``, ``compile_failed``, ``cannot_write``.
    """
    made = inputs(run_command)
    try:
        for directory in (os.path.dirname(SOURCE_DIR), SOURCE_DIR, os.path.dirname(OBJECT)):
            _make_directory(directory)
        for name, text in _sources().items():
            files.write(os.path.join(SOURCE_DIR, name), text.encode())
        files.write(os.path.join(SOURCE_DIR, "vmlinux.h"), vmlinux_header(run_command).encode())
        unfinished = f"{OBJECT}.new"
        _compile(run_command, made, unfinished)
        files.put_in_place(unfinished, OBJECT)
        stamp = {"identity": made.identity, "sha256": _digest(OBJECT)}
        files.write(STAMP, (json.dumps(stamp) + "\n").encode())
    except OSError as error:
        what = f"{error.filename or OBJECT} cannot be written"
        remedy = f"Make room there, or make it writable, {_ELSEWHERE}"
        raise LimiterError("cannot_write", what, errno_text(error), remedy) from error
    return OBJECT


def identity_of_object(path: str) -> str:
    """``object:`` and 48 hexadecimal digits, of the file's content. Raises LimiterError ``no_object``."""
    try:
        return f"object:{_digest(path)[:48]}"
    except OSError as error:
        raise LimiterError("no_object", f"the object {path} cannot be read", errno_text(error)) from error


def check_owner(path: str) -> None:
    """Refuses an object that someone else could change between this look and its loading: ``unsafe_object``."""
    try:
        why = files.distrust_way(path)
    except OSError as error:
        raise LimiterError("no_object", f"the object {path} cannot be read", errno_text(error)) from error
    if why is not None:
        raise LimiterError(
            "unsafe_object",
            f"the object {path} cannot be trusted",
            why,
            f"Put it where only root can write, such as {os.path.dirname(OBJECT)} (chown root, chmod go-w)",
        )


def check_headers(run_command: RunCommand) -> None:
    """Refuses, without building anything, where libbpf's headers are missing: ``no_libbpf_headers``."""
    compiler = inputs(run_command).compiler
    code, _out, errors = run_command(
        [compiler, "-target", "bpf", "-E", "-include", "bpf/bpf_helpers.h", "-x", "c", "/dev/null"], check_rc=False
    )
    if code != 0 and "bpf/bpf_helpers.h" in errors and "not found" in errors:
        raise _no_headers()


def vmlinux_header(run_command: RunCommand) -> str:
    """The running kernel's types as C: by bpftool, or by libbpf where no bpftool runs (Ubuntu's may be a wrapper)."""
    bpftool = tools.find("bpftool")
    if bpftool is not None:
        code, output, _errors = run_command([bpftool, "btf", "dump", "file", BTF, "format", "c"], check_rc=False)
        if code == 0 and "preserve_access_index" in output and output.rstrip().endswith("#endif /* __VMLINUX_H__ */"):
            return output
    return _header_by_libbpf()


def _header_by_libbpf() -> str:
    from . import libbpf

    bpf = libbpf.load()
    parts: list[str] = []

    @bpf.ffi.callback("void(void *, const char *, void *)")  # type: ignore[untyped-decorator, unused-ignore]
    def keep(_context: t.Any, form: t.Any, arguments: t.Any) -> None:
        parts.append(bpf.format(form, arguments))

    types = bpf.pointer("btf__load_vmlinux_btf")
    try:
        dump = bpf.pointer("btf_dump__new", types, keep, bpf.ffi.NULL, bpf.ffi.NULL)
        try:
            for identifier in range(1, bpf.run("btf__type_cnt", types)):
                bpf.call("btf_dump__dump_type", dump, identifier)
        finally:
            bpf.run("btf_dump__free", dump)
    finally:
        bpf.run("btf__free", types)
    return (
        "#ifndef __VMLINUX_H__\n#define __VMLINUX_H__\n\n"
        "#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)\n\n"
        f"{''.join(parts)}\n#pragma clang attribute pop\n\n#endif /* __VMLINUX_H__ */\n"
    )


def _compile(run_command: RunCommand, made: Inputs, output: str) -> None:
    target = _ARCHITECTURES.get(made.architecture, made.architecture)
    source = os.path.join(SOURCE_DIR, catalog.LIMITER.source)
    arguments = [*FLAGS, f"-D__TARGET_ARCH_{target}", "-I", SOURCE_DIR, "-c", source, "-o", output]
    code, out, errors = run_command([made.compiler, *arguments], check_rc=False)
    if code == 0:
        return
    said = "\n".join((errors or out).strip().splitlines()[-20:])
    if "bpf/bpf_helpers.h" in said and "not found" in said:
        raise _no_headers()
    remedy = (
        f"clang {OLDEST_CLANG} or newer and libbpf's headers of 1.0 or newer are needed; the source is in {SOURCE_DIR}"
    )
    raise LimiterError("compile_failed", f"{made.compiler} did not compile {source}", said, remedy)


def _no_headers() -> LimiterError:
    return LimiterError(
        "no_libbpf_headers",
        "the BPF program cannot be compiled",
        "libbpf's headers (bpf/bpf_helpers.h) are not installed",
        "Install libbpf-dev (Debian, Ubuntu) or libbpf-devel (Fedora, RHEL, SUSE). Where the distribution's are older "
        "than 1.0 (Debian 11, Ubuntu 22.04), the role setup compiles libbpf: setup_libbpf_source. Or build the object "
        "on another host and name it with the option object",
    )


def _sources() -> dict[str, str]:
    # Imported where it is used: a large module that most tasks don't need.
    from ...generated.bpf_source import SOURCES

    return SOURCES


def _source_parts() -> list[str]:
    return [part for name, text in sorted(_sources().items()) for part in (name, text)]


def _btf_digest() -> str:
    try:
        return _digest(BTF)
    except OSError as error:
        raise LimiterError(
            "no_btf",
            f"the kernel's type information {BTF} cannot be read",
            errno_text(error),
            "Run a kernel with CONFIG_DEBUG_INFO_BTF (the distributions' own kernels have it); an object built "
            "elsewhere needs it, too",
        ) from error


def _digest(path: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _make_directory(path: str) -> None:
    if not os.path.isdir(path):
        os.mkdir(path)
        os.chmod(path, 0o755)  # whatever the task's umask is
