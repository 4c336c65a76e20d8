"""The linear regions of a network on a plane, as polygons.

A plane through the input space is cut by every unit along a line within each polygon that came before it, for there
the unit is affine: no grid, no sampling. Polygons of one region may touch where a unit was cut that does not reach
the output any more; they have different patterns and count apart, as patterns do everywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.graph import Graph, Node
from microtome.interpret.patterns import (
    KINKED,
    deciders,
    doubled,
    flowing,
    frozen_run,
    switches,
)

TOLERANCE = 1e-10
"""Share of a polygon's extent below which a piece cut off counts as nothing."""


@dataclass(frozen=True, eq=False)
class PlaneRegions:
    """Convex polygons in plane coordinates: ``polygons`` of [corners, 2] each, and the pattern of each [units]."""

    polygons: tuple[Tensor, ...]
    patterns: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def areas(self) -> Tensor:
        """[regions] in plane coordinates."""
        return torch.stack([area(polygon) for polygon in self.polygons])


def area(polygon: Tensor) -> Tensor:
    """Of a polygon [corners, 2], by the shoelace formula; positive when it turns left."""
    x, y = polygon.unbind(1)
    return (x * y.roll(-1) - x.roll(-1) * y).sum() / 2


def plane_regions(
    graph: Graph, origin: Tensor, across: Tensor, up: Tensor, *, most: int = 20_000
) -> PlaneRegions:
    """Regions on the points origin + u across + v up, u and v in 0..1; the three of one example's shape [...].

    Raises:
        SubjectError: MT340 for operations that are not piecewise linear, MT344 beyond ``most`` polygons.
    """
    graph, asked = doubled(graph), switches(graph)
    corners = torch.stack([origin, origin + across, origin + up]).double()
    polygons = [torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)]
    codes: list[list[Tensor]] = [[]]
    for i, node in enumerate(asked):
        functions = _functions(graph, node, asked[:i], corners, codes)
        cut: list[Tensor] = []
        named: list[list[Tensor]] = []
        for polygon, code, function in zip(polygons, codes, functions, strict=True):
            parts = _cut(polygon, function, node.target in KINKED)
            cut += parts
            named += [[*code, _piece(part.mean(0), function, node.target in KINKED)] for part in parts]
            if len(cut) > most:
                raise SubjectError(
                    "MT344", f"the plane has more than {most} linear regions", where=node.place(),
                    fix="look at a smaller part of it",
                )  # fmt: skip
        polygons, codes = cut, named
    patterns = tuple(torch.cat(code) if code else torch.zeros(0, dtype=torch.long) for code in codes)
    return PlaneRegions(tuple(polygons), patterns)


def _functions(
    graph: Graph, node: Node, before: Sequence[Node], corners: Tensor, codes: list[list[Tensor]]
) -> Tensor:
    """[polygons, 3, units, q]: constant and two slopes of what decides a switch, on every polygon.

    The operand less each of q breaks, or the q candidates.
    """
    count = len(codes)
    held = {n: torch.stack([c[i] for c in codes]).repeat_interleave(3, 0) for i, n in enumerate(before)}
    rows = corners.repeat(count, *[1] * (corners.dim() - 1))
    run = frozen_run(graph, rows, held, targets=flowing(node), keep=flowing(node))
    # Outside of the image: below everything, so that nothing chooses it.
    found = deciders(graph, node, run.values).nan_to_num(neginf=-1e300)
    first, second, third = found.unflatten(0, (count, 3)).unbind(1)
    return torch.stack([first, second - first, third - first], 1)


def _at(points: Tensor, function: Tensor) -> Tensor:
    """[p, ...] values of functions [3, ...] at points [p, 2]."""
    return function[0] + torch.einsum("pc,c...->p...", points, function[1:])


def _piece(point: Tensor, function: Tensor, kinked: bool) -> Tensor:
    value = _at(point[None], function)[0]  # [units, q]
    return (value > 0).sum(-1) if kinked else value.argmax(-1)


def _cut(polygon: Tensor, function: Tensor, kinked: bool) -> list[Tensor]:
    """The polygon cut along every line on which a unit changes its piece."""
    value = _at(polygon, function)  # [corners, units, q]
    parts = [polygon]
    if kinked:
        crossing = (value.amin(0) < 0) & (value.amax(0) > 0)
        for line in function[:, crossing].T:
            parts = [half for part in parts for half in (_clip(part, line), _clip(part, -line)) if len(half)]
        return parts
    leaders = value.argmax(-1)  # [corners, units]
    for unit in (leaders != leaders[:1]).any(0).nonzero()[:, 0].tolist():
        parts = [own for part in parts for own in _leading(part, function[:, unit])]
    return parts


def _leading(polygon: Tensor, function: Tensor) -> list[Tensor]:
    """For each of the candidates [3, q] the part on which it is the largest, where there is one."""
    found = []
    for i in range(function.shape[1]):
        part = polygon
        for j in range(function.shape[1]):
            if i != j and len(part):
                part = _clip(part, function[:, i] - function[:, j])
        if len(part):
            found.append(part)
    return found


def _clip(polygon: Tensor, line: Tensor) -> Tensor:
    """The part [corners, 2] on which the line's function [3] is positive; no corners where there is none."""
    value = _at(polygon, line)
    if bool((value <= 0).all()):
        return polygon[:0]
    if bool((value >= 0).all()):
        return polygon
    ahead, following = polygon.roll(-1, 0), value.roll(-1)
    corners = []
    for i, (a, b) in enumerate(zip(value.tolist(), following.tolist(), strict=True)):
        if a >= 0:
            corners.append(polygon[i])
        if a * b < 0:
            corners.append(polygon[i] + a / (a - b) * (ahead[i] - polygon[i]))
    part = torch.stack(corners)
    return part if float(area(part)) > TOLERANCE * float(area(polygon)) else polygon[:0]
