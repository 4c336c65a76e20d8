"""Cost of every operation: floating-point operations, bytes moved, parameters, receptive field.

Runs on shapes alone (the meta device): no weights are read, nothing is computed. Products are counted as
``torch.utils.flop_counter`` counts them (two per multiply-add); it counts nothing else, so that everything
else is in ``Cost.other``: one per entry of the result. Bytes are those an unfused program reads and writes.
The receptive field is arithmetic on kernels: size r, stride j between neighbours and start s of the first
entry, per axis: r + (k - 1) d j, j stride, s - p j.

Energy is a proxy: Horowitz's picojoules for 45 nm ("Computing's energy problem", ISSCC 2014, figure 1.1.9): a
multiply-add costs 3.7 + 0.9 pJ in float32 and 1.1 + 0.4 pJ in 16 bits, any other operation an addition, and
every byte that an unfused program moves comes from DRAM, at the lower end of his 1.3 to 2.6 nJ for 64 bits.
Wider floats are not in his figure and are counted as float32. It ranks operations; no chip's meter shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from microtome.interpret.graph import Graph, Node, substitute
from microtome.interpret.interpreter import Domain, forward, rule
from microtome.interpret.operations import SHAPE_ONLY, STRUCTURAL, aten, overloads


@dataclass(frozen=True, slots=True)
class Field:
    """What an entry sees of the input along one axis: ``size`` pixels, ``stride`` apart, from ``start``."""

    size: int = 1
    stride: float = 1
    start: float = 0

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Field:
        """After a convolution or pool along this axis."""
        return Field(
            self.size + round((kernel - 1) * dilation * self.stride),
            self.stride * stride,
            self.start - padding * self.stride,
        )

    def joined(self, other: Field) -> Field:
        """What a sum of two sees (the coarser stride)."""
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Field(math.ceil(end - start), max(self.stride, other.stride), start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one operation: ``flops`` in products, ``other`` elsewhere, bytes moved, parameters read first.

    ``energy`` in picojoules is a proxy, see the module.
    """

    node: Node
    flops: int
    other: int
    bytes: int
    parameters: int
    energy: float
    shape: tuple[int, ...]
    field: tuple[Field, ...] | None


PICOJOULES = {4: (4.6, 0.9), 2: (1.5, 0.4)}
"""Bytes of a number -> (a multiply-add, an addition)."""
PICOJOULES_A_BYTE = 1300 / 8


def energy(flops: int, other: int, moved: int, width: int) -> float:
    """Picojoules by the proxy: ``flops`` count two a multiply-add, ``width`` is that of a number in bytes."""
    product, addition = PICOJOULES.get(min(width, 4), PICOJOULES[4])
    return flops / 2 * product + other * addition + moved * PICOJOULES_A_BYTE


class Costs(Domain):
    """Rules count products, two per multiply-add: ``rule(result, *args) -> int``. The rest costs no flops."""

    name: ClassVar[str] = "cost"


@rule(Costs, aten.linear.default)
def linear(result: Tensor, x: Tensor, weight: Tensor, *_: Any) -> int:
    """Two per weight and row."""
    return 2 * x.numel() * weight.shape[0]


@rule(Costs, *overloads("mm", "bmm", "matmul"))
def matmul(result: Tensor, x: Tensor, y: Tensor) -> int:
    """Two per entry of the result and summand."""
    return 2 * result.numel() * x.shape[-1]


@rule(Costs, *overloads("addmm", "baddbmm"))
def addmm(result: Tensor, bias: Tensor, x: Tensor, y: Tensor, **_: Any) -> int:
    """As the product; the addition is not counted."""
    return 2 * result.numel() * x.shape[-1]


@rule(Costs, aten.convolution.default)
def convolution(result: Tensor, x: Tensor, weight: Tensor, bias: Any, *options: Any) -> int:
    """Two per weight and position; a transposed convolution walks over its input instead."""
    positions = math.prod((x if options[3] else result).shape[2:])
    return 2 * x.shape[0] * positions * weight.numel()


def backward_flops(graph: Graph, found: Sequence[Cost]) -> int:
    """Products of a backward pass to all parameters that train: as many again for each factor with a gradient.

    A factor is an operand of a product; the first layer's input has no gradient, so that layer costs half of others.
    """
    trained = [n for n in graph.nodes if n.kind == "parameter" and graph.state[n.target].requires_grad]
    moving = graph.reached(trained, lambda node: node.target not in SHAPE_ONLY)
    total = 0
    for cost in found:
        if cost.flops:
            first = 1 if cost.node.target in _BIASED else 0
            total += cost.flops * sum(operand in moving for operand in cost.node.args[first : first + 2])
    return total


_BIASED = frozenset(overloads("addmm", "baddbmm"))
_FREE = frozenset((*STRUCTURAL, *SHAPE_ONLY))
_VIEWS = frozenset(
    overloads(
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose.int",
        "t",
        "unsqueeze",
        "squeeze",
        "squeeze.dim",
        "squeeze.dims",
        "expand",
        "alias",
        "detach",
        "select.int",
        "slice.Tensor",
        "split.Tensor",
        "split_with_sizes",
        "unbind.int",
        "as_strided",
        "diagonal",
    )
)
_POOLS = frozenset(
    overloads("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
)


def costs(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> tuple[Cost, ...]:
    """The cost of every operation for inputs of these shapes, in order of execution.

    Operations whose shapes depend on numbers (masks of self-loops) make it run on the numbers given.
    """
    return costs_of(graph, graph.bind(args, kwargs))


def costs_of(graph: Graph, inputs: Mapping[Node, Any]) -> tuple[Cost, ...]:
    """As :func:`costs`, for values of ``graph.inputs``."""
    try:
        values = _values(graph, inputs, meta=True)
    except (NotImplementedError, RuntimeError):
        values = _values(graph, inputs, meta=False)
    fields: dict[Node, tuple[Field, ...] | None] = {}
    seen: set[Node] = set()
    moving = graph.reached(graph.inputs)
    found = []
    for node in graph.nodes:
        if node not in values:
            continue
        fields[node] = _field(node, fields, values, moving)
        if _computes(node):
            found.append(_cost(node, values, fields[node], seen))
    return tuple(found)


def operation_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that :func:`costs` lists, without running anything: those that give tensors."""
    needed = graph.needed(node for node in graph.outputs if isinstance(node, Node))
    return tuple(node for node in graph.operations if node in needed and _computes(node))


def _computes(node: Node) -> bool:
    if node.kind != "operation" or not isinstance(node.target, torch._ops.OpOverload):
        return False  # a choice among several results, or arithmetic on sizes
    return any("Tensor" in str(result.type) for result in node.target._schema.returns)


def shapes_only(graph: Graph, batch: int = 2) -> dict[Node, Any]:
    """Inputs of the captured shapes without numbers, ``batch`` wherever a size is open."""
    return {
        node: torch.empty(
            [batch if isinstance(size, str) else size for size in node.shape or ()],
            dtype=node.dtype,
            device="meta",
        )
        for node in graph.inputs
    }


class _Placed(TorchFunctionMode):
    """What a program makes on the device it was captured on is made where its inputs are."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.place = place

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if named.get("device") is not None:
            named["device"] = self.place
        return func(*args, **named)


def _bare(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _values(graph: Graph, inputs: Mapping[Node, Any], meta: bool) -> Mapping[Node, Any]:
    def move(value: Any) -> Any:
        return value.to("meta") if meta and isinstance(value, Tensor) else value

    given = {node: move(value) for node, value in inputs.items()}
    held = {name: move(tensor) for name, tensor in graph.state.items()}
    if not meta:  # shapes alone did not do: any numbers of these shapes
        given = {n: torch.zeros_like(v, device="cpu") if _bare(v) else v for n, v in given.items()}
    place = next((t.device for t in given.values() if isinstance(t, Tensor)), torch.device("cpu"))
    with torch.no_grad(), place, _Placed(place):
        return forward(graph, given, keep="all", parameters=held).values


def _cost(node: Node, values: Mapping[Node, Any], field: tuple[Field, ...] | None, seen: set[Node]) -> Cost:
    results = _tensors(values[node])
    entry = Costs.entry(node.target)
    count = 0
    if entry:
        args = substitute(node.args, values.__getitem__)
        count = entry.rule(results[0], *args, **substitute(dict(node.kwargs), values.__getitem__))
    written = sum(t.numel() * t.element_size() for t in results)
    read = sum(t.numel() * t.element_size() for operand in node.operands for t in _tensors(values[operand]))
    fresh = [
        operand
        for operand in dict.fromkeys(node.operands)
        if operand.kind == "parameter" and operand not in seen
    ]
    seen.update(fresh)
    other = 0 if entry or node.target in _FREE else sum(t.numel() for t in results)
    moved = 0 if node.target in _VIEWS or node.target in SHAPE_ONLY else written + read
    return Cost(
        node=node,
        flops=count,
        other=other,
        bytes=moved,
        energy=energy(count, other, moved, results[0].element_size()),
        parameters=sum(values[operand].numel() for operand in fresh),
        shape=tuple(results[0].shape),
        field=field,
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _field(
    node: Node, fields: Mapping[Node, tuple[Field, ...] | None], values: Mapping[Node, Any], moving: set[Node]
) -> tuple[Field, ...] | None:
    """Receptive field per spatial axis; None where axes are mixed or it is not known.

    ``moving`` are the nodes that the inputs reach: weights that are computed see nothing of the image.
    """
    if node.kind == "input":
        value = values[node]
        spatial = isinstance(value, Tensor) and value.dim() > 2 and value.is_floating_point()
        return (Field(),) * (value.dim() - 2) if spatial else None
    flowing = [o for o in node.operands if o in moving and o.shape and len(o.shape) > 1]
    known = [fields[operand] for operand in flowing]
    if node.kind != "operation" or not known or None in known:
        return None
    first = known[0]
    assert first is not None
    rank = len(first)

    def each(value: Any, default: int) -> list[int]:
        listed = [value] if isinstance(value, int) else list(value)
        return (listed or [default]) * (rank if len(listed) <= 1 else 1)

    if node.target == aten.convolution.default:
        stride, padding, dilation, transposed = node.args[3:7]
        kernel = list(values[node.operands[1]].shape[2:])
        if transposed:  # an output entry sees about kernel / stride inputs
            return tuple(
                Field(
                    f.size + round(((k - 1) * d // s) * f.stride),
                    f.stride / s,
                    f.start - ((k - 1) * d // s) * f.stride,
                )
                for f, k, s, d in zip(first, kernel, each(stride, 1), each(dilation, 1), strict=True)
            )
        steps = zip(first, kernel, each(stride, 1), each(padding, 0), each(dilation, 1), strict=True)
        return tuple(f.through(k, s, p, d) for f, k, s, p, d in steps)
    if node.target in _POOLS:
        kernel = each(node.args[1], 1)
        strides = each(node.args[2], 0) if len(node.args) > 2 else kernel
        padding = each(node.args[3], 0) if len(node.args) > 3 else [0] * rank
        maximum = "max" in str(node.target)
        dilation = each(node.args[4], 1) if maximum and len(node.args) > 4 else [1] * rank
        steps = zip(first, kernel, strides or kernel, padding, dilation, strict=True)
        return tuple(f.through(k, s or k, p, d) for f, k, s, p, d in steps)
    results = _tensors(values[node])
    if not results or results[0].dim() != rank + 2 or node.target in _MIXING:
        return None
    if node.target in STRUCTURAL and node.target not in _PLAIN:
        return None
    joined = first
    for other in known[1:]:
        if other is None or len(other) != rank:
            return None
        joined = tuple(a.joined(b) for a, b in zip(joined, other, strict=True))
    return joined


_PLAIN = frozenset(overloads("clone", "alias", "detach", "contiguous", "dropout", "cat", "_to_copy"))
_MIXING = frozenset(
    overloads(
        "linear",
        "matmul",
        "mm",
        "bmm",
        "softmax.int",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "mean.dim",
        "sum.dim_IntList",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "amax",
        "cumsum",
        "_adaptive_avg_pool2d",
    )
)


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over operations."""

    flops: int
    other: int
    bytes: int
    parameters: int
    energy: float


def total(entries: Sequence[Cost]) -> Total:
    """Sum of some operations' costs: of all, or of those of one module."""
    return Total(*(sum(getattr(entry, name) for entry in entries) for name in Total.__slots__))
