# SPDX-License-Identifier: GPL-3.0-or-later
"""host/bpf/graph.py: by which first bytes the program sees that a name has none of a node's shapes."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.core.patterns import Node
from ansible_collections.speed_limiter.ebpf.plugins.module_utils._limiter.host.bpf import graph


@pytest.mark.parametrize(
    ("shapes", "names", "strange"),
    [
        ([], "", "abzÄ0-"),
        ([("user-", ".slice")], "u5", "avz0-"),  # u and 5 have the same low bits
        ([("user-", ".slice"), ("docker-", "")], "ud", "avz0"),
        ([("", ".scope")], "abzÄ0-", ""),
        ([("user-", ".slice"), ("", "x")], "abzÄ0-", ""),
        ([("Ärger-", "")], "Ä", "abz"),
    ],
)
def test_what_no_shape_begins_with_is_strange(shapes: list[tuple[str, str]], names: str, strange: str) -> None:
    node = Node(None, {}, [(shape, 1) for shape in shapes])
    bits = graph._strange(node)
    assert {name for name in names + strange if bits >> (name.encode()[0] & 31) & 1} == set(strange)
