# SPDX-License-Identifier: GPL-3.0-or-later
"""How many cases of anything at all are tried."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

CASES = int(os.environ.get("ANYTHING_CASES", "1000"))
many = settings(
    max_examples=CASES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None
)
