# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports of the kernel side, opened for one test, and everything that they left behind removed after it."""

from __future__ import annotations

import contextlib
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import build, pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf, load
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter, stored, systemd
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import cgroup2, compile_object, load_program
from ansible_collections.speed_limiter.ebpf.tests.support.foreign import SOMEONE_ELSES
from ansible_collections.speed_limiter.ebpf.tests.support.homes import Make, Service, making, service_in_a_slice
from ansible_collections.speed_limiter.ebpf.tests.support.net import Pair
from ansible_collections.speed_limiter.ebpf.tests.support.queues import queued
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import APART, FIRST, OBJECT
from ansible_collections.speed_limiter.ebpf.tests.support.scene import Scene, staged
from ansible_collections.speed_limiter.ebpf.tests.support.slow import SLOW

Compile = t.Callable[[str], str]


def pytest_report_header() -> str:
    spoiled = "every step" if APART == 1 else f"one step of {APART}, LIMITER_FIRST_STEP={FIRST}"
    machine = "an emulated machine: lower rates, wider bounds" if SLOW else "no emulated machine"
    return f"kernel: {os.uname().release}; object: {OBJECT or 'built here'}; {machine}; tasks spoiled before {spoiled}"


def pytest_sessionstart() -> None:
    if not os.path.isdir("/run/sandbox"):
        pytest.exit("these tests change the host: run  tests/sandbox PYTHON -m pytest tests/kernel", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What spoils the kernel comes last, and what spoils most the very last."""

    def spoiled(item: pytest.Item) -> int:
        marker = item.get_closest_marker("spoils_kernel")
        return int(marker.args[0]) if marker else 0

    items.sort(key=spoiled)


@pytest.fixture
def libbpf() -> Libbpf:
    return load()


@pytest.fixture(scope="session")
def limiter_object(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real program, built by the collection itself; a copy, since tests of the build remove the original."""
    path = tmp_path_factory.mktemp("object") / "limiter.bpf.o"
    path.write_bytes(Path(build.build(limiter.run_command)).read_bytes())
    return str(path)


@pytest.fixture(scope="session")
def stand_in_object(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For tests that load a program dozens of times, whatever it does."""
    path = tmp_path_factory.mktemp("stand_in") / "limiter.bpf.o"
    with limiter.stand_in():
        path.write_bytes(Path(build.build(limiter.run_command)).read_bytes())
    return str(path)


@pytest.fixture
def cgroups() -> t.Iterator[t.Callable[[str], str]]:
    """Makes cgroups, named by their path below the mount; they are gone after the test."""
    made: list[Path] = []

    def make(path: str) -> str:
        directory = Path(f"{cgroup2()}{path}")
        directory.mkdir()
        made.append(directory)
        return path

    yield make
    for directory in reversed(made):
        if directory.is_dir():
            directory.rmdir()


def descriptors() -> set[tuple[str, str]]:
    """Open descriptors of BPF objects and cgroups."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # listdir's own
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(("anon_inode:", str(cgroup2()))):
                found.add((fd, target))
    return found


@pytest.fixture
def attachments(libbpf: Libbpf, cgroups: t.Callable[[str], str]) -> t.Iterator[Attachments]:
    """Nothing is loaded or pinned, and no descriptor may be left open."""
    before = descriptors()
    it = Attachments(libbpf, str(cgroup2()))
    yield it
    it.unload()
    it.remove_maps()
    assert not os.path.exists(pins.PIN_DIR)
    assert descriptors() <= before


@pytest.fixture
def maps(attachments: Attachments, limiter_object: str, libbpf: Libbpf) -> t.Iterator[Maps]:
    """The maps of a program that has just been loaded."""
    attachments.load(limiter_object, "source:test", "/")
    opened = Maps.open(libbpf)
    assert opened is not None
    with opened:
        yield opened


@pytest.fixture(scope="module")
def clean_host() -> t.Iterator[Cgroups]:
    """For tests that share a loaded program, which is slow to load."""
    with limiter.clean_host() as found:
        yield found


@pytest.fixture
def made(cgroups: Cgroups) -> t.Iterator[Make]:
    """Makes homes of processes, on the host that a file's own fixture `cgroups` gives each of its tests."""
    with making(cgroups) as make:
        yield make


@pytest.fixture
def service(made: Make) -> t.Iterator[Service]:
    with service_in_a_slice(made) as it:
        yield it


@pytest.fixture(scope="module")
def network() -> t.Iterator[Pair]:
    """Two namespaces, which are slow to make."""
    with Pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def host(network: Pair) -> t.Iterator[systemd.Host]:
    """A host with systemd, in the sender's namespace: `network` counts what it sends."""
    if not os.path.exists(systemd.PROGRAM):
        pytest.skip("systemd is not installed on this machine")
    with systemd.booted(network.sender) as it:
        yield it


@pytest.fixture
def scene(network: Pair, clean_host: Cgroups) -> t.Iterator[Scene]:
    """Nothing is limited yet, and nobody sends."""
    with staged(network, clean_host) as it:
        yield it


@pytest.fixture
def fq(scene: Scene) -> t.Iterator[Scene]:
    """A sender whose device has fq."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(queued(scene.pair, "fq"))
        except RuntimeError:
            pytest.skip("this kernel has no fq")
        yield scene


@pytest.fixture(scope="module")
def empty_host() -> t.Iterator[None]:
    with limiter.stand_in(), limiter.clean_host():
        yield


@pytest.fixture
def built_host(empty_host: None, cgroups: t.Callable[[str], str]) -> t.Iterator[None]:
    """The program has been built, nothing is loaded, and nothing stored."""
    cgroups("/service")
    limiter.program()
    limiter.purge("all")
    yield
    limiter.purge("all")
    for entry in stored.DIRECTORY.glob("*"):
        entry.unlink()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles C text, once for each text."""
    directory = tmp_path_factory.mktemp("foreign")
    objects: dict[str, str] = {}

    def compile_text(text: str) -> str:
        if text not in objects:
            source = directory / f"{len(objects)}.bpf.c"
            source.write_text(text)
            objects[text] = str(compile_object(source, source.with_suffix(".o")))
        return objects[text]

    return compile_text


@pytest.fixture
def attach(compiled: Compile) -> t.Iterator[t.Callable[..., int]]:
    """Attaches someone else's program to a hook, its name ours on egress; by default for itself alone. Gives its id."""
    attached: list[tuple[str, int, int]] = []

    def attach_to(cgroup: str, *flags: str, hook: int = bpf.EGRESS) -> int:
        name = "limit_egress" if hook == bpf.EGRESS else "others_sockops"
        fd = load_program(Path(compiled(SOMEONE_ELSES)), name)
        fields = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
        directory = f"{cgroup2()}{cgroup}"
        attached.append((directory, fd, hook))
        bpf.attach(directory, fd, hook, sum({"override": 1, "multi": 2}[flag] for flag in flags))
        return int(fields["prog_id"])

    yield attach_to
    for directory, fd, hook in attached:
        with contextlib.suppress(OSError):  # it never was
            bpf.detach(directory, fd, hook)
        os.close(fd)
