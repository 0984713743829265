# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a trace: how it takes its place and gives it back, and whoever comes in between. What is refused is in
test_trace_refused.py, and what it tells of packets in traffic/test_traced_packets.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import catalog, tracing
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.groups.cgroups import Cgroups
from ansible_collections.speed_limiter.ebpf.tests.support import bpf, limiter
from ansible_collections.speed_limiter.ebpf.tests.support.children import refused, until
from ansible_collections.speed_limiter.ebpf.tests.support.dataplane import SOURCE, compile_object, load_program
from ansible_collections.speed_limiter.ebpf.tests.support.faults import UNTOUCHED, End, Fault, run_with
from ansible_collections.speed_limiter.ebpf.tests.support.limiter import info, program, purge, rule
from ansible_collections.speed_limiter.ebpf.tests.support.traces import (
    UNTRACED,
    Running,
    attached,
    loaded_here,
    tag,
    trace,
)

BUDGET = 500_000  # instructions that the verifier may walk, as in test_budget.py


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Iterator[None]:
    with limiter.stand_in():
        yield


@pytest.fixture(autouse=True)
def cgroups() -> Iterator[Cgroups]:
    with limiter.clean_host() as found:
        yield found


# ---- off, it costs nothing


def test_off_what_limits_is_to_the_byte_what_is_compiled_without_a_trace(tmp_path: Path) -> None:
    source = (SOURCE / "limiter.bpf.c").read_text()
    plain = source.replace('#include "trace.h"\n', "")
    plain = re.sub(r'SEC\("[^"]+"\)\nint [^\n]*trace[^\n]*\n{\n.*?\n}\n', "", plain, flags=re.DOTALL)
    assert "trace" in source
    assert "trace_" not in plain
    (tmp_path / "plain.bpf.c").write_text(plain)
    tags = []
    for place in (tmp_path / "plain.bpf.c", SOURCE / "limiter.bpf.c"):
        fd = load_program(compile_object(place, tmp_path / "it.o"), "limit_egress")
        tags.append(tag(fd))
        os.close(fd)
    assert tags[0] == tags[1]


def test_before_and_after_a_trace_the_same_program_limits() -> None:
    program()
    before, pinned = attached(), sorted(os.listdir(pins.PIN_DIR))
    running = Running(max_events=1, duration=60.0, reason="empty")
    during = attached()
    assert during["name"] == catalog.TRACE.name
    assert during["id"] != before["id"]
    os.kill(running.pid, signal.SIGINT)
    os.waitpid(running.pid, 0)
    assert attached() == before
    assert sorted(os.listdir(pins.PIN_DIR)) == pinned
    assert trace(duration=0.1)["ended"] == "duration"
    assert attached() == before


@pytest.mark.every_kernel
def test_the_verifier_takes_what_traces_within_its_budget(limiter_object: str) -> None:
    """Of instructions; and of stack, of which 5.10 counts each function's in steps of 32 bytes, 512 in all: what
    limit_egress calls takes 352 of them.
    """
    found = bpf.verified(limiter_object)
    rows = {row.name: found[row.name] for row in catalog.TRACERS}
    print(rows)
    traces = rows[catalog.TRACE.name]
    assert traces is not None
    assert traces.instructions <= BUDGET
    with bpf.Object(limiter_object) as opened:
        # Every filter is asked for: what none is, the verifier leaves out.
        opened.fill(catalog.TRACER_SECTION, b"\1" * tracing.FILTER.size)
        opened.load(catalog.TRACE.name, log_level=4)
        (stack,) = re.findall(r"stack depth (\d+)", opened.log)
        (walked,) = re.findall(r"processed (\d+) insns", opened.log)
    print(f"with every filter: {walked} instructions, {stack} bytes of stack")
    assert int(walked) <= BUDGET
    assert int(stack) <= 512 - 352


def test_for_what_arrives_nothing_is_loaded_that_limits() -> None:
    """No rule limits what arrives, so the one that limits is left as it is, and another is not even verified."""
    program()
    before, others = attached(), loaded_here()
    loaded: set[str] = set()
    real = Libbpf.call

    def call(libbpf: Libbpf, name: str, *arguments: Any) -> int:
        if name == "bpf_link_create":
            loaded.update(loaded_here())
        return real(libbpf, name, *arguments)

    with mock.patch.object(Libbpf, "call", call):
        found = trace(duration=0.1, direction="in")
    assert (found["ended"], found["warnings"], loaded - others) == ("duration", [], {catalog.TRACE_ARRIVAL.name})
    assert attached() == before


# ---- who comes in between


def test_rule_tasks_go_on_during_a_trace() -> None:
    program()
    running = Running(max_events=1, reason="empty")
    assert rule(name="web", rate="1m")["changed"]
    assert not program()["changed"]  # it is the same program for who asks for one
    assert limiter.program(check=True)["changed"] is False
    seen = info(gather=["program"])["program"]
    assert (seen["identity"][:7], seen["trace"]) == ("source:", "running")
    assert attached()["name"] == catalog.TRACE.name
    running.kill()


def test_a_second_trace_is_refused() -> None:
    program()
    running = Running(max_events=1, reason="empty")
    with refused("trace_running", f"the process {running.pid} traces"):
        trace(duration=0.1)
    assert attached()["name"] == catalog.TRACE.name
    running.kill()


@pytest.mark.parametrize(
    ("work", "ended", "words"),
    [
        (lambda: program(state="reloaded"), "replaced", "another task has loaded a program"),
        (lambda: program(state="absent"), "unloaded", "another task has unloaded the program"),
        (lambda: purge("all"), "unloaded", "another task has unloaded the program"),
    ],
)
def test_a_task_that_loads_or_unloads_the_program_ends_a_trace(work: Any, ended: str, words: str) -> None:
    program()
    running = Running(max_events=1, reason="empty")
    work()
    found = running.result()
    assert found["ended"] == ended
    assert words in found["warnings"][0]
    assert not os.path.exists(UNTRACED)
    assert all(one["name"] != catalog.TRACE.name for one in info(gather=["hook"])["hook"])


def test_a_rule_that_is_removed_ends_its_trace() -> None:
    rule(name="web", rate="1m")
    before = attached()
    running = Running(rule="web", max_events=1)
    rule(name="web", state="absent")
    found = running.result()
    assert found["ended"] == "rule_removed"
    assert "the rule was removed" in found["warnings"][0]
    assert attached() == before


def test_the_pins_may_go_meanwhile() -> None:
    """What traces is known as a limiter, and pinned again. The untraced program comes back all the same."""
    program()
    before = attached()
    running = Running(max_events=1, reason="empty")
    for name in os.listdir(pins.PIN_DIR):
        if name != catalog.LIMIT.link:
            os.unlink(pins.path(name))
    assert "pinned the limiter again" in rule(name="web", rate="1m")["program_actions"][0]
    assert attached()["name"] == catalog.TRACE.name
    os.kill(running.pid, signal.SIGINT)
    os.waitpid(running.pid, 0)
    assert attached() == before


# ---- who is killed


@pytest.mark.parametrize("then", ["rule", "program", "purge"])
def test_what_a_killed_trace_leaves_limits_and_the_next_task_undoes_it(then: str) -> None:
    rule(name="web", rate="1m")
    before, pinned = attached(), sorted(os.listdir(pins.PIN_DIR))
    running = Running(max_events=1, reason="empty")
    running.kill()
    assert attached()["name"] == catalog.TRACE.name
    assert info(gather=["program"])["program"]["trace"] == "left"
    if then == "rule":
        assert not rule(name="web", rate="1m")["changed"]
    elif then == "program":
        assert not program()["changed"]
    else:
        purge("rules")
    assert attached() == before
    assert sorted(os.listdir(pins.PIN_DIR)) == pinned
    assert info(gather=["program"])["program"]["trace"] is None


def test_what_a_killed_trace_leaves_does_not_hinder_the_next_one() -> None:
    program()
    before = attached()
    Running(max_events=1, reason="empty").kill()
    assert trace(duration=0.1)["ended"] == "duration"
    assert attached() == before


@pytest.mark.parametrize("fault", Fault)
def test_it_is_killed_interrupted_or_refused_before_each_step(fault: Fault) -> None:
    rule(name="web", rate="1m")
    before, pinned = attached(), sorted(os.listdir(pins.PIN_DIR))
    step = 0
    while True:
        end, text = run_with(fault, step, lambda: trace(duration=0.1))
        if end is End.DONE and text == UNTOUCHED:
            break
        seen = info(gather=["hook"])
        assert seen["hook"], (step, text, seen["unseen"])
        assert len([one for one in seen["hook"] if one["ours"]]) == 1, step  # it limits at any time
        if fault is not Fault.REFUSED:
            rule(name="web", rate="1m")
            assert attached() == before, step
            assert sorted(os.listdir(pins.PIN_DIR)) == pinned, step
        else:
            rule(name="web", rate="1m")
            assert attached() == before, (step, text)
        step += 1
        assert step < 100
    assert step > 3


def test_a_killed_trace_is_silent_after_its_time(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    program()
    with limiter.senders("/home") as [sender]:
        rule(name="web", rate="1m", cgroup_path="/home")
        running = Running(max_events=10_000, duration=3.0)
        ids = json.loads(subprocess.check_output(["bpftool", "-j", "prog", "show", "id", str(attached()["id"])]))[
            "map_ids"
        ]
        maps = [json.loads(subprocess.check_output(["bpftool", "-j", "map", "show", "id", str(one)])) for one in ids]
        (state,) = [one["id"] for one in maps if one["name"] == catalog.TRACE_STATE]
        running.kill()

        def told() -> int:
            text = subprocess.check_output(["bpftool", "-j", "map", "dump", "id", str(state)])
            data = bytes(int(byte, 16) for byte in json.loads(text)[0]["value"])
            return int(tracing.STATE.unpack(data)[1])

        sender.charged()
        assert told() > 0

        def is_silent() -> bool:
            before = told()
            sender.charged()
            return told() == before

        until(is_silent)
        assert sender.charged() == {"web"}
