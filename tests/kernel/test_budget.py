# SPDX-License-Identifier: GPL-3.0-or-later
"""What the programs may cost the verifier of the running kernel, before anything is added to them."""

from __future__ import annotations

import pytest
from ansible_collections.speed_limiter.ebpf.tests.support import bpf

# The kernel refuses a program of which it walks a million, and loading takes a second for each hundred thousand.
MOST_INSTRUCTIONS = 500_000


@pytest.mark.every_kernel
def test_the_verifier_walks_no_more_than_its_budget(limiter_object: str) -> None:
    found = {name: one.instructions for name, one in bpf.verified(limiter_object).items() if one}
    print(f"budget {MOST_INSTRUCTIONS}: {found}")
    assert {"limit_egress", "pace_sockets"} <= set(found)
    assert {name: walked for name, walked in found.items() if walked > MOST_INSTRUCTIONS} == {}
