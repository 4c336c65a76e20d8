"""Multigraphs up to a number of edges, one of each: the names of all polynomials of a graph, and how hard each is.

Enumeration grows connected ones edge by edge. Their number is checked against Burnside's lemma, which counts the same
polynomials without naming one.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from microtome.errors import UsageError


class Multigraph(NamedTuple):
    """Nodes 0..nodes-1, of which the first ``roots`` are marked; edges (r, s, multiplicity) with r <= s."""

    nodes: int
    edges: tuple[tuple[int, int, int], ...]
    roots: int = 0

    @property
    def degree(self) -> int:
        """Number of edges, with multiplicity."""
        return sum(m for _, _, m in self.edges)


def connected_multigraphs(
    degree: int, *, roots: int = 0, loops: bool = False, parallel: bool = True
) -> list[list[Multigraph]]:
    """Connected multigraphs of each degree 0..degree, one of each up to isomorphism that keeps the marked node.

    Args:
        degree: most edges.
        roots: 0, or 1 for polynomials with a value a node.
        loops: whether the diagonal of X is not zero.
        parallel: whether X is weighted; of a plain graph x^2 = x, so parallel edges add nothing.
    """
    if not 0 <= roots <= 1 or degree < 0:
        raise UsageError("MT454", f"roots={roots}, degree={degree}: need 0 or 1, and 0 or more")
    found = [[Multigraph(1, (), roots)]]
    for _ in range(degree):
        grown = (_canonical(g, roots) for old in found[-1] for g in _with_an_edge(old, loops, parallel))
        found.append(sorted(set(grown)))
    return found


def _with_an_edge(given: Multigraph, loops: bool, parallel: bool) -> Iterator[Multigraph]:
    held = {(r, s): m for r, s, m in given.edges}
    for r in range(given.nodes):
        for s in range(r if loops else r + 1, given.nodes + 1):
            if (r, s) not in held or parallel:
                edges = held | {(r, s): held.get((r, s), 0) + 1}
                yield Multigraph(
                    max(given.nodes, s + 1), tuple((a, b, m) for (a, b), m in edges.items()), given.roots
                )


def _canonical(given: Multigraph, roots: int) -> Multigraph:
    """The copy that is least among those in the order of refined colours."""
    near: list[list[tuple[int, int]]] = [[] for _ in range(given.nodes)]
    for r, s, m in given.edges:
        near[r].append((s, m))
        if s != r:
            near[s].append((r, m))
    colours: list[Any] = [(v >= roots, sum(m for s, m in near[v] if s == v)) for v in range(given.nodes)]
    for _ in range(given.nodes):
        told = [
            (colours[v], sorted((m, colours[s]) for s, m in near[v] if s != v)) for v in range(given.nodes)
        ]
        place = {repr(c): i for i, c in enumerate(sorted(told))}
        colours = [place[repr(c)] for c in told]
    classes = [[v for v in range(given.nodes) if colours[v] == c] for c in sorted(set(colours))]
    copies = []
    for orders in itertools.product(*(itertools.permutations(c) for c in classes)):
        new = {v: i for i, v in enumerate(itertools.chain.from_iterable(orders))}
        copies.append(tuple(sorted((min(new[r], new[s]), max(new[r], new[s]), m) for r, s, m in given.edges)))
    return Multigraph(given.nodes, min(copies), roots)


@functools.lru_cache(maxsize=100_000)
def elimination(given: Multigraph) -> tuple[int, tuple[int, ...]]:
    """Treewidth of a multigraph and an order of its unmarked nodes, which are summed over, that attains it."""
    near = [
        {s for r, s, _ in given.edges if r == v} | {r for r, s, _ in given.edges if s == v}
        for v in range(given.nodes)
    ]

    def scope(done: frozenset[int], v: int) -> int:
        seen, front = {v}, [v]
        while front:
            for w in near[front.pop()] - seen:
                seen.add(w)
                if w in done:
                    front.append(w)
        return len(seen - done) - 1

    @functools.cache
    def best(done: frozenset[int]) -> tuple[int, tuple[int, ...]]:
        if not done:
            return 0, ()
        options = []
        for v in sorted(done):
            width, order = best(done - {v})
            options.append((max(width, scope(done - {v}, v)), (*order, v)))
        return min(options)

    return best(frozenset(range(given.roots, given.nodes)))


def count_basis(nodes: int, degree: int, *, roots: int = 0, loops: bool = False) -> int:
    """How many independent polynomials of one degree there are on n x n symmetric matrices, by Burnside's lemma.

    That is the number of orbits of the monomials in the entries under permutations that keep the marked nodes.
    """
    total = 0
    free = nodes - roots
    for cycles in _partitions(free, free):
        whole = [1] * roots + list(cycles)
        series = [1] + [0] * degree
        lengths = [c for c in whole if loops]
        for i, c in enumerate(whole):
            lengths += [c] * ((c - 1) // 2) + ([c // 2] if c % 2 == 0 else [])
            lengths += [math.lcm(c, b) for b in whole[:i] for _ in range(math.gcd(c, b))]
        for length in lengths:  # times 1 / (1 - t^length)
            for d in range(length, degree + 1):
                series[d] += series[d - length]
        alike = math.prod(c ** cycles.count(c) * math.factorial(cycles.count(c)) for c in set(cycles))
        total += series[degree] * (math.factorial(free) // alike)
    return total // math.factorial(free)


def _partitions(total: int, most: int) -> Iterator[tuple[int, ...]]:
    if total == 0:
        yield ()
    for first in range(min(total, most), 0, -1):
        yield from ((first, *rest) for rest in _partitions(total - first, first))


def basis(nodes: int, degree: int, *, roots: int = 0, loops: bool = False) -> list[tuple[Multigraph, ...]]:
    """The multigraphs of one degree on at most ``nodes`` nodes, as their connected pieces (the marked one first)."""
    pieces = [p for some in connected_multigraphs(degree, loops=loops)[1:] for p in some]

    def free(left: int, room: int, start: int) -> Iterator[tuple[Multigraph, ...]]:
        if left == 0:
            yield ()
        for i in range(start, len(pieces)):
            p = pieces[i]
            if p.degree <= left and p.nodes <= room:
                yield from ((p, *rest) for rest in free(left - p.degree, room - p.nodes, i))

    if not roots:
        return list(free(degree, nodes, 0))
    marked = [p for some in connected_multigraphs(degree, roots=1, loops=loops) for p in some]
    return [
        (p, *rest) for p in marked if p.nodes <= nodes for rest in free(degree - p.degree, nodes - p.nodes, 0)
    ]


__all__ = ["Multigraph", "basis", "connected_multigraphs", "count_basis", "elimination"]
