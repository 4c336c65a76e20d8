"""Activation patterns: which piece of every piecewise-linear operation an input takes, and what follows from it.

A network of linear maps and piecewise-linear operations (ReLU and its kin, clamps, absolute values, maxima and
max-pools) is linear on the inputs that share one pattern: its linear region. With the pattern frozen the program is
affine, so that the region's map and the distance to its boundary are exact, by evaluating the frozen program at 0
and at the unit vectors:

- ``switches(graph)``: the operations that decide a pattern; a smooth operation is the error MT340, which names it;
- ``pattern(graph, args)``: their pieces for given inputs, [n, ...] each, as small integers;
- ``affine(graph, args)``: the map (A [n, k, d], b [n, k]) that the network is around each input;
- ``boundary_distance(graph, args)``: Euclidean distance from each input to the nearest boundary of its region.

All is computed in float64, whatever the type of the network: ``doubled(graph)``. Crossings along lines and curves are
in ``crossings``, regions of a plane in ``planes``, the equivalent decision tree in ``decision_tree``.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.graph import Graph, Node, substitute
from microtome.interpret.interpreter import Run, forward, sources
from microtome.interpret.operations import AVERAGES, SHAPE_ONLY, STRUCTURAL, aten, overloads

_CONSTANT_SHAPE = frozenset(SHAPE_ONLY)
_AFFINE = frozenset((
    *STRUCTURAL, *AVERAGES,
    *overloads("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "rsub.Tensor", "neg"),
    *overloads("constant_pad_nd", "scatter.src", "index_put", "masked_fill.Scalar", "where.self", "addmm", "baddbmm"),
    *overloads("mul.Scalar", "div.Scalar", "mul.Tensor", "div.Tensor", "matmul", "mm", "bmm", "linear", "batch_norm"),
    aten.convolution.default,
))  # fmt: skip
# Affine in one operand when the others do not depend on the input; of these only one may.
_BILINEAR = frozenset((
    *overloads("mul.Tensor", "matmul", "mm", "bmm", "linear"), aten.convolution.default,
))  # fmt: skip
# Affine in the operands in these places alone: divisors, indices and conditions may not depend.
_PLACES: Mapping[Any, tuple[int, ...]] = {
    **dict.fromkeys(overloads("div.Tensor", "batch_norm", "gather", "index.Tensor", "index_select"), (0,)),
    **dict.fromkeys(overloads("where.self"), (1, 2)),
    **dict.fromkeys(overloads("scatter_add", "scatter.src"), (0, 2)),
    **dict.fromkeys(overloads("index_add"), (0, 2)),
    **dict.fromkeys(overloads("masked_fill.Scalar", "masked_select"), (0,)),
    **dict.fromkeys(overloads("embedding"), (0,)),
}


@dataclass(frozen=True, slots=True)
class Kinks:
    """An operation on single numbers: linear between ``breaks`` (m, ascending), m + 1 slopes and intercepts.

    Slopes may be tensors that broadcast with an entry's shape [1, ...] (PReLU).
    """

    breaks: tuple[float, ...]
    slopes: tuple[Any, ...]
    intercepts: tuple[float, ...]


def _clamp(low: float | None = None, high: float | None = None) -> Kinks:
    breaks, slopes, shifts = [], [1.0], [0.0]
    if low is not None and low > -math.inf:
        breaks, slopes, shifts = [float(low)], [0.0, 1.0], [float(low), 0.0]
    if high is not None and high < math.inf:
        breaks, slopes, shifts = [*breaks, float(high)], [*slopes, 0.0], [*shifts, float(high)]
    return Kinks(tuple(breaks), tuple(slopes), tuple(shifts))


def _prelu(weight: Tensor) -> Kinks:
    return Kinks((0.0,), (weight, 1.0), (0.0, 0.0))


KINKED: Mapping[Any, Any] = {
    op: made
    for names, made in (
        (("relu", "relu_"), lambda: Kinks((0.0,), (0.0, 1.0), (0.0, 0.0))),
        (("leaky_relu",), lambda slope=0.01: Kinks((0.0,), (float(slope), 1.0), (0.0, 0.0))),
        (("prelu",), _prelu),
        (("relu6",), lambda: _clamp(0.0, 6.0)),
        (("hardtanh",), lambda low=-1.0, high=1.0: _clamp(low, high)),
        (("clamp", "clamp_min"), _clamp),
        (("clamp_max",), lambda high: _clamp(None, high)),
        (("abs",), lambda: Kinks((0.0,), (-1.0, 1.0), (0.0, 0.0))),
        (("hardsigmoid",), lambda: Kinks((-3.0, 3.0), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0))),
    )
    for op in overloads(*names)
}
"""Operation -> (options) -> its kinks."""
CHOICES = overloads("maximum", "minimum", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d")
_LEAST = frozenset(overloads("minimum", "amin"))
_SWITCHES = frozenset((*KINKED, *CHOICES))


def switches(graph: Graph, start: Sequence[Node] | None = None) -> tuple[Node, ...]:
    """The operations whose pieces make up a pattern, in order of the program.

    Raises:
        SubjectError: MT340, naming the first operation that is not piecewise linear in the input.
    """
    reached = graph.reached(
        start if start is not None else sources(graph), lambda node: node.target not in _CONSTANT_SHAPE
    )
    needed = graph.needed([graph.output])
    first = set(start if start is not None else sources(graph))
    found = []
    for node in graph.operations:
        if node not in reached or node not in needed or node in first or node.target is operator.getitem:
            continue
        if node.target in _SWITCHES:
            found.append(node)
        elif not _affine(node, reached):
            raise SubjectError(
                "MT340",
                f"'{node.operation}' is not piecewise linear in the input: there are no linear regions",
                where=node.place(),
                fix="ask about a network of linear maps, ReLUs, clamps and maxima, or about the part before it",
            )
    return tuple(found)


def _affine(node: Node, reached: set[Node]) -> bool:
    if node.target not in _AFFINE:
        return False
    depends = [isinstance(a, Node) and a in reached for a in node.args]
    if node.target in _BILINEAR:
        return sum(operand in reached for operand in node.operands) == 1
    if node.target in _PLACES:
        places = _PLACES[node.target]
        if node.target is aten.batch_norm.default and node.args[5]:
            return False  # by the batch's own statistics
        inside = sum(on for i, on in enumerate(depends) if i in places)
        return inside == sum(operand in reached for operand in node.operands)
    if node.target in overloads("addmm", "baddbmm"):
        return sum(depends[1:3]) <= 1
    return True


# --- what a switch decides


def operands_of(node: Node, values: Mapping[Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a switch from the values of a run."""
    return (
        substitute(node.args, values.__getitem__),
        substitute(dict(node.kwargs), values.__getitem__),
    )


def kinks(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kinks:
    """Breaks and pieces of an elementwise switch."""
    made: Kinks = KINKED[node.target](*args[1:], **kwargs)
    if made.slopes and isinstance(made.slopes[0], Tensor):
        weight, x = made.slopes[0], args[0]
        shape = [1, -1, *[1] * (x.dim() - 2)] if x.dim() > 1 else [-1]
        made = Kinks(made.breaks, (weight.reshape(shape), *made.slopes[1:]), made.intercepts)
    return made


def candidates(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """[n, units, c] what a maximum chooses from (negated for a minimum); -inf where a window leaves the image."""
    found = _candidates(node, args, kwargs)
    return -found if node.target in _LEAST else found


def _candidates(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    if node.target in overloads("maximum", "minimum"):
        a, b = torch.broadcast_tensors(*args[:2])
        return torch.stack([a.flatten(1), b.flatten(1)], -1)
    x = args[0]
    if node.target in overloads("amax", "amin"):
        given = kwargs.get("dim", args[1] if len(args) > 1 else ())
        dims = sorted(d % x.dim() for d in (given or range(x.dim())))
        if 0 in dims:
            raise SubjectError(
                "MT341", f"'{node.operation}' mixes the examples of a batch", where=node.place()
            )
        kept = [d for d in range(x.dim()) if d not in dims]
        moved = x.permute(*kept, *dims)
        count = math.prod(x.shape[d] for d in dims)
        return moved.reshape(len(x), -1, count)
    flat = x.flatten(2)
    index = _windows(node, args, kwargs, x)  # [positions, c], -1 outside
    taken = flat[..., index.clamp(min=0)].masked_fill((index < 0), -math.inf)
    return taken.flatten(1, 2)


def _windows(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor) -> Tensor:
    """[positions, window] flat places that a pool looks at; -1 in the padding."""
    rank = x.dim() - 2

    def option(name: str, place: int, default: Any) -> list[int]:
        given = kwargs.get(name, args[place] if len(args) > place else default)
        values = list(given) if isinstance(given, tuple | list) else [given]
        return values * rank if len(values) == 1 else values

    kernel = option("kernel_size", 1, None)
    stride = option("stride", 2, kernel) or kernel
    padding, dilation = option("padding", 3, 0), option("dilation", 4, 1)
    result = node.target(torch.empty(1, 1, *x.shape[2:], device="meta"), *args[1:], **kwargs).shape[2:]
    index = torch.zeros(1, 1, dtype=torch.long, device=x.device)
    for size, out, k, s, p, d in zip(x.shape[2:], result, kernel, stride, padding, dilation, strict=True):
        places = torch.arange(out)[:, None] * s - p + torch.arange(k) * d
        places = torch.where((places < 0) | (places >= size), -1, places).to(x.device)  # [out, k]
        outside = (index < 0)[:, None, :, None] | (places < 0)[None, :, None, :]
        joined = index[:, None, :, None] * size + places[None, :, None, :]
        index = torch.where(outside, -1, joined).reshape(len(index) * out, -1)
    return index


def pieces(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """[n, units] piece of every unit of a switch: how many breaks lie below, or which candidate is largest."""
    if node.target in KINKED:
        x = args[0].reshape(len(args[0]), -1)
        found = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        for edge in kinks(node, args, kwargs).breaks:
            found += x > edge
        return found
    choice = candidates(node, args, kwargs).argmax(-1)
    return choice.to(torch.uint8 if choice.numel() == 0 or int(choice.max()) < 256 else torch.int32)


def frozen(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], piece: Tensor, shape: Any) -> Tensor:
    """The switch with its pieces ``piece`` [n, units] fixed, applied to operands of n rows; affine in them."""
    if node.target in KINKED:
        x, made = args[0], kinks(node, args, kwargs)
        own = piece.reshape(x.shape)
        out = torch.zeros_like(x)
        for i, (slope, intercept) in enumerate(zip(made.slopes, made.intercepts, strict=True)):
            out = torch.where(own == i, x * slope + intercept, out)
        return out
    chosen = candidates(node, args, kwargs).gather(-1, piece.long()[..., None])[..., 0]
    return (-chosen if node.target in _LEAST else chosen).reshape(shape)


# --- runs


def doubled(graph: Graph, parameters: Mapping[str, Any] | None = None) -> Graph:
    """The same program holding float64 copies of its tensors, or of those that replace them."""
    held = {**graph.state, **(parameters or {})}
    state = {name: held[name].detach() for name in graph.state}
    state = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
    return dataclasses.replace(graph, state=state)


def widened(graph: Graph) -> dict[Node, Any]:
    """For ``forward``'s ``replace``: what a program in float64 makes in a type of its own (zeros) in float64 too."""
    if not all(t.dtype == torch.float64 for t in graph.state.values() if t.is_floating_point()):
        return {}
    kinds = {node: node.kwargs.get("dtype") for node in graph.operations}
    return {n: _wide for n, kind in kinds.items() if isinstance(kind, torch.dtype) and kind.is_floating_point}


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def as_double(inputs: Mapping[Node, Any]) -> dict[Node, Any]:
    """Inputs with floating-point tensors in float64."""
    return {
        node: value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for node, value in inputs.items()
    }


def only_input(graph: Graph) -> Node:
    """The one real-valued input.

    Raises:
        SubjectError: MT342 for integers or several inputs.
    """
    real = [n for n in graph.inputs if n.dtype is not None and n.dtype.is_floating_point]
    if len(real) != 1 or len(graph.inputs) != 1:
        raise SubjectError(
            "MT342",
            f"linear regions are regions of one real-valued input, and there are {len(graph.inputs)} inputs, "
            f"{len(real)} of them real",
            fix="wrap the network so that everything else is fixed",
        )
    return real[0]


def pattern(
    graph: Graph, args: Sequence[Any], parameters: Mapping[str, Any] | None = None
) -> dict[Node, Tensor]:
    """[n, units] piece of every unit by switch, in the program's order; ``args`` are those of a call."""
    return patterns_at(graph, graph.bind(args), parameters)


def patterns_at(
    graph: Graph, inputs: Mapping[Node, Any], parameters: Mapping[str, Any] | None = None
) -> dict[Node, Tensor]:
    """As :func:`pattern`, of inputs by node."""
    values: dict[Node, Any] = {}
    found: dict[Node, Tensor] = {}

    def note(value: Any, *, node: Node) -> Any:
        found[node] = pieces(node, *operands_of(node, values))
        return value

    asked = switches(graph)
    with torch.no_grad():
        forward(
            graph, inputs, replace=widened(graph) | {node: partial(note, node=node) for node in asked},
            targets=asked or [graph.output], values=values, parameters=parameters,
        )  # fmt: skip
    return found


def frozen_run(
    graph: Graph,
    rows: Tensor,
    piece: Mapping[Node, Tensor],
    *,
    targets: Sequence[Node],
    keep: Sequence[Node] = (),
) -> Run:
    """The program on ``rows`` [r, ...] with every switch held at its piece [r, units]: affine in the rows."""
    values: dict[Node, Any] = {}

    def hold(value: Any, *, node: Node) -> Any:
        return frozen(node, *operands_of(node, values), piece[node], value.shape)

    with torch.no_grad():
        return forward(
            graph, {only_input(graph): rows},
            replace=widened(graph) | {node: partial(hold, node=node) for node in piece},
            targets=targets, keep=keep, values=values,
        )  # fmt: skip


def units_and_zero(like: Tensor) -> Tensor:
    """[d + 1, ...] zero and the d unit vectors of the shape of one example of ``like`` [n, ...]."""
    size = math.prod(like.shape[1:])
    rows = torch.cat([like.new_zeros(1, size), torch.eye(size, dtype=like.dtype, device=like.device)])
    return rows.reshape(size + 1, *like.shape[1:])


def at_units(
    graph: Graph, like: Tensor, piece: Mapping[Node, Tensor], targets: Sequence[Node]
) -> tuple[int, dict[Node, Tensor]]:
    """Number r of rows a pattern takes, and values [m r, ...] of ``targets`` under each of m frozen patterns.

    The rows are zero and the d unit vectors: the first gives the constant of the affine map, the others less it the
    columns of its matrix.
    """
    rows, count = units_and_zero(like), len(next(iter(piece.values()))) if piece else 1
    held = {node: value.repeat_interleave(len(rows), 0) for node, value in piece.items()}
    run = frozen_run(graph, rows.repeat(count, *[1] * (rows.dim() - 1)), held, targets=targets, keep=targets)
    return len(rows), {node: run.values[node] for node in targets}


def chunks(graph: Graph, n: int, like: Tensor) -> list[slice]:
    """Examples that may be frozen at once: each takes d + 1 rows of all activations."""
    size = sum(math.prod(s for s in node.shape or () if isinstance(s, int)) for node in graph.operations)
    rows = math.prod(like.shape[1:]) + 1
    step = max(BUDGET // max(size * rows, 1), 1)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


BUDGET = 1 << 26
"""Numbers that the activations of frozen rows may take at once."""


def affine(graph: Graph, args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The affine map of each input's region: A [n, k, d] and b [n, k], so that the outputs [n, k] are A x + b.

    Exact up to rounding in float64. Costs d + 1 rows an input.
    """
    graph, inputs = doubled(graph), as_double(graph.bind(args))
    x = inputs[only_input(graph)]
    piece = patterns_at(graph, inputs)
    maps, shifts = [], []
    for part in chunks(graph, len(x), x):
        rows, values = at_units(
            graph, x, {node: value[part] for node, value in piece.items()}, [graph.output]
        )
        found = values[graph.output].unflatten(0, (-1, rows)).flatten(2)
        found = found.expand(part.stop - part.start, -1, -1)  # without switches there is one map
        shifts.append(found[:, 0])
        maps.append((found[:, 1:] - found[:, :1]).transpose(1, 2))
    return torch.cat(maps), torch.cat(shifts)


def boundary_distance(graph: Graph, inputs: Mapping[Node, Any]) -> tuple[Tensor, Tensor]:
    """Euclidean distance [n] from each input to the nearest boundary of its region, and which switch [n] it is of.

    A region is the polytope on which no unit changes its piece; its boundary is nearest where |margin| / |gradient of
    the margin| of some unit is least, all gradients being those of the region's own affine map. Infinity (and switch
    -1) where no unit ever changes. Costs d + 1 rows an input.
    """
    graph, inputs = doubled(graph), as_double(inputs)
    x = inputs[only_input(graph)]
    piece = patterns_at(graph, inputs)
    best = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    switch = torch.full((len(x),), -1, device=x.device)
    for part in chunks(graph, len(x), x) if piece else ():
        own = {node: value[part] for node, value in piece.items()}
        for i, (shift, matrix) in enumerate(unit_maps(graph, x, own).values()):
            size = (shift + torch.einsum("mdu,md->mu", matrix, x[part].flatten(1))).abs()
            slope = matrix.norm(dim=1)
            distance = torch.where(slope > 0, size / slope, math.inf).amin(1)
            switch[part] = torch.where(distance < best[part], i, switch[part])
            best[part] = torch.minimum(distance, best[part])
    return best, switch


def unit_maps(
    graph: Graph, like: Tensor, piece: Mapping[Node, Tensor], of: Sequence[Node] | None = None
) -> dict[Node, tuple[Tensor, Tensor]]:
    """By switch, what decides its pieces as affine functions of the input, under each of m frozen patterns.

    Constants [m, u] and matrices [m, d, u] of functions that change their sign where a unit changes its piece: the
    operand less each break, or the chosen candidate less every other one (itself included, with zeros).
    """
    asked = list(piece) if of is None else list(of)
    operands = list(dict.fromkeys(o for node in asked for o in flowing(node)))
    rows, values = at_units(graph, like, piece, operands)
    found = {}
    for node in asked:
        value = deciders(graph, node, values).unflatten(0, (-1, rows))  # [m, r, units, q]
        if node.target not in KINKED:
            own = value.gather(-1, piece[node].long()[:, None, :, None].expand(-1, rows, -1, -1))
            # What lies outside of the image is never chosen: a margin of 1 everywhere, that no input changes.
            value = torch.where(value.isinf(), 1.0, own - value)
        value = value.flatten(2)
        found[node] = (value[:, 0], value[:, 1:] - value[:, :1])
    return found


def flowing(node: Node) -> list[Node]:
    """Operands that are computed, not held."""
    return [operand for operand in node.operands if operand.kind in ("input", "operation")]


def deciders(graph: Graph, node: Node, values: Mapping[Node, Tensor]) -> Tensor:
    """[n, units, q] what a switch decides by: its operand less each of q breaks, or q candidates (-inf: none)."""
    held = {o: graph.state[o.target] for o in node.operands if o.kind in ("parameter", "buffer", "constant")}
    args, kwargs = operands_of(node, {**values, **held})
    if node.target not in KINKED:
        return candidates(node, args, kwargs)
    x = args[0].reshape(len(args[0]), -1)
    edges = torch.tensor(kinks(node, args, kwargs).breaks, dtype=x.dtype, device=x.device)
    return x[..., None] - edges
