# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of this collection."""

from __future__ import annotations

EMPTY = "Leave the option out, or look at the variable that came out empty"  # a remedy


class LimiterError(Exception):
    """A failure that a user can act on.

    ``kind`` is a short stable word that tests and callers may compare (``no_cgroup2``, ``dead_process``). ``what`` says
    what failed, ``why`` gives the cause (with the name of the errno where the kernel refused), ``remedy`` what to do.
    """

    def __init__(self, kind: str, what: str, why: str = "", remedy: str = "") -> None:
        self.kind, self.what, self.why, self.remedy = kind, what, why, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        if "\n" not in text:  # else it ends with words of others, which need their own lines
            text = text if text.endswith((".", "?", "!")) else f"{text}."
        space = "\n" if "\n" in text else " "
        return f"{text}{space}{self.remedy.rstrip('.')}." if self.remedy else text
