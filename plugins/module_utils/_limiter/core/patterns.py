# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns of cgroup paths, and the graph by which the program finds their rules (bpf/graph.h). Pure.

A pattern is a path below the cgroup2 mount. Each of its names may have one star, which stands for any text, also none.
The most specific pattern that matches a cgroup holds there. From the top down, a name is more specific than a star, and
a longer text than a shorter one. The patterns of the cgroups above hold too.

A node stands for the set of all patterns that the path fits so far. This is the subset construction of a deterministic
automaton (Rabin and Scott, 1959). So the program takes one edge per name: the edge of that very name, or else the edge
of the first shape that the name has, a text before and a text behind a star.
"""

from __future__ import annotations

import functools
import typing as t

from .errors import LimiterError
from .layout import MAX_DEPTH, MAX_EDGES, MAX_NAME, MAX_NESTED, MAX_PATTERN, MAX_SHAPES, MAX_STAR_TEXT

_AS_SHOWN = "Give a path as in /proc/PID/cgroup, without '0::'"
# There are two graphs while one takes the place of the other.
_MOST_EDGES = MAX_EDGES // 2
_ONE_STAR = "Each name of a path may have one star; give several paths, or a shorter text before the star"

Shape = tuple[str, str]  # what a name begins and ends with


class Pattern(t.NamedTuple):
    """The names of a path, from the top; of each that has a star what is before and behind it."""

    names: tuple[str | Shape, ...]

    @property
    def rank(self) -> tuple[tuple[bool, int], ...]:
        """The greater, the more specific."""
        return tuple((isinstance(name, str), sum(map(len, name))) for name in self.names)

    def __str__(self) -> str:
        return "/" + "/".join(name if isinstance(name, str) else "*".join(name) for name in self.names)


class Node(t.NamedTuple):
    """The rule of the cgroups at this node, and the numbers of the nodes below it."""

    rule: str | None
    names: dict[str, int]
    shapes: list[tuple[Shape, int]]  # the most specific first


@functools.cache  # a task sees each several times
def parse(option: str, text: str) -> Pattern:
    """Raises LimiterError ``bad_cgroup_path``."""
    if not text.startswith("/"):
        raise bad_path(option, text, "it does not begin with a slash")
    words = text.strip("/").split("/") if text.strip("/") else []
    if len(words) >= MAX_DEPTH:
        raise bad_path(option, text, f"it has {len(words)} names, and the program looks at {MAX_DEPTH - 1} levels")
    names: list[str | Shape] = []
    for word in words:
        if word in ("", ".", ".."):
            raise bad_path(option, text, f"{word!r} is no name of a cgroup")
        if _size(word) > MAX_NAME:
            raise bad_path(option, text, f"a name has {MAX_NAME} bytes at most")
        if word.count("*") > 1:
            raise bad_path(option, text, f"{word!r} has more than one star", _ONE_STAR)
        before, star, behind = word.partition("*")
        if star and max(_size(before), _size(behind)) > MAX_STAR_TEXT:
            raise bad_path(
                option, text, f"{word!r} has more than {MAX_STAR_TEXT} bytes on one side of the star", _ONE_STAR
            )
        names.append((before, behind) if star else word)
    pattern = Pattern(tuple(names))
    if _size(str(pattern)) > MAX_PATTERN:
        raise bad_path(option, text, f"a path has {MAX_PATTERN} bytes at most")
    return pattern


def rules_on(graph: t.Sequence[Node], cgroup: str) -> list[str | None]:
    """The rule at each level of the way from the root down to a cgroup, as the program finds it."""
    if not graph:
        return []
    node: Node | None = graph[0]
    found = [graph[0].rule]
    for name in cgroup.strip("/").split("/") if cgroup != "/" else ():
        node = _below(graph, node, name) if node else None
        found.append(node.rule if node else None)
    return found


def _below(graph: t.Sequence[Node], node: Node, name: str) -> Node | None:
    if name in node.names:
        return graph[node.names[name]]
    return next((graph[after] for shape, after in node.shapes if fits(name, shape)), None)


def limits_on(graph: t.Sequence[Node], cgroup: str, each: t.Container[str]) -> list[str]:
    """The rules that hold for a cgroup, the outermost first. One whose cgroups have budgets of their own (``each``)
    comes once for every budget, any other once.
    """
    found: list[str] = []
    for rule in rules_on(graph, cgroup):
        if rule is not None and (rule in each or rule not in found):
            found.append(rule)
    return found


def may_begin(text: str, name: str | Shape) -> bool:
    """Whether a name that begins with a text can be meant by one of a pattern."""
    before = name if isinstance(name, str) else name[0]
    return before.startswith(text) or (not isinstance(name, str) and text.startswith(before))


def compile_graph(targets: t.Mapping[Pattern, str], each: t.Container[str] = ()) -> list[Node]:
    """The graph; its first node is the root's. ``each``: rules whose cgroups have budgets of their own.

    Raises LimiterError: ``ambiguous_patterns`` where two of equal rank and different rules match one cgroup,
    ``too_many_patterns`` where more stars meet at one node than the program looks through, or all lead to more names
    than its map has room for, ``too_many_rules`` where more rules lie above each other than can hold for one cgroup.
    """
    return _Compiler(targets, each).nodes


# A pattern's number, and how many of its names the path has passed.
_Items = frozenset[tuple[int, int]]


class _Compiler:
    def __init__(self, targets: t.Mapping[Pattern, str], each: t.Container[str]) -> None:
        self._each = each
        self._patterns = list(targets)
        self._rules = list(targets.values())
        self._numbers: dict[_Items, int] = {}
        self._edges = 0
        self.nodes: list[Node] = []
        self._node(frozenset((number, 0) for number in range(len(self._patterns))))
        self._check_ways()

    def _node(self, items: _Items) -> int:
        if items in self._numbers:
            return self._numbers[items]
        number = self._numbers[items] = len(self.nodes)
        node = Node(self._rule(items), {}, [])
        self.nodes.append(node)
        whole: dict[str, set[tuple[int, int]]] = {}
        stars: dict[Shape, set[tuple[int, int]]] = {}
        for index, passed in items:
            names = self._patterns[index].names
            if passed < len(names):
                name, then = names[passed], (index, passed + 1)
                if isinstance(name, str):
                    whole.setdefault(name, set()).add(then)
                else:
                    stars.setdefault(name, set()).add(then)
        shapes = self._closed(stars)
        below = {*whole, *(name for shape in shapes for name in _overlapping(shape))}
        self._count(len(below) + len(shapes))
        for name in below:
            after = whole.get(name, set()).union(*(then for shape, then in stars.items() if fits(name, shape)))
            node.names[name] = self._node(frozenset(after))
        for shape in sorted(shapes, key=lambda one: (-len(one[0]) - len(one[1]), one)):
            after = set().union(*(then for other, then in stars.items() if _covers(other, shape)))
            node.shapes.append((shape, self._node(frozenset(after))))
        return number

    def _count(self, edges: int) -> None:
        self._edges += edges
        if self._edges > _MOST_EDGES:
            raise LimiterError(
                "too_many_patterns",
                f"the patterns lead to more than {_MOST_EDGES} names of cgroups",
                "a name that a star of its level means too leads to all that is below both",
                "Give fewer patterns, or fewer with a star beside names that it means",
            )

    def _check_ways(self) -> None:
        # Of each rule, the level at which it holds where that makes another budget.
        ways: list[tuple[int, int, frozenset[tuple[str, int]]]] = [(0, 0, frozenset())]
        seen = set(ways)
        while ways:
            number, level, above = ways.pop()
            node = self.nodes[number]
            rules = above if node.rule is None else above | {(node.rule, level if node.rule in self._each else 0)}
            if len(rules) > MAX_NESTED:
                names = sorted({rule for rule, _level in rules})
                raise LimiterError(
                    "too_many_rules",
                    f"more than {MAX_NESTED} rules can hold for one cgroup: {', '.join(names)}",
                    "their patterns lie above each other"
                    + ("" if len(names) > MAX_NESTED else ", and with each every level has a budget of its own"),
                    "Let one rule hold at fewer levels, or give several patterns one rule",
                )
            nodes_below = (*node.names.values(), *(after for _shape, after in node.shapes))
            below = {(after, level + 1, rules) for after in nodes_below}
            ways += below - seen
            seen |= below

    def _rule(self, items: _Items) -> str | None:
        ends = [index for index, passed in items if passed == len(self._patterns[index].names)]
        if not ends:
            return None
        ends.sort(key=lambda index: self._patterns[index].rank, reverse=True)
        first = self._patterns[ends[0]]
        for other in ends[1:]:
            if self._patterns[other].rank != first.rank:
                break
            if self._rules[other] != self._rules[ends[0]]:
                both = sorted((str(first), str(self._patterns[other])))
                raise LimiterError(
                    "ambiguous_patterns",
                    f"{both[0]} and {both[1]} match the same cgroups",
                    "neither is more specific, and they belong to two rules",
                    "Make one of them more specific, or name the cgroups that both match",
                )
        return self._rules[ends[0]]

    def _closed(self, stars: t.Mapping[Shape, object]) -> set[Shape]:
        """The shapes, and those of names that have several of them."""
        shapes = set(stars)
        while more := {meet for one in shapes for other in shapes if (meet := _meet(one, other))} - shapes:
            shapes |= more
            if len(shapes) > MAX_SHAPES:
                break
        if len(shapes) > MAX_SHAPES:
            names = ", ".join(sorted("*".join(shape) for shape in stars))
            raise LimiterError(
                "too_many_patterns",
                f"too many patterns with a star meet at one level: {names}",
                f"the program tries at most {MAX_SHAPES} there, and it needs one more for names that two of them match",
                "Replace some by the names of the cgroups",
            )
        return shapes


def _size(text: str) -> int:
    """Bytes, as the kernel has a name."""
    return len(text.encode(errors="surrogateescape"))


def fits(name: str, shape: Shape) -> bool:
    """Whether a name begins and ends as a shape says, and the two do not overlap."""
    return len(name) >= len(shape[0]) + len(shape[1]) and name.startswith(shape[0]) and name.endswith(shape[1])


def is_name(wanted: str | Shape, name: str) -> bool:
    """Whether one name of a pattern means a cgroup's name."""
    return wanted == name if isinstance(wanted, str) else fits(name, wanted)


def _covers(general: Shape, special: Shape) -> bool:
    """Whether each name of the second shape has the first one, too."""
    return special[0].startswith(general[0]) and special[1].endswith(general[1])


def _meet(one: Shape, other: Shape) -> Shape | None:
    """The shape of names that have both, if they are long enough: see `_overlapping`."""
    before = max(one[0], other[0], key=len)
    behind = max(one[1], other[1], key=len)
    met = before, behind
    return met if _covers(one, met) and _covers(other, met) else None


def _overlapping(shape: Shape) -> t.Iterator[str]:
    """Names that begin and end as a shape says, but too short for it: the texts share some letters."""
    before, behind = shape
    for length in range(1, min(len(before), len(behind)) + 1):
        if before.endswith(behind[:length]):
            yield before + behind[length:]


def bad_path(option: str, text: str, why: str, remedy: str = _AS_SHOWN) -> LimiterError:
    return LimiterError("bad_cgroup_path", f"{option} {text!r} is refused", why, remedy)
