"""A piecewise-linear network as the decision tree it is equivalent to.

Every unit of a switch (a ReLU) asks whether an affine function of the input is positive; which function it is depends
on the answers before it, for those fix what the layers in between are. So the network is a tree: splits are linear in
the input, leaves are affine maps, one for each linear region (Aytekin 2022).

``DecisionTree`` is built as inputs reach it: a branch holds all questions of one switch, its children are by their
answers. It gives what the network gives, in float64. ``grown`` builds all of it within a box, unit by unit, leaving out
answers that no input can give (a linear program each), and joins what answers the same class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.graph import Graph, Node
from microtome.interpret.patterns import (
    KINKED,
    at_units,
    deciders,
    doubled,
    flowing,
    only_input,
    switches,
)

WIDTH = 1e-9
"""Regions in which no ball of this radius fits are not counted."""


class Rule(NamedTuple):
    """``weight`` [d] times x plus ``constant`` is above 0 (``above``) or not, which ``layer`` asks."""

    layer: str
    weight: Tensor
    constant: float
    above: bool


@dataclass(frozen=True, eq=False)
class Leaf:
    """A linear region: outputs are ``weight`` [k, d] x + ``constant`` [k]; ``pieces`` are its answers by switch."""

    weight: Tensor
    constant: Tensor
    pieces: tuple[Tensor, ...]


@dataclass(eq=False)
class _Branch:
    """What a switch asks after given answers: [d, units, q] slopes and [units, q] constants of its deciders."""

    slopes: Tensor
    constants: Tensor
    pieces: tuple[Tensor, ...]
    children: dict[bytes, _Branch | Leaf] = field(default_factory=dict)


class DecisionTree:
    """The tree of a captured network, built where inputs reach it.

    ``tree(x)`` are the outputs [n, ...] for inputs [n, ...]; ``tree.leaves`` what was reached so far.
    """

    def __init__(self, graph: Graph, depth: tuple[Node, ...], shape: tuple[int, ...]) -> None:
        self.graph, self.levels, self.shape = graph, depth, shape
        self.size = math.prod(shape)
        self.leaves: list[Leaf] = []
        self.root = self._made(())
        self._outputs: tuple[int, ...] = ()

    @staticmethod
    def from_graph(graph: Graph, parameters: Mapping[str, Tensor] | None = None) -> DecisionTree:
        """An empty tree; ``parameters`` replace the network's own.

        Raises:
            SubjectError: MT340 for a network that is not piecewise linear, MT342 for other than one real input.
        """
        held = doubled(graph, parameters)
        shape = only_input(held).shape or ()
        if not all(isinstance(size, int) for size in shape[1:]):
            raise SubjectError(
                "MT342", f"the input {list(shape)} has no fixed size", fix="capture it with one"
            )
        return DecisionTree(held, switches(held), tuple(int(size) for size in shape[1:]))

    def __call__(self, x: Tensor) -> Tensor:
        """[n, ...] -> outputs as the network gives them, float64."""
        flat = x.detach().double().reshape(len(x), self.size)
        found = self.leaves_of(x)
        if not found:
            return flat.new_zeros(0)
        groups: dict[int, list[int]] = {}
        for i, leaf in enumerate(found):
            groups.setdefault(id(leaf), []).append(i)
        out = flat.new_zeros(len(x), len(found[0].constant))
        for rows in groups.values():
            leaf = found[rows[0]]
            out[rows] = flat[rows] @ leaf.weight.T + leaf.constant
        return out.reshape(len(x), *self._outputs)

    def leaves_of(self, x: Tensor) -> list[Leaf]:
        """The leaf of each of n inputs; branches on the way are added."""
        flat = x.detach().double().reshape(len(x), self.size)
        found: dict[int, Leaf] = {}
        waiting: list[tuple[_Branch | Leaf, Tensor]] = [(self.root, torch.arange(len(x)))]
        while waiting:
            at, rows = waiting.pop()
            if isinstance(at, Leaf):
                found.update(dict.fromkeys(rows.tolist(), at))
                continue
            value = torch.einsum("nd,duq->nuq", flat[rows], at.slopes) + at.constants
            answers = answered(self.levels[len(at.pieces)], value)
            kinds, which = answers.unique(dim=0, return_inverse=True)
            for i, answer in enumerate(kinds):
                key = answer.numpy().tobytes()
                if key not in at.children:
                    at.children[key] = self._made((*at.pieces, answer))
                waiting.append((at.children[key], rows[which == i]))
        return [found[i] for i in range(len(x))]

    def _made(self, pieces: tuple[Tensor, ...]) -> _Branch | Leaf:
        """What follows after answers: the next switch's questions, or the leaf."""
        held = {node: piece[None] for node, piece in zip(self.levels, pieces, strict=False)}
        like = torch.zeros(1, *self.shape, dtype=torch.float64)
        if len(pieces) < len(self.levels):
            node = self.levels[len(pieces)]
            rows, values = at_units(self.graph, like, held, flowing(node))
            found = deciders(self.graph, node, values)  # [d + 1, units, q]
            slopes = (found[1:] - found[:1]).nan_to_num(nan=0.0)  # -inf less -inf: no candidate there
            return _Branch(slopes, found[0], pieces)
        rows, values = at_units(self.graph, like, held, [self.graph.output])
        out = values[self.graph.output]
        self._outputs = tuple(out.shape[1:])
        out = out.reshape(rows, -1)
        leaf = Leaf((out[1:] - out[:1]).T, out[0], pieces)
        self.leaves.append(leaf)
        return leaf

    def rules(self, leaf: Leaf) -> list[Rule]:
        """Every question on the way to a leaf with its answer, in order."""
        at: _Branch | Leaf = self.root
        found = []
        for piece in leaf.pieces:
            assert isinstance(at, _Branch)
            node = self.levels[len(at.pieces)]
            for unit, answer in enumerate(piece.tolist()):
                for weight, constant, above in constraints(
                    node, at.slopes[:, unit], at.constants[unit], answer
                ):
                    found.append(Rule(node.layer or node.name, weight, constant, above))
            at = at.children[piece.numpy().tobytes()]
        return found

    @property
    def depth(self) -> int:
        """Units asked on the way to a leaf: all of them, as none is left out."""
        return sum(len(piece) for piece in self.leaves[0].pieces) if self.leaves else 0

    def multiply_adds(self, leaf: Leaf) -> int:
        """Of one decision: d for each question on the way, and the leaf's map."""
        return self.size * (len(self.rules(leaf)) + len(leaf.constant))


def answered(node: Node, value: Tensor) -> Tensor:
    """[n, units] pieces from deciders [n, units, q]."""
    return (value > 0).sum(-1) if node.target in KINKED else value.argmax(-1)


def constraints(
    node: Node, slopes: Tensor, constants: Tensor, piece: int
) -> Iterator[tuple[Tensor, float, bool]]:
    """(weight [d], constant, whether weight x + constant > 0) of a unit at a piece, from deciders [d, q] and [q]."""
    count = len(constants)
    if node.target in KINKED:
        for i in range(max(piece - 1, 0), min(piece + 1, count)):
            yield slopes[:, i], float(constants[i]), i < piece
        return
    for j in range(count):
        if j != piece and math.isfinite(constants[j]):
            yield slopes[:, piece] - slopes[:, j], float(constants[piece] - constants[j]), True


# --- the whole tree in a box


@dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """A leaf that some input of the box reaches: one of them, the answer there, whether all its inputs give it.

    ``splits`` counts the questions on the way whose answer was open.
    """

    leaf: Leaf
    point: np.ndarray
    answer: int
    certain: bool
    splits: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Grown:
    """All leaves within a box, how many remain when neighbours of one class are joined, and programs solved."""

    regions: tuple[Region, ...]
    joined: int
    programs: int


def grown(
    graph: Graph, low: float, high: float, *, most: int = 5000, parameters: Mapping[str, Tensor] | None = None
) -> Grown:
    """The whole tree for inputs in [low, high]^d.

    Raises:
        SubjectError: MT344 beyond ``most`` leaves: their number grows with units^d.
    """
    tree = DecisionTree.from_graph(graph, parameters)
    work = _Growth(tree, low, high, most)
    joined, _ = work.below(tree.root, 0, (), [], [], np.full(tree.size, (low + high) / 2), 0)
    return Grown(regions=tuple(work.regions), joined=joined, programs=work.programs)


class _Growth:
    def __init__(self, tree: DecisionTree, low: float, high: float, most: int) -> None:
        self.tree, self.bounds, self.most = tree, (low, high), most
        self.regions: list[Region] = []
        self.programs = 0

    def below(
        self, at: _Branch | Leaf, unit: int, answers: tuple[int, ...],
        sides: list[np.ndarray], limits: list[float], point: np.ndarray, splits: int,
    ) -> tuple[int, int | None]:  # fmt: skip
        """Leaves under here after joining, and the class they all answer (None when several).

        ``sides`` x <= ``limits`` hold here, and do so at ``point`` with room to spare.
        """
        if isinstance(at, Leaf):
            return self._leaf(at, sides, limits, point, splits)
        if unit == len(at.constants):
            after = self.tree._made((*at.pieces, torch.tensor(answers, dtype=torch.long)))
            return self.below(after, 0, (), sides, limits, point, splits)
        node = self.tree.levels[len(at.pieces)]
        slopes, constants = at.slopes[:, unit], at.constants[unit]
        open_ = []
        for piece in range(len(constants) + (node.target in KINKED)):
            if node.target not in KINKED and not math.isfinite(constants[piece]):
                continue
            rows = [
                (-w.numpy() if above else w.numpy(), c if above else -c)
                for w, c, above in constraints(node, slopes, constants, piece)
            ]
            inside = self._inside(sides, limits, rows, point)
            if inside is not None:
                open_.append((piece, rows, inside))
        found, classes = 0, set()
        for piece, rows, inside in open_:
            count, answer = self.below(
                at, unit + 1, (*answers, piece), sides + [r for r, _ in rows], limits + [c for _, c in rows],
                inside, splits + (len(open_) > 1),
            )  # fmt: skip
            found += count
            classes.add(answer)
        (only,) = classes if len(classes) == 1 else (None,)
        return (found, None) if only is None else (1, only)

    def _inside(
        self,
        sides: list[np.ndarray],
        limits: list[float],
        rows: Sequence[tuple[np.ndarray, float]],
        point: np.ndarray,
    ) -> np.ndarray | None:
        """A point with a ball of radius ``WIDTH`` around it that keeps to everything, if there is one."""
        room = [limit - side @ point - WIDTH * np.linalg.norm(side) for side, limit in rows]
        if not rows or (min(room) > 0 and self._roomy(sides, limits, point)):
            return point
        for side, limit in rows:  # what no point of the box does needs no program
            centre, half = (self.bounds[1] + self.bounds[0]) / 2, (self.bounds[1] - self.bounds[0]) / 2
            if side.sum() * centre - half * np.abs(side).sum() >= limit:
                return None
        return self._centre([*sides, *(s for s, _ in rows)], [*limits, *(c for _, c in rows)])

    def _roomy(self, sides: list[np.ndarray], limits: list[float], point: np.ndarray) -> bool:
        if not sides:
            return True
        matrix = np.array(sides)
        room = np.array(limits) - matrix @ point - WIDTH * np.linalg.norm(matrix, axis=1)
        return bool((room > 0).all())

    def _centre(self, sides: list[np.ndarray], limits: list[float]) -> np.ndarray | None:
        """Centre of the largest ball within."""
        from scipy.optimize import linprog

        matrix = np.array(sides)
        norms = np.linalg.norm(matrix, axis=1)
        real = norms > 0
        if (np.array(limits)[~real] < 0).any():
            return None
        low, high = self.bounds
        size = matrix.shape[1]
        goal = np.zeros(size + 1)
        goal[-1] = -1.0
        walls = np.concatenate([np.eye(size), -np.eye(size)])
        a = np.concatenate([np.c_[matrix[real], norms[real]], np.c_[walls, np.ones(2 * size)]])
        b = np.concatenate([np.array(limits)[real], np.full(size, high), np.full(size, -low)])
        self.programs += 1
        found: Any = linprog(goal, a, b, bounds=[(None, None)] * size + [(0, high - low)], method="highs")
        return found.x[:-1] if found.status == 0 and found.x[-1] > WIDTH else None

    def _leaf(
        self, leaf: Leaf, sides: list[np.ndarray], limits: list[float], point: np.ndarray, splits: int
    ) -> tuple[int, int | None]:
        if len(self.regions) >= self.most:
            raise SubjectError(
                "MT344", f"the tree has more than {self.most} leaves", fix="look at a smaller box or network"
            )
        out = (leaf.weight.numpy() @ point) + leaf.constant.numpy()
        single = len(out) == 1
        answer = int(out[0] > 0) if single else int(out.argmax())
        certain = True
        for j in range(len(out)):
            if j == answer and not single:
                continue
            weight = leaf.weight.numpy()[j] - (0 if single else leaf.weight.numpy()[answer])
            constant = float(leaf.constant[j]) - (0.0 if single else float(leaf.constant[answer]))
            sign = -1.0 if single and answer else 1.0  # somewhere it would answer otherwise
            beyond = self._centre([*sides, -sign * weight], [*limits, sign * constant])
            if beyond is not None:
                certain = False
                break
        self.regions.append(Region(leaf=leaf, point=point, answer=answer, certain=certain, splits=splits))
        return 1, answer if certain else None


__all__ = ["DecisionTree", "Grown", "Leaf", "Region", "Rule", "grown"]
