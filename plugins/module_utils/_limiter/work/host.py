# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host: the ports, opened together."""

from __future__ import annotations

import contextlib
import typing as t

from ..core.errors import LimiterError
from ..host import kernel
from ..host.bpf import pins
from ..host.bpf.attachments import Attachments
from ..host.bpf.libbpf import Libbpf, load
from ..host.bpf.maps import Maps
from ..host.groups.cgroups import Cgroups
from ..host.groups.leaves import Leaves
from ..host.lock import host_lock
from ..host.root import check_root
from . import owner
from .lost import Lost, pinned_again

RunCommand = t.Callable[..., "tuple[int, str, str]"]

# Longer than building the program takes; another task that still holds the lock then is not one that is worth waiting
# for.
LOCK_SECONDS = 120.0


class Host:
    """The ports of one host. ``maps`` is None as long as nothing is pinned, or where a version of this collection
    pinned it that is not known: ``other_maps``, of which little may be used (`Maps.open`).
    """

    def __init__(self, cgroups: Cgroups, libbpf: Libbpf, run_command: RunCommand, any_version: bool = False) -> None:
        self.cgroups, self.libbpf, self.run_command = cgroups, libbpf, run_command
        self.attachments = Attachments(libbpf, cgroups.mount)
        self.maps: Maps | None = None
        self.other_maps: Maps | None = None
        self._any_version = any_version
        self.lost = Lost()
        self._leaves: Leaves | None = None
        self.refresh()
        if pins.is_mounted():
            owner.check(libbpf, cgroups, self.maps)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, run_command: RunCommand, changes: bool, any_version: bool = False, purges: bool = False
    ) -> t.Iterator[Host]:
        """As `open`, until the end of the context. Where it ``changes`` what is there, it holds the host's lock. What
        limits and is not pinned any more is found (`lost.pinned_again`).
        """
        with host_lock(LOCK_SECONDS) if changes else contextlib.nullcontext():
            check_root()
            kernel.check_bits()
            cgroups, libbpf = Cgroups.find(), load()
            with contextlib.ExitStack() as stack:
                with kernel.explained():
                    lost = stack.enter_context(pinned_again(libbpf, cgroups.mount, changes, purges))
                host = cls(cgroups, libbpf, run_command, any_version)
                host.lost = lost
                yield host

    @classmethod
    def open(cls, run_command: RunCommand, any_version: bool = False) -> Host:
        """Open what is there; touches nothing. ``any_version``: what another version has left, too.

        Raises LimiterError: ``not_root``, ``kernel_32_bit``, ``missing_dependency``, ``no_cgroup2``,
        ``unsafe_pin_directory``, ``foreign_pin``, ``other_schema``, ``other_namespace``.
        """
        check_root()
        kernel.check_bits()
        return cls(Cgroups.find(), load(), run_command, any_version)

    def refresh(self) -> None:
        """Look again at what is pinned."""
        self._leaves = None
        if pins.is_mounted():
            found = Maps.open(self.libbpf, self._any_version)
            other = found is not None and not found.is_known
            self.maps, self.other_maps = (None, found) if other else (found, None)

    @property
    def leaves(self) -> Leaves:
        if self._leaves is None:
            self._leaves = Leaves(self.cgroups, self.libbpf, self.maps)
        return self._leaves

    @property
    def is_earlier(self) -> bool:
        """Whether an earlier version made the maps, which the next load carries over."""
        return self.maps is not None and self.maps.is_earlier

    def path_of(self, cgroup_id: int) -> str | None:
        """The cgroup with this id; None where it is gone."""
        return self.libbpf.cgroup_path_of(self.cgroups.mount, cgroup_id)

    def rule_id(self, name: str) -> int:
        """The id of a rule's own cgroup, which must be there. Raises LimiterError ``no_rule``."""
        found = self.cgroups.identifier(self.cgroups.rule_cgroup(name))
        if found is None:
            raise LimiterError(
                "no_rule", f"the cgroup of the rule {name!r} disappeared while this task ran", "", "Run the task again"
            )
        return found

    def complete(self) -> None:
        """What a killed run began with the program and the maps is completed, or removed."""
        if self.attachments.complete():
            self.refresh()

    @property
    def opened_maps(self) -> Maps:
        """The maps, where a program must have been loaded before. Raises LimiterError ``no_maps``."""
        if self.maps is None:
            raise LimiterError(
                "no_maps", "the maps are not pinned", "something removed them while this task ran", "Run the task again"
            )
        return self.maps
