# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users, and the slices that systemd-logind runs their sessions in."""

from __future__ import annotations

import pwd

from ...core.errors import EMPTY, LimiterError
from . import units

_LAST_UID = 0xFFFFFFFE  # the one above stands for none
_FIRST_OF_PEOPLE = 1000  # UID_MIN of login.defs(5): below are users that run services
_REMEDY = "Give a user's name or, where the directory cannot be reached, the number"


def cgroup(where: str, user: str) -> tuple[str, list[str]]:
    """The slice of a user, who need not be logged in, and warnings.

    A number is taken as it is: the directory that would know its user may be out of reach, and the slice is named by
    the number. Raises LimiterError: ``no_systemd``, ``unknown_user``.
    """
    uid = number(f"{where}users:", user)
    units.check_systemd(f"{where}users: the slice of {user!r}")
    warnings = []
    if 0 < uid < _FIRST_OF_PEOPLE:
        warnings.append(
            f"{where}users: {user} is a user of the system, whose services do not run in its slice "
            f"(user-{uid}.slice): limit them by units"
        )
    return f"/user.slice/user-{uid}.slice", warnings


def number(option: str, user: str) -> int:
    """The number of a user. Raises LimiterError ``unknown_user``, which begins with ``option``."""
    if not user:
        raise _unknown(option, user, "it is empty", EMPTY)
    if user.isascii() and user.isdecimal():
        if int(user) > _LAST_UID:
            raise _unknown(option, user, f"the largest number is {_LAST_UID}")
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise _unknown(option, user, "getent passwd does not find that name") from None


def _unknown(option: str, user: str, why: str, remedy: str = _REMEDY) -> LimiterError:
    return LimiterError("unknown_user", f"{option} {user!r} is not known on this host", why, remedy)
