# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis without its deadline for an example: a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
