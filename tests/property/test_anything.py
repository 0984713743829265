# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever somebody writes as an option, calls a process or a cgroup, or leaves in a file or a map: a user reads a
sentence, and never a traceback.

ANYTHING_CASES=100000 pytest --timeout=0 tests/property/test_anything*.py tries more than a million.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import (
    catalog,
    containers,
    layout,
    names,
    pacing,
    patterns,
    places,
    rates,
    schemas,
    stored,
    units,
    use,
)
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.layout import State
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.model import Selector
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.front import task
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host import memory, mounts
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups import processes, selection
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from cases import many
from hypothesis import given
from hypothesis import strategies as st

words = st.sampled_from(
    [
        *(
            "",
            " ",
            "0",
            "-1",
            "1",
            "5m",
            "1e400",
            "10mbit",
            "nan",
            "yes",
            "True",
            "[",
            "{}",
            "a\0b",
            "a\nb",
            "..",
            "/..",
            "*",
            "a*b*",
        ),
        *(
            "/",
            "//",
            "/a/../b",
            "/speed_limiter/web",
            "/sys/fs/cgroup",
            "/system.slice/*.service",
            "(",
            "(a+)+$",
            "web",
            "x" * 300,
        ),
        *("\ud800", "\udcff", "ü", "²", "٣", "𝟙", "web.service", "user@1.service", "pid-1", "memory.max", "a@.service"),
    ]
)
texts = st.one_of(words, st.text(max_size=40), st.text(alphabet="abc0123456789.*/@-_kmgbit \\", max_size=20))
numbers = st.one_of(st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats())
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
RULE = (
    "name",
    "state",
    "rate",
    "bucket",
    "pids",
    "processes",
    "children",
    "cgroup_paths",
    "cgroup_id",
    "last",
    "each",
) + (*("units", "users", "containers", "everything", "persistent"),)
options = st.dictionaries(st.sampled_from(RULE), values, max_size=6)
sound = st.fixed_dictionaries(
    {},
    optional={
        "name": texts,
        "state": st.sampled_from(["present", "absent"]),
        "rate": st.one_of(texts, numbers),
        "bucket": st.one_of(texts, numbers),
        "pids": st.lists(st.integers(-2, 2**40), max_size=3),
        "processes": st.dictionaries(st.sampled_from(["name", "exe", "cmdline", "user"]), texts, max_size=3),
        "cgroup_paths": st.lists(texts, max_size=3),
        "units": st.lists(texts, max_size=3),
        "users": st.lists(texts, max_size=3),
        "containers": st.lists(texts, max_size=3),
        "each": st.booleans(),
        "last": st.booleans(),
        "cgroup_id": numbers,
    },
)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What is refused is refused in words."""
    try:
        yield
    except LimiterError as error:
        assert error.kind and error.what and str(error)


@many
@given(given_options=st.one_of(options, sound))
def test_options_of_a_rule(given_options: dict[str, Any]) -> None:
    with told():
        parse("speed_limit_rule", given_options)


@many
@given(listed=st.one_of(values, st.lists(st.one_of(options, sound), max_size=4)))
def test_options_of_many_rules(listed: Any) -> None:
    with told():
        parse("speed_limit_rules", {"rules": listed})


def parse(module: str, given_options: dict[str, Any]) -> None:
    """As a module does before it looks at the host."""
    _work, validator, more = limiter._module(module)
    validated = validator.validate(task.given(given_options, validator.argument_spec))
    if not validated.error_messages:
        more["parse"](validated.validated_parameters)


@many
@given(text=texts, value=values)
def test_names_paths_rates_and_patterns(text: str, value: Any) -> None:
    for look in (
        lambda: names.check_rule_name("name", text),
        lambda: rates.parse_rate("rate", value),
        lambda: rates.parse_bucket("bucket", value),
        lambda: places.normal("cgroup_paths", text),
        lambda: Cgroups("/sys/fs/cgroup").relative("cgroup_path:", text),
        lambda: Cgroups("/sys/fs/cgroup").identifier(text),
        lambda: units.full_name("units", text),
        lambda: containers.check_name("containers", text),
        lambda: selection._expression(Selector(cmdline=text)),
    ):
        with told():
            look()


@many
@given(listed=st.lists(st.tuples(texts, st.sampled_from(["a", "b", "c"])), max_size=8), cgroup=texts)
def test_sets_of_patterns(listed: list[tuple[str, str]], cgroup: str) -> None:
    wanted: dict[patterns.Pattern, str] = {}
    for text, rule in listed:
        with told():
            wanted.setdefault(patterns.parse("cgroup_paths", text), rule)
    with told():
        if wanted:
            patterns.rules_on(patterns.compile_graph(wanted), "/" + cgroup.strip("/"))


# Bytes that a process, or who makes cgroups, can choose; the rest is the kernel's own.
chosen = st.binary(max_size=60)
paths = chosen.map(lambda text: b"/" + text.replace(b"\n", b"").replace(b"\0", b""))


@many
@given(
    comm=chosen,
    cmdline=st.one_of(st.none(), chosen),
    cgroup=st.one_of(st.none(), paths),
    state=st.sampled_from("RSDZXT"),
)
def test_what_proc_says_of_a_process(comm: bytes, cmdline: bytes | None, cgroup: bytes | None, state: str) -> None:
    name = comm.replace(b"\0", b"")[:15]
    numbers_of_it = b" ".join(str(number).encode() for number in range(3, 50))
    files = {
        "stat": b"77 (" + name + b") " + state.encode() + b" 1 " + numbers_of_it + b"\n",
        "cmdline": cmdline,
        "comm": name + b"\n",
        "cgroup": None if cgroup is None else b"12:pids:/x\n0::" + cgroup + b"\n",
        "status": b"Name:\t" + name.replace(b"\n", b"\\n") + b"\nTgid:\t77\nUid:\t5\t5\t5\t5\n",
        "children": b"",
    }
    with mock.patch.object(processes, "read_file", lambda path: files.get(path.rpartition("/")[2])):
        found = processes.read(77)
        assert found is None or found.pid == 77
        assert len(processes._command_line(77)) <= 80
        assert "\n" not in processes.name_and_user(77)
        assert processes.leader(77) == 77
        processes.is_kernel_thread(77)
        assert processes.ancestors(77) == [1] or state


@many
@given(
    points=st.lists(st.text(st.characters(blacklist_characters=" \n\t\\#"), min_size=1, max_size=20), max_size=5),
    optional=st.lists(st.sampled_from(["shared:1", "master:2", "propagate_from:3", "unbindable"]), max_size=3),
    kind=st.sampled_from(["cgroup2", "bpf", "cgroup", "fuse.x", "tmpfs"]),
)
def test_mounts(points: list[str], optional: list[str], kind: str) -> None:
    lines = [
        " ".join(["36", "35", "0:30", "/", f"/{point}\\040\\134\\012", "rw", *optional, "-", kind, f"{point}", "rw"])
        + "\n"
        for point in points
    ]
    assert {mount.point for mount in mounts.parse(lines)} == {f"/{point} \\\n" for point in points}


awkward = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))


@many
@given(numbers_there=st.lists(awkward, max_size=80), now=st.integers(0, 2**64 - 1))
def test_what_is_in_the_maps(numbers_there: list[int], now: int) -> None:
    data = struct.pack(f"={len(numbers_there)}Q", *numbers_there).ljust(640, b"\0")
    layout.unpack_control(data[: layout.CONTROL.size])
    layout.unpack_pacing(data[: layout.PACING.size])
    for schema in (*schemas.FORMER, layout.SCHEMA):

        def part(row: catalog.MapRow, schema: int = schema) -> bytes:
            return data[: schemas.layout_of(row, schema).value.size]

        found = schemas.unpack_limit(schema, part(catalog.CONFIG))
        state = schemas.unpack_state(schema, part(catalog.STATE))
        shown(found, state, now)
        shown(Limit(0, 0), state, now)
        shown(None, state, now)
        if schema != layout.SCHEMA:
            schemas.taken_over(catalog.STATE, schema, part(catalog.STATE))
            _state, carried = schemas.first_copy(schema, part(catalog.STATE), now, found)
            schemas.to_carry(schema, part(catalog.STATE), carried, found)


def shown(limit: Limit | None, state: State, now: int) -> None:
    for ability in (
        pacing.Ability("on", None, adopts=True),
        pacing.Ability("off", None, adopts=False, settles=False),
        pacing.Ability(None, None, adopts=False),
    ):
        json.dumps([pacing.of_rule(ability, limit, state.fair, now), use.of_rule(ability, limit, state, now)])
    json.dumps(state.counters.about())


@many
@given(
    value=st.one_of(
        values,
        st.fixed_dictionaries(
            {"schema": values}, optional={"rate": values, "bucket": values, "places": values, "each": values}
        ),
    )
)
def test_stored_rules(value: Any) -> None:
    stored.show(stored.from_json(value))


REMEMBERED = ("boot_id", "origins", "automatic", "homes", "last", "unsettled", "settling")


@many
@given(
    text=st.one_of(
        st.binary(max_size=60),
        st.builds(lambda value: json.dumps(value).encode(), values),
        st.builds(
            lambda value: json.dumps({**dict.fromkeys(REMEMBERED, {}), **value, "boot_id": memory._boot_id()}).encode(),
            st.dictionaries(st.sampled_from(REMEMBERED[1:]), values, max_size=6),
        ),
    )
)
def test_what_was_remembered(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(text)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with contextlib.suppress(memory._BrokenError):
            memory._load(fd)
    finally:
        os.close(fd)


@many
@given(
    output=st.one_of(
        texts, values.map(functools.partial(json.dumps, default=str)), st.lists(texts, max_size=6).map("\n".join)
    )
)
def test_what_commands_print(output: str) -> None:
    for look in (
        lambda: units.parse(output),
        lambda: containers.of_docker("docker", ["web"], output),
        lambda: containers.listed_by_crictl(["web"], output),
        lambda: containers.of_crictl(output),
        lambda: containers.of_lxc("web", output),
        lambda: containers.of_machinectl("web", output),
    ):
        with told():
            look()
