# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is stored for the next boot follows the rules that a plan changes. Pure."""

from __future__ import annotations

import typing as t

from . import stored
from .errors import LimiterError
from .model import Refused, Request, Rule, Store, StoredRule, Target
from .names import is_automatic
from .policy import PERSISTENT


class Storing:
    """The files as they will be."""

    def __init__(self, store: Store, warnings: list[str]) -> None:
        self._store, self._warnings = store, warnings
        self.files = dict(store.files)

    def follow(self, target: Target, rule: Rule | None) -> None:
        """The file becomes what the rule will be; without a word about it, where there is one.

        Raises LimiterError ``not_stored``, ``bad_options``.
        """
        if rule is None or rule.limit is None:
            if rule is not None and not target.request.present:
                self.leave_out(rule.name, target.places)
            return
        request, file = target.request, self.files.get(rule.name)
        asked = bool(request.given.get(PERSISTENT.name))
        if not request.given.get(PERSISTENT.name, file is not None):
            self.forget(rule.name)
            return
        if is_automatic(rule.name):
            raise LimiterError(
                "bad_options",
                f"{request.where}the rule {rule.name!r} cannot be persistent",
                "it is the rule of one process, which does not survive a reboot",
                "Limit its unit or its cgroup, by a rule with another name",
            )
        if isinstance(file, Refused) and (file.newer or not asked):
            self._leave(request, rule.name, file, asked)
            return
        form = stored.form(rule, file, target.named)
        if form == file:
            return
        if self._store.locked:
            raise _not_stored(request, rule.name, self._store.locked, "Mend that; or set persistent=false")
        self.files[rule.name] = form

    def leave_out(self, name: str, paths: t.Collection[str]) -> None:
        """A rule that is not loaded loses places, too."""
        file = self.files.get(name)
        if isinstance(file, StoredRule):
            left = tuple(place for place in file.places if place.path not in paths)
            if left != file.places and not self._stays(name):
                self.files[name] = file.with_places(left)

    def forget(self, name: str) -> None:
        """Removes the file. Where that cannot be, the rule itself can still go: that is worth more than nothing."""
        if name in self.files and not self._stays(name):
            del self.files[name]

    def _stays(self, name: str) -> bool:
        """Whether the file cannot be changed, which is told."""
        if self._store.locked:
            self._warnings.append(
                f"what is stored of the rule {name!r} stays, and is applied at the next boot: {self._store.locked}"
            )
        return self._store.locked is not None

    def changes(self) -> dict[str, StoredRule | None]:
        """The files that are written, or removed (None)."""
        before = self._store.files
        names = [name for name in {**before, **self.files} if self.files.get(name) != before.get(name)]
        return {name: t.cast("StoredRule | None", self.files.get(name)) for name in names}

    def _leave(self, request: Request, name: str, file: Refused, asked: bool) -> None:
        if asked:
            remedy = "Run that version, or remove the rule first (state=absent)"
            raise _not_stored(request, name, f"{name}.json is there already, and {file.why}", remedy)
        self._warnings.append(
            f"{request.where}what is stored of the rule {name!r} stays as it is, and is not applied at boot: "
            f"{file.why}. persistent=true stores it anew, persistent=false removes it"
        )


def _not_stored(request: Request, name: str, why: str, remedy: str) -> LimiterError:
    what = f"{request.where}the rule {name!r} cannot be stored for the next boot"
    return LimiterError("not_stored", what, why, f"Nothing was changed. {remedy}")
