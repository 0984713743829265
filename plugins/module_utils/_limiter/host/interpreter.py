# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Python that runs this has."""

from __future__ import annotations


def importable(name: str) -> bool:
    """Whether a module can be imported; it is then."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True
