# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/maps.py on the kernel's own maps."""

from __future__ import annotations

import os
import socket
import subprocess
import typing as t

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core import layout
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.policy import Limit
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.reasons import Counters
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import maps as maps_module
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import pins
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.libbpf import Libbpf
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.maps import Maps

if t.TYPE_CHECKING:
    from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf.attachments import Attachments

RULE = 2**60 + 5  # an id; the highest bits are marks


def test_a_limit_is_written_read_changed_and_removed(maps: Maps) -> None:
    assert maps.limit(RULE) is None
    maps.set_limit(RULE, Limit(rate=12_500_000_000, bucket=2**62))
    assert maps.limit(RULE) == Limit(12_500_000_000, 2**62)
    maps.set_limit(RULE, Limit(rate=8000, bucket=9000))
    assert maps.limits() == {RULE: Limit(8000, 9000)}
    assert maps.remove_limit(RULE)
    assert not maps.remove_limit(RULE)
    assert maps.limits() == {}


def test_a_state_begins_full_and_is_never_made_anew(maps: Maps) -> None:
    assert maps.counters(RULE) is None
    maps.make_state(RULE, bucket=5000)
    counted = {"packets": 1, "bytes": 2, "dropped_bytes": 3, "drops[1]": 4, "drops[4]": 5, "notices[5]": 6}
    spent = layout.STATE.pack(*({"tokens": -700, **counted}.get(field, 0) for field in layout.STATE_FIELDS))
    assert layout.STATE.unpack(_state(maps, RULE))[0] == 5000
    maps._state.update(layout.ID.pack(RULE), spent)
    maps.make_state(RULE, bucket=9999)
    assert layout.STATE.unpack(_state(maps, RULE))[0] == -700
    assert maps.counters(RULE) == Counters(1, 2, 3, (0, 4, 0, 0, 5, 0, 0, 0), (0, 0, 0, 0, 0, 6, 0, 0))
    assert maps.state_rules() == {RULE}
    assert maps.remove_state(RULE)
    assert maps.state_rules() == set()


def test_members_map_cgroups_to_rules(maps: Maps) -> None:
    maps.add_member(1, RULE)
    maps.add_member(2, RULE)
    maps.add_member(2, 7)
    assert maps.members() == {1: RULE, 2: 7}
    assert maps.remove_member(1)
    assert not maps.remove_member(1)
    assert maps.members() == {2: 7}


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_thousands_of_rules_are_read_completely_whatever_the_size_of_a_batch(
    maps: Maps, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """A batch smaller than what one bucket of the kernel's hash table holds is refused with ENOSPC."""
    wanted = {rule: Limit(rule + 8000, 2 * rule) for rule in range(1, 5001)}
    for rule, limit in wanted.items():
        maps.set_limit(rule, limit)
        maps.add_member(rule + 10**6, rule)
    monkeypatch.setattr(maps_module, "_BATCH", batch)
    assert maps.limits() == wanted
    assert maps.members() == {rule + 10**6: rule for rule in wanted}


def test_a_kernel_without_batches_is_read_entry_by_entry(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in range(100):
        maps.set_limit(rule, Limit(8000, rule))
    call = Libbpf.try_call

    def without_batches(self: Libbpf, name: str, *arguments: t.Any) -> int:
        return -524 if name == "bpf_map_lookup_batch" else call(self, name, *arguments)

    monkeypatch.setattr(Libbpf, "try_call", without_batches)
    assert maps.limits() == {rule: Limit(8000, rule) for rule in range(100)}


@pytest.mark.parametrize("batches", [True, False])
def test_the_states_of_many_rules_are_those_that_are_read_one_by_one(
    maps: Maps, monkeypatch: pytest.MonkeyPatch, batches: bool
) -> None:
    for rule in range(1, 101):
        maps.make_state(rule, bucket=5000 + rule)
    one_by_one = [maps.state(rule) for rule in range(102)]
    call, asked = Libbpf.try_call, []

    def counted(self: Libbpf, name: str, *arguments: t.Any) -> int:
        asked.append(name)
        return -524 if name == "bpf_map_lookup_batch" and not batches else call(self, name, *arguments)

    monkeypatch.setattr(Libbpf, "try_call", counted)
    state = maps.states(100)
    assert [state(rule) for rule in range(102)] == one_by_one
    assert one_by_one[0] is None and one_by_one[101] is None
    assert not batches or len(asked) <= 2


def test_a_full_map_is_named_with_its_size_and_keeps_what_it_has(maps: Maps) -> None:
    for rule in range(layout.MAX_RULES):
        maps.set_limit(rule, Limit(8000, 8000))
    with pytest.raises(LimiterError) as raised:
        maps.set_limit(layout.MAX_RULES, Limit(8000, 8000))
    assert raised.value.kind == "map_full"
    for words in ("rate_limit_config_map", "65536", "E2BIG", "Remove rules"):
        assert words in str(raised.value)
    assert len(maps.limits()) == layout.MAX_RULES
    maps.set_limit(0, Limit(9000, 9000))  # changing one is always possible


def test_a_socket_is_bound_and_released_by_its_descriptor(maps: Maps) -> None:
    assert maps.control().tagged_sockets == 0
    with socket.socket() as one, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        assert maps.socket_rule(one.fileno()) is None
        maps.tag_socket(one.fileno(), RULE)
        maps.tag_socket(one.fileno(), RULE + 1)
        assert maps.socket_rule(one.fileno()) == RULE + 1
        assert maps.socket_rule(other.fileno()) is None
        assert maps.control().tagged_sockets == 1
        maps.release_socket(one.fileno())
        assert maps.socket_rule(one.fileno()) == layout.RELEASED


def test_binding_what_is_no_socket_is_an_error_with_its_errno(maps: Maps) -> None:
    with open("/dev/null", "rb") as file, pytest.raises(LimiterError, match="rate_limit_socket_map.*ENOTSOCK"):
        maps.tag_socket(file.fileno(), RULE)


def test_the_generation_goes_up_by_one_and_round_at_32_bits_but_never_back_to_the_0_of_no_members(maps: Maps) -> None:
    before = maps.control()
    maps.bump_generation()
    assert maps.control() == before._replace(generation=before.generation + 1)
    maps.write_control(before._replace(generation=2**32 - 1))
    maps.bump_generation()
    assert maps.control() == before._replace(generation=1)


def test_pacing_is_announced_like_any_change_but_makes_no_host_look_like_one_with_rules(maps: Maps) -> None:
    assert (maps.control().pacing, maps.control().generation) == (layout.PACING_ON, 0)
    maps.set_pacing(layout.PACING_OFF)
    assert (maps.control().pacing, maps.control().generation) == (layout.PACING_OFF, 0)
    maps.bump_generation()
    maps.set_pacing(layout.PACING_OFF)
    assert maps.control().generation == 1
    maps.set_pacing(layout.PACING_REFUSED)
    assert (maps.control().pacing, maps.control().generation) == (layout.PACING_REFUSED, 2)


def test_nothing_pinned_is_none(libbpf: Libbpf, attachments: Attachments) -> None:
    assert Maps.open(libbpf) is None
    pins.ensure()
    assert Maps.open(libbpf) is None


def test_maps_of_which_one_is_missing_count_as_none_at_all(libbpf: Libbpf, maps: Maps) -> None:
    os.unlink(pins.path("rate_limit_member_map"))
    assert Maps.open(libbpf) is None


def test_maps_of_another_version_are_refused_and_left_alone(libbpf: Libbpf, maps: Maps) -> None:
    maps.set_limit(RULE, Limit(8000, 8000))
    maps.write_control(maps.control()._replace(schema=99))
    with pytest.raises(LimiterError, match=f"schema is 99, this version's is {layout.SCHEMA}") as raised:
        Maps.open(libbpf)
    assert raised.value.kind == "other_schema"
    assert maps.limit(RULE) == Limit(8000, 8000)


def test_maps_of_another_version_can_be_opened_to_end_it(libbpf: Libbpf, maps: Maps) -> None:
    maps.write_control(maps.control()._replace(schema=99, pacing=layout.PACING_ON, generation=7))
    other = Maps.open(libbpf, any_version=True)
    assert other is not None
    with other:
        assert other.schema == 99
        other.set_pacing(layout.PACING_OFF)
    assert maps.control()[:2] == (99, 8)
    assert maps.control().pacing == layout.PACING_OFF


def test_a_map_of_another_size_among_those_of_this_version_is_not_ours(libbpf: Libbpf, maps: Maps) -> None:
    path = pins.path("rate_limit_state_map")
    os.unlink(path)
    command = f"bpftool map create {path} type hash key 8 value 16 entries 1 name wrong"
    subprocess.run(command.split(), check=True)
    try:
        for any_version in (False, True):
            with pytest.raises(LimiterError, match="rate_limit_state_map is not the limiter's") as raised:
                Maps.open(libbpf, any_version)
            assert raised.value.kind == "foreign_pin"
    finally:
        os.unlink(path)


def _state(maps: Maps, rule: int) -> bytes:
    data = maps._state.lookup(layout.ID.pack(rule))
    assert data is not None
    return data
