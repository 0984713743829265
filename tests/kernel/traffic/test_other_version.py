# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which a newer version of the collection limits: its maps have a layout that this one does not know. It is
left alone and told, with a remedy that works.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.tests.support import limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import Child, child, refused, until
from ansible_collections.speed_limiter.ebpf.tests.support.connections import borrowed
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import SOURCE, compile_object
from ansible_collections.speed_limiter.ebpf.tests.support.net import Pair, Process
from ansible_collections.speed_limiter.ebpf.tests.support.running_kernel import RELEASES
from ansible_collections.speed_limiter.ebpf.tests.support.scene import MBIT, assert_held

RATE = 10 * MBIT
OTHER = layout.SCHEMA + 1
MORE = 8  # bytes that its states and what it tells sockets have more
GROWN = {"rate_limit_state_map": "struct rate_limit_state {", "rate_limit_pacing_map": "struct rate_limit_pacing {"}


@pytest.fixture
def other_object(tmp_path: Path) -> str:
    """A program that limits and paces, with a layout of its own."""
    source = tmp_path / "bpf"
    shutil.copytree(SOURCE, source)
    text = (source / "layout.h").read_text()
    for begin in GROWN.values():
        before, after = text.split(begin)
        fields, end = after.split("\n};", 1)
        text = f"{before}{begin}{fields}\n\t__u64 of_another_version;\n}};{end}"
    (source / "layout.h").write_text(text)
    return str(compile_object(source / "limiter.bpf.c", tmp_path / "other.o"))


@pytest.fixture
def resident() -> Iterator[Child]:
    with child() as process:
        yield process


@pytest.fixture
def sender(network: Pair, other_object: str, resident: Child) -> Iterator[Process]:
    """Of a service that the other version limits in place; ``resident`` is in another of its rules."""
    with limiter.clean_host() as cgroups:
        service = Path(cgroups.absolute("/service"))
        service.mkdir()
        try:
            with pytest.MonkeyPatch.context() as patch:
                grown = tuple(
                    row._replace(value=struct.Struct(f"{row.value.format}{MORE}x")) if row.name in GROWN else row
                    for row in catalog.MAPS
                )
                patch.setattr(catalog, "MAPS", grown)
                patch.setattr(catalog, "LIMITER", catalog.LIMITER._replace(maps=grown))
                for name in ("STATE", "PACING"):
                    patch.setattr(layout, name, struct.Struct(f"{getattr(layout, name).format}{MORE}x"))
                limiter.program(object=other_object)
                limiter.rule(name="service", rate=str(RATE), cgroup_path="/service")
                limiter.rule(name="resident", rate="1m", pid=resident.pid)
                with limiter.opened_maps() as maps:
                    maps.write_control(maps.control()._replace(schema=OTHER))
            started = network.send_tcp(cgroup=service, connections=2)
            yield started
        finally:
            network.stop()
            limiter.purge("all")
            until(lambda: not (service / "cgroup.procs").read_text())
            service.rmdir()


def paced(sender: Process) -> list[bool]:
    """Of each of its connections, whether it was told how fast it may send."""
    with borrowed(sender.pid) as connections:
        return [connection.pacing < RATE for connection in connections]


def home_of(process: Child) -> str:
    return Path(f"/proc/{process.pid}/cgroup").read_text().strip().rpartition(":")[2]


@pytest.mark.parametrize("check", [True, False], ids=["check mode", "really"])
def test_it_goes_on_limiting_and_every_task_says_what_to_do(network: Pair, sender: Process, check: bool) -> None:
    pinned = sorted(limiter._listed(pins.PIN_DIR))
    tasks: dict[str, dict[str, Any]] = {
        "speed_limit_rule": {"name": "service", "rate": "5m"},
        "speed_limit_rules": {"rules": [{"name": "new", "rate": "5m"}]},
        "speed_limit_program": {"state": "reloaded"},
        "speed_limit_purge": {"scope": "rules"},
    }
    for task, options in tasks.items():
        with refused("other_schema") as errors:
            limiter.task(task, check=check, **options)
        for words in (
            f"their schema is {OTHER}, this version's is {layout.SCHEMA}",
            "speed_limit_purge with scope=all",
            "still hold",
        ):
            assert words in str(errors[0])
    assert sorted(limiter._listed(pins.PIN_DIR)) == pinned
    assert_held(network, RATE)
    until(lambda: paced(sender) == [True, True])


def test_information_names_the_program_and_the_rules_and_what_to_do(sender: Process, other_object: str) -> None:
    found = limiter.info()
    assert [(rule["name"], rule["rate"], rule["use"]) for rule in found["rules"]] == [
        ("resident", None, None),
        ("service", None, None),
    ]
    assert limiter.info(cgroup_path="/service", gather=["rules"])["rules"] is None
    assert found["program"]["identity"].startswith("object:")
    assert [entry["cgroup"] for entry in found["hook"] if entry["ours"]] == ["/"]
    assert any("scope=all" in text for text in found["host"]["missing"])
    assert any("scope=all" in text for text in limiter.info(gather=["rules"])["unseen"])


def test_a_purge_of_everything_ends_it_releases_its_connections_and_makes_room(
    network: Pair, sender: Process, resident: Child
) -> None:
    until(lambda: paced(sender) == [True, True])
    pinned = set(limiter._listed(pins.PIN_DIR))
    foretold = limiter.purge("all", check=True)
    assert set(limiter._listed(pins.PIN_DIR)) == pinned
    done = limiter.purge("all")
    assert done["changed"]
    assert (done["removed"], done["diff"], done["warnings"]) == (
        foretold["removed"],
        foretold["diff"],
        foretold["warnings"],
    )
    removed = done["removed"]
    assert ([found["name"] for found in removed["rules"]], removed["pids"], set(removed["pins"])) == (
        ["resident", "service"],
        [resident.pid],
        pinned,
    )
    assert removed["program"].startswith("object:")
    assert "program: object:" in done["diff"]["before"]
    assert limiter.snapshot() == limiter.nothing()
    assert "speed_limiter" not in home_of(resident)
    until(lambda: paced(sender) == [False, False])
    assert limiter.rule(name="service", rate=str(RATE // 2), cgroup_path="/service")["changed"]
    assert_held(network, RATE // 2)


@pytest.mark.skipif(not RELEASES, reason="before Linux 6.1 there is no other way")
def test_connections_are_released_one_by_one_where_no_iterator_does_it(sender: Process) -> None:
    until(lambda: paced(sender) == [True, True])
    Path(pins.path(catalog.SETTLE.link)).unlink()
    assert limiter.purge("all")["warnings"] == []
    assert paced(sender) == [False, False]
