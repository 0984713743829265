# SPDX-License-Identifier: GPL-3.0-or-later
"""A container with a cgroup namespace of its own that was given the host's bpffs: the cgroups of whoever loaded the
limiter mean nothing to the other one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from subprocess import PIPE, Popen
from typing import Any

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.links import Links
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import elsewhere, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import child
from ansible_collections.speed_limiter.ebpf.tests.support.homes import Make
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, purge, refused_unchanged, rule


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


@pytest.fixture
def container(cgroups: Cgroups, made: Make) -> list[str]:
    """Its own cgroups and /run, and the host's bpffs."""
    os.makedirs("/run/speed_limiter", exist_ok=True)
    return elsewhere.in_container(cgroups.mount, made("/container"))


def kept(libbpf: Libbpf) -> Any:
    """All that the kernel has of the limiter, to the byte."""
    maps = Maps.open(libbpf)
    assert maps
    with maps:
        rows = [row for row in catalog.MAPS if row.type != catalog.SOCKET_STORAGE]
        entries = {row.name: sorted(maps.entries(row)) for row in rows}
    links = Links(libbpf).info(catalog.LIMIT.link)
    return sorted(os.listdir(pins.PIN_DIR)), entries, links.id, links.prog_id, links.cgroup_id


@pytest.mark.parametrize("attached_to", ["/", "/held"])
def test_a_task_in_a_container_touches_nothing_of_the_hosts_limiter(
    cgroups: Cgroups, made: Make, container: list[str], libbpf: Libbpf, attached_to: str
) -> None:
    made("/held")
    limiter.program(cgroup_path=attached_to)
    with child() as one:
        cgroups.move(one.pid, "/held")
        rule(name="web", pid=one.pid, rate="1m")
        rule(name="slice", cgroup_paths=["/held"], rate="1m")
        before = kept(libbpf)
        for call in (
            "rule(name='mine', rate='1m')",
            "rule(name='web', rate='1m', check=True)",
            "rules(purge=True)",
            "program()",
            "purge('stale')",
            "purge('rules')",
            "purge('all')",
        ):
            told = elsewhere.error_of(container, call)
            assert told.startswith("other_namespace: "), told
            assert pins.PIN_DIR in told and "run the task on the host" in told
        assert kept(libbpf) == before
    told = elsewhere.said(container, "info()['unseen']")
    assert "belongs to another cgroup namespace" in told
    assert kept(libbpf) == before


def test_rules_of_a_link_that_is_lost_are_nobody_elses_either(
    cgroups: Cgroups, container: list[str], libbpf: Libbpf
) -> None:
    rule(name="web", rate="1m")
    os.unlink(pins.path(catalog.LIMIT.link))
    maps = Maps.open(libbpf)
    assert maps
    with maps:
        before = maps.limits()
        assert elsewhere.error_of(container, "purge('stale')").startswith("other_namespace: ")
        assert maps.limits() == before != {}


def test_the_host_leaves_a_containers_limiter_alone_while_that_has_rules(
    cgroups: Cgroups, container: list[str], libbpf: Libbpf
) -> None:
    code = (
        "from ansible_collections.speed_limiter.ebpf.tests.support import limiter\n"
        "limiter.rule(name='theirs', rate='1m')\nprint('ready', flush=True)\ninput()\nlimiter.purge('rules')"
    )
    with Popen([*container, sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "ready\n"
        before = kept(libbpf)
        for work in (partial(rule, name="ours", rate="1m"), purge, partial(purge, "all"), limiter.program):
            with refused_unchanged("other_namespace", "/container/speed_limiter/theirs"):
                work()
        assert kept(libbpf) == before
        other.communicate("\n")
    rule(name="ours", rate="1m")
    assert [one["name"] for one in info()["rules"]] == ["ours"]


def test_whose_cgroup_is_gone_is_the_hosts(cgroups: Cgroups, made: Make) -> None:
    """As if somebody had removed all by hand: nobody else could mean anything by it."""
    attached = made("/held")
    limiter.program(cgroup_path="/held")
    rule(name="web", rate="1m")
    os.rmdir(cgroups.absolute("/speed_limiter/web"))
    os.rmdir(attached)
    assert rule(name="web", rate="1m")["changed"]
