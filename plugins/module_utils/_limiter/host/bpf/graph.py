# Copyright (c) 2026, the speed_limiter.ebpf contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph in the kernel by which the program finds cgroups that patterns name (bpf/graph.h)."""

from __future__ import annotations

import typing as t

from ...core import catalog, layout
from ...core.patterns import Node, Shape
from .maps import Maps

# A graph has the numbers of one half, the next one those of the other.
_HALVES = (range(1, 1 << 31), range(1 << 31, 1 << 32))


def switch(
    maps: Maps,
    root: int,
    graph: t.Sequence[Node],
    rules: t.Mapping[str, int],
    each: t.Container[str],
    source: int = 0,
) -> None:
    """Has cgroups found by a graph from now on, and by no earlier one. An empty one finds nothing.

    ``root``: id of the cgroup at which paths begin. ``rules``: the ids of the rules that nodes name. ``each``: those
    that give every cgroup a budget of its own. ``source``: checksum of the places that the graph was made of.

    A run that is killed leaves the graph that there was or the whole new one. Killed before it raises the generation,
    it leaves cached answers of the old graph until the next change. The next switch removes what else is left. Raises
    KernelError, LimiterError ``map_full``.
    """
    old, new = reversed(_HALVES) if maps.graph().node in _HALVES[1] else _HALVES
    _remove(maps, new)
    for number, node in enumerate(graph, new.start):
        rule = 0 if node.rule is None else rules[node.rule]
        shapes = [_packed(shape) for shape, _after in node.shapes]
        shapes += [0] * (layout.MAX_SHAPES - len(shapes))
        data = layout.NODE.pack(rule, node.rule in each, *shapes, _strange(node))
        maps.of(catalog.NODE).update(layout.INDEX.pack(number), data)
        edges = [(0, name, after) for name, after in node.names.items()]
        edges += [(_packed(shape), "".join(shape), after) for shape, after in node.shapes]
        for shape, name, after in edges:
            key = layout.EDGE.pack(number, shape, _encoded(name))
            maps.of(catalog.EDGE).update(key, layout.INDEX.pack(new.start + after))
    # Before the generation: no program may keep an answer of the old graph for longer than that.
    maps.write_graph(layout.Graph(root, new.start if graph else 0, source))
    maps.bump_generation()
    _remove(maps, old)


def _remove(maps: Maps, half: range) -> None:
    for row in (catalog.EDGE, catalog.NODE):
        one = maps.of(row)
        for key, _value in one.entries():
            # Both keys begin with a node.
            if layout.INDEX.unpack_from(key)[0] in half:
                one.delete(key)


def _strange(node: Node) -> int:
    """Of first bytes that no shape of a node begins with, the low 5 bits, as bits of a number."""
    begins = {_encoded(before)[:1] for (before, _behind), _after in node.shapes}
    usual = range(32) if b"" in begins else {first[0] & 31 for first in begins}
    return sum(1 << bits for bits in range(32) if bits not in usual)


def _packed(shape: Shape) -> int:
    before, behind = (len(_encoded(text)) for text in shape)
    return 1 << 16 | before << 8 | behind


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
