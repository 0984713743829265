# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The leaves of the rules: which there are, whether the kernel allows one more, how one is made and removed.

The member map knows them by their ids, so nobody walks the whole hierarchy to find them. A leaf becomes a member before
a process is put into it, and stops being one only when its directory is gone. One that is no member, as a killed task
leaves it, is known by its *mark*: its name alone may be that of a unit, or of the leaf of a limiter in a container.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ...core import leaves
from ...core.errors import LimiterError
from ...core.layout import MAX_DEPTH
from ..bpf.libbpf import Libbpf
from ..bpf.maps import Maps
from . import freezing, processes, trees
from .cgroups import Cgroups

_MARK = "trusted.speed_limiter"  # an attribute of its directory: the id of the cgroup that whoever made it calls /
_REFUSALS = ("unusable_cgroup", "cgroup_not_made", "no_cgroup")  # of a place, while another one may do
_FOREIGN = "somebody else than root has made a cgroup of that name"


class Leaves:
    """The leaves as they are, kept up to date by what is made and removed here."""

    def __init__(self, cgroups: Cgroups, libbpf: Libbpf | None, maps: Maps | None) -> None:
        self._cgroups, self._maps = cgroups, maps
        self.rules: dict[str, str] = {}  # leaf -> name of its rule
        self.dead: dict[str, list[int]] = {}  # name of a rule -> ids of its leaves that are gone
        self.orphans: list[str] = []  # leaves whose rule is gone
        self._ids: dict[str, int] = {}
        self._of: dict[str, set[str]] = {}
        if libbpf is None or maps is None:
            return
        found = maps.leaves()
        names = cgroups.rules_by_id() if found else {}
        for leaf_id, rule in found.items():
            leaf, name = libbpf.cgroup_path_of(cgroups.mount, leaf_id), names.get(rule)
            if leaf is None:
                self.dead.setdefault(name or "", []).append(leaf_id)
                continue
            self._ids[leaf] = leaf_id
            if name is None:
                self.orphans.append(leaf)
            else:
                self._add(leaf, name)

    def of(self, name: str) -> list[str]:
        """The leaves of a rule, sorted."""
        return sorted(self._of.get(name, ()))

    def rule_of(self, cgroup: str) -> str | None:
        return leaves.rule_of(cgroup, self.rules)

    def leaf_of(self, cgroup: str) -> str | None:
        return leaves.leaf_of(cgroup, self.rules)

    def home_of(self, cgroup: str) -> str:
        left = cgroup not in self.rules and os.path.basename(cgroup).startswith(leaves.PREFIX) and self._is_left(cgroup)
        return leaves.home_of(cgroup, (cgroup,) if left else self.rules)

    def pids(self, name: str) -> list[int]:
        """The processes of a rule, each once, wherever they are kept."""
        kept = (self._cgroups.rule_cgroup(name), *self.of(name))
        return list(dict.fromkeys(pid for cgroup in kept for pid in self._cgroups.pids(cgroup)))

    def occupied(self, name: str) -> dict[str, tuple[int, ...]]:
        """The leaves of a rule that processes are in."""
        found = {leaf: tuple(sorted(self._cgroups.pids(leaf))) for leaf in self.of(name)}
        return {leaf: pids for leaf, pids in found.items() if pids}

    def refusal(self, leaf: str, attached_to: str) -> leaves.NoLeaf | None:
        """Why the processes of the cgroup above it cannot be limited in a leaf; None: they can.

        ``attached_to`` is the cgroup of the program.
        """
        home = leaves.home_of(leaf, (leaf,))
        if home == "/":
            return leaves.NoLeaf("the root cgroup has no leaves")
        if self._cgroups.depth(leaf) >= MAX_DEPTH:
            return leaves.NoLeaf(f"the program looks for rules on the first {MAX_DEPTH} levels only")
        if attached_to != "/" and not f"{home}/".startswith(f"{attached_to}/"):
            why = f"the program is attached to {attached_to}, which is not above it"
            return leaves.NoLeaf(why, "attach it above, as by speed_limit_program cgroup_path=/", in_place=False)
        for cgroup in (home, leaf):
            try:
                directory = self._cgroups.absolute(cgroup)
            except LimiterError as error:
                return leaves.NoLeaf(error.why, "run the task on the host, not in a container", in_place=False)
            if processes.read_file(f"{directory}/cgroup.type") not in (b"domain\n", None):
                return leaves.NoLeaf("it is threaded (cgroup.type)")
            if processes.read_file(f"{directory}/cgroup.subtree_control") not in (b"\n", b"", None):
                return leaves.NoLeaf("it gives controllers to the cgroups below it (cgroup.subtree_control)")
        if not self._cgroups.exists(leaf):
            return self._no_room(home)
        return None if leaf in self.rules or self._cgroups.is_roots(leaf) else leaves.NoLeaf(_FOREIGN)

    def _no_room(self, home: str) -> leaves.NoLeaf | None:
        cgroup, level = home, 1
        while True:
            directory = self._cgroups.absolute(cgroup)
            depth = processes.read_file(f"{directory}/cgroup.max.depth") or b"max"
            if depth.strip() != b"max" and level > int(depth):
                return _no_more("depth", cgroup, "levels")
            descendants = processes.read_file(f"{directory}/cgroup.max.descendants") or b"max"
            if descendants.strip() != b"max" and _descendants(directory) >= int(descendants):
                return _no_more("descendants", cgroup, "cgroups")
            if cgroup == "/":
                return None
            cgroup, level = os.path.dirname(cgroup), level + 1

    def make(self, name: str, rule: int, leaf: str) -> t.Callable[[], None]:
        """Makes a leaf, and a member of the rule with this id; what undoes that.

        Raises LimiterError ``cgroup_not_made``, ``no_cgroup`` where the cgroup above is gone, ``map_full``.
        """
        maps = t.cast(Maps, self._maps)
        fresh = self._cgroups.make(leaf)
        try:
            leaf_id = self._enlisted(rule, leaf)
        except BaseException:
            if fresh:
                self._cgroups.remove(leaf)
            raise

        def undo() -> None:
            if fresh:
                for pid in self._cgroups.pids(leaf):  # forked there meanwhile
                    with contextlib.suppress(LimiterError):
                        self._cgroups.move(pid, leaves.home_of(leaf, (leaf,)))
                self._cgroups.remove(leaf)
            maps.remove_member(leaf_id)
            self._forget(leaf)

        gone = self._ids.get(leaf, leaf_id)
        if gone != leaf_id:  # whoever removed it was interrupted, and makes it again
            maps.remove_member(gone)
        self._ids[leaf] = leaf_id
        self._add(leaf, name)
        return undo

    def _enlisted(self, rule: int, leaf: str) -> int:
        """The id of a cgroup that has become a leaf of the rule with that id."""
        leaf_id = self._cgroups.identifier(leaf)
        if leaf_id is None:
            raise LimiterError("no_cgroup", f"the cgroup {leaf} disappeared while this task ran", "", "Run it again")
        # Whoever owns the cgroup above can have put it there a moment ago. What is below it could never be removed.
        if not self._cgroups.is_roots(leaf):
            raise LimiterError("cgroup_not_made", f"the cgroup {leaf} could not be made", _FOREIGN, "End who made it")
        self._mark(leaf)
        t.cast(Maps, self._maps).add_member(leaf_id, rule, leaf=True)
        return leaf_id

    def remove(self, leaf: str) -> None:
        """Removes a leaf that nobody is in. LimiterError as `Cgroups.remove`."""
        self._cgroups.remove(leaf)
        self.unlimit(leaf)

    def end(self, leaf: str) -> list[str]:
        """Removes a leaf that nobody is in; where that cannot be, it limits nobody any more. Returns warnings."""
        try:
            self.remove(leaf)
        except LimiterError as error:
            self.unlimit(leaf)
            return [f"{error} {leaf} stays, and limits nothing"]
        return []

    def move_back(self, pid: int, home: str, name: str) -> str:
        """Moves a process of a rule's own cgroup to its ``home`` or, where that takes none, into a leaf of that rule
        below it, which limits nothing; where that cannot be either, or it is gone, the same with the one above. So
        nobody gets out of more limits than he must.

        Returns where it went. LimiterError as of Cgroups.move(), when not even ``/`` takes it.
        """
        cgroup = home
        while True:
            for place in (cgroup, leaves.leaf_for(cgroup, name)):
                # Never into what is ours, or into a leaf that limits.
                ours = place == self._cgroups.managed or leaves.own_rule(place) is not None or place in self.rules
                if not ours and self._entered(pid, place):
                    return place
            cgroup = os.path.dirname(cgroup) or "/"

    def _entered(self, pid: int, cgroup: str) -> bool:
        """Whether a process could be moved there. A leaf is made for it."""
        fresh = False
        try:
            if os.path.basename(cgroup).startswith(leaves.PREFIX):
                fresh = self._cgroups.make(cgroup)
                if not self._cgroups.is_roots(cgroup):
                    return False
                self._mark(cgroup)
            self._cgroups.move(pid, cgroup)
        except BaseException as error:
            if fresh:
                self._cgroups.remove(cgroup)
            refused = isinstance(error, LimiterError) and error.kind in _REFUSALS
            if cgroup == "/" or not refused:
                raise
            return False
        return True

    def unlimit(self, leaf: str) -> None:
        """A leaf is no member any more, whoever is in it."""
        self._mark(leaf)  # one that an earlier version made has none
        leaf_id = self._ids.get(leaf)
        if leaf_id is not None:
            t.cast(Maps, self._maps).remove_member(leaf_id)
        self._forget(leaf)

    def thaw(self) -> None:
        """A run was killed while it had frozen some, and with it the child that was to do this."""
        own = (self._cgroups.rule_cgroup(name) for name in self._cgroups.rule_names())
        for cgroup in (*own, *self.rules, *self.orphans):
            freezing.thaw(self._cgroups.absolute(cgroup))

    def bury(self, name: str) -> None:
        """Takes the leaves of a rule that are gone, with the service that they were in, out of the member map."""
        for leaf_id in self.dead.pop(name, ()):
            t.cast(Maps, self._maps).remove_member(leaf_id)

    def forgotten(self, guess: bool = True) -> list[str]:
        """Leaves that are no members: left by a run that was killed, or since somebody could not leave one. ``guess``:
        with those that have no mark.
        """
        others = set(named(self._cgroups)) - set(self.rules) - set(self.orphans)
        return sorted(cgroup for cgroup in others if self._is_left(cgroup) or (guess and self._is_unmarked(cgroup)))

    def _mark(self, leaf: str) -> None:
        with contextlib.suppress(OSError):  # gone, or not permitted in this container: it is known as a member
            os.setxattr(self._cgroups.absolute(leaf), _MARK, str(self._cgroups.identifier("/")).encode())

    def _mark_of(self, cgroup: str) -> str | None:
        try:
            return os.getxattr(self._cgroups.absolute(cgroup), _MARK).decode(errors="replace")
        except (OSError, LimiterError):
            return None

    def _is_left(self, cgroup: str) -> bool:
        """Whether a cgroup that is no leaf of a rule was one of ours."""
        return cgroup in self.orphans or self._mark_of(cgroup) == str(self._cgroups.identifier("/"))

    def _is_unmarked(self, cgroup: str) -> bool:
        """Whether it looks like what a run left that was killed before it could mark it, or an earlier version: nobody
        has been in it, and nobody is.
        """
        if self._mark_of(cgroup) is not None or leaves.unit_of(os.path.basename(cgroup)) is not None:
            return False
        return not trees.children(self._cgroups.absolute(cgroup)) and not self._cgroups.pids(cgroup)

    def _add(self, leaf: str, name: str) -> None:
        self.rules[leaf] = name
        self._of.setdefault(name, set()).add(leaf)

    def _forget(self, leaf: str) -> None:
        self._of.get(self.rules.pop(leaf, ""), set()).discard(leaf)
        self._ids.pop(leaf, None)
        if leaf in self.orphans:
            self.orphans.remove(leaf)


def _no_more(limit: str, cgroup: str, what: str) -> leaves.NoLeaf:
    file = f"cgroup.max.{limit} of {cgroup}"
    return leaves.NoLeaf(f"{file} allows no more {what}", f"raise {file}")


def named(cgroups: Cgroups) -> list[str]:
    """All cgroups that are called like a leaf and belong to root; a look at the whole hierarchy."""
    with trees.walked(cgroups.mount) as tree:
        below = [
            directory[len(cgroups.mount) :] for directory in tree.directories if directory.startswith(cgroups.mount)
        ]
    called = [cgroup for cgroup in below if os.path.basename(cgroup).startswith(leaves.PREFIX)]
    return [cgroup for cgroup in called if cgroups.is_roots(cgroup)]


def _descendants(directory: str) -> int:
    for line in (processes.read_file(f"{directory}/cgroup.stat") or b"").splitlines():
        if line.startswith(b"nr_descendants "):
            return int(line.split()[1])
    return 0
