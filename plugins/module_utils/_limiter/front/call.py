# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked for, and what comes of it: the same for a module of Ansible and for the command `limiter`."""

from __future__ import annotations

import typing as t

Result = dict[str, t.Any]
RunCommand = t.Callable[..., "tuple[int, str, str]"]  # arguments -> return code, output, errors


class Call(t.Protocol):
    """AnsibleModule has these, and so has what the command makes of its arguments."""

    @property
    def params(self) -> t.Mapping[str, t.Any]:
        """Options by their names."""

    @property
    def check_mode(self) -> bool: ...

    @property
    def run_command(self) -> RunCommand: ...


def diff_of(before: str, after: str) -> Result:
    return {"before": before, "after": after, "before_header": "before", "after_header": "after"}
