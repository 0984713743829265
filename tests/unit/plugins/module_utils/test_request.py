# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused before the host is looked at; each error names the option."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.errors import LimiterError
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.request import (
    parse_request,
    parse_requests,
)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({}, "bad_options", "no rule is named"),
        ({"name": "web", "last": True}, "bad_options", "name and last exclude each other"),
        ({"name": "web", "cgroup_id": 5}, "bad_options", "name and cgroup_id exclude each other"),
        ({"name": "web", "pids": [5], "processes": {"name": "x"}}, "bad_options", "pids and processes exclude"),
        ({"last": True, "cgroup_paths": ["/a"]}, "bad_options", "cgroup_paths goes with name"),
        ({"pids": [5, 6], "rate": "1m"}, "bad_options", "needs a name"),
        ({"processes": {"name": "x"}, "rate": "1m"}, "bad_options", "needs a name"),
        ({"name": "web", "processes": {"name": None}}, "bad_selector", "nothing is selected"),
        ({"units": ["a"]}, "bad_options", "no rule is named"),
        ({"last": True, "units": ["a"]}, "bad_options", "units goes with name, not with cgroup_id or last"),
        ({"cgroup_id": 5, "users": ["a"]}, "bad_options", "users goes with name"),
        ({"name": "web", "units": ["a.timer"]}, "bad_unit", "units: 'a.timer' is refused"),
        ({"name": "web", "containers": ["-a"]}, "bad_container", "containers: '-a' is refused"),
        ({"pids": [1]}, "bad_pid", "pid 1 is refused"),
        ({"pids": [0]}, "bad_pid", "pid 0 is refused"),
        ({"pids": [-3]}, "bad_pid", "pid -3 is refused"),
        ({"name": "a/b"}, "bad_name", "name"),
        ({"name": "x" * 300}, "bad_name", "name"),
        ({"name": ""}, "bad_name", "name"),
        ({"name": "memory.max"}, "bad_name", "memory.max"),
        ({"name": "web", "rate": "0"}, "bad_rate", "rate: '0'"),
        ({"name": "web", "rate": "-1"}, "bad_rate", "rate: '-1'"),
        ({"name": "web", "rate": "1000g"}, "bad_rate", "rate: '1000g'"),
        ({"name": "web", "rate": "5mbps"}, "bad_rate", "ambiguous"),
        ({"name": "web", "rate": "True"}, "bad_rate", "rate: 'True' is refused: yes, no, on, off, true and false are"),
        ({"name": "web", "bucket": "no"}, "bad_bucket", "truth values in YAML"),
        ({"name": "web", "rate": "1e+22"}, "bad_rate", "which YAML makes of digits with an exponent"),
        ({"name": "web", "rate": "inf"}, "bad_rate", "floating point"),
        ({"name": "web", "bucket": "1"}, "bad_bucket", "bucket: '1'"),
        ({"name": "web", "bucket": "5mbit"}, "bad_bucket", "bucket: '5mbit'"),
    ],
)
def test_refused(options: dict[str, object], kind: str, text: str) -> None:
    with pytest.raises(LimiterError) as error:
        parse_request(options)
    assert error.value.kind == kind and text in str(error.value)


def test_errors_of_a_list_name_the_index_and_the_rule() -> None:
    with pytest.raises(LimiterError, match=r"^rules\[1\] \('db'\): rate: '7' is out of range"):
        parse_requests([{"name": "web", "rate": "1m"}, {"name": "db", "rate": "7"}])
    with pytest.raises(LimiterError, match=r"^rules\[0\]: rate: '7' is out of range"):
        parse_requests([{"pids": [5], "rate": "7"}])


@pytest.mark.parametrize("name", ["a/b", "", "x" * 300, "a\nb"])
def test_what_is_no_name_is_said_once(name: str) -> None:
    with pytest.raises(LimiterError, match=r"^rules\[0\]: name '") as error:
        parse_requests([{"name": name}])
    assert error.value.kind == "bad_name"


def test_a_name_given_twice_is_an_error_that_names_both() -> None:
    with pytest.raises(LimiterError, match=r"rules\[2\] \('web'\): the rule 'web' was already given by rules\[0\] "):
        parse_requests([{"name": "web"}, {"name": "db"}, {"name": "web"}])


def test_a_rule_of_a_process_given_twice_too() -> None:
    with pytest.raises(LimiterError, match="'pid-5' was already given"):
        parse_requests([{"pids": [5], "rate": "1m"}, {"pids": [5], "rate": "2m"}])


def test_a_request_has_the_fields_that_are_given_and_none_where_the_rule_is_to_go() -> None:
    assert parse_request({"name": "web", "rate": "1m", "bucket": None}).given == {"rate": 1 << 20}
    assert parse_request({"name": "web", "rate": "1m", "bucket": "4k"}).given == {"rate": 1 << 20, "bucket": 4096}
    assert parse_request({"name": "web", "state": "absent", "rate": "nonsense"}).given == {}


def test_pids_are_taken_once_each_in_order() -> None:
    assert parse_request({"name": "web", "pids": [7, 5, 7]}).pids == (7, 5)


def test_units_have_their_full_names_and_come_once() -> None:
    request = parse_request({"name": "web", "units": ["a", "a.service", "b.slice"], "users": ["joe", "joe"]})
    assert (request.units, request.users, request.containers) == (("a.service", "b.slice"), ("joe",), ())
    assert request.takes_places and not parse_request({"name": "web"}).takes_places
    assert parse_request({"name": "web", "units": []}).takes_places
