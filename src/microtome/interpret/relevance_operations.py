"""The rules of the relevance domain by operation; :mod:`microtome.interpret.relevance` says what they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, Keep, missing_rule, rule
from microtome.interpret.operations import AVERAGES, SELECTIONS, STRUCTURAL, aten, overloads
from microtome.interpret.relevance_domain import LINEAR, Ledger, Relevance, is_linear_map, rule_for
from microtome.interpret.relevance_rules import STABILISER, LinearMap, ratio
from microtome.interpret.transposes import back_through_convolution, floating, to_shape

ACTIVATIONS = overloads(
    *("relu", "relu_", "gelu", "silu", "tanh", "sigmoid", "elu", "selu", "celu", "leaky_relu", "hardswish"),
    *(
        "hardsigmoid",
        "hardtanh",
        "relu6",
        "mish",
        "softplus",
        "log_sigmoid",
        "clamp",
        "clamp_min",
        "clamp_max",
    ),
    *("threshold", "dropout", "neg", "prelu", "square", "pow.Tensor_Scalar", "abs"),
    *("softshrink", "hardshrink", "mul.Scalar", "div.Scalar", "erf"),
)
"""One number in, one out, of which the whole relevance is the operand's."""
SMOOTH = overloads(
    *(
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "sin",
        "cos",
        "log1p",
        "expm1",
        "rsub.Scalar",
        "add.Scalar",
    ),
    *("sub.Scalar", "logsumexp", "var.correction", "linalg_vector_norm", "prod", "prod.dim_int"),
)
MERGED = frozenset(overloads("convolution", "linear", "addmm"))
MOVED = tuple(set(STRUCTURAL))
CHOSEN = tuple(set(SELECTIONS) - set(ACTIVATIONS))
LINEAR_SUMS = tuple(set(AVERAGES))


def meaning(
    *operations: Any, keep: Keep = "operands", output: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule that gives shares for tensor operands in order, or one value; what is lost is recorded."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def booked(at: At, relevance: Any, *args: Any, **kwargs: Any) -> Any:
            shares = function(floating(at), relevance, *args, **kwargs)
            ledger: Ledger = at.state
            if ledger.absorbed is not None:
                ledger.absorbed[at.node] = _sum(relevance) - _sum(shares)
            return shares

        rule(Relevance, *operations, keep=keep, output=output)(booked)
        return function

    return register


def _sum(tree: Any) -> Any:
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return sum((leaf.sum().double() for leaf in leaves), 0.0)


# ------------------------------------------------------------------------------------------- moved, passed, chosen


@meaning(*MOVED, keep="shapes")
def moved(at: At, relevance: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Each entry goes where it came from; copies are summed."""
    return at.transpose(relevance, *args, **kwargs)


@meaning(*ACTIVATIONS, keep="nothing")
def passed(at: At, relevance: Tensor) -> Tensor:
    """The whole."""
    return relevance


@meaning(*CHOSEN)
def chosen(at: At, relevance: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """To the entries that were chosen."""
    return at.transpose(relevance, *args, **kwargs)


@meaning(*overloads("where.self"))
def where(at: At, relevance: Tensor, condition: Tensor, a: Tensor, b: Tensor) -> list[Any]:
    """To the side that was taken; the condition gets nothing."""
    sides = [torch.where(condition, relevance, 0.0), torch.where(condition, 0.0, relevance)]
    shares = [to_shape(side, x.shape) for side, x in zip(sides, (a, b), strict=True)]
    return [None, *(share if at.wants(i + 1) else None for i, share in enumerate(shares))]


@meaning(*overloads("masked_fill.Scalar", "masked_fill.Tensor"), keep="shapes")
def masked(at: At, relevance: Tensor, x: Tensor, mask: Tensor, value: Any) -> list[Any]:
    """To what the mask left."""
    left = to_shape(relevance.masked_fill(mask, 0.0), x.shape) if at.wants(0) else None
    return [left, None, None][: len(at.node.operands)]


# ------------------------------------------------------------------------------------------------------------ sums


@meaning(*LINEAR_SUMS, *SMOOTH, output=True)
def proportional(at: At, relevance: Tensor, *args: Any, **kwargs: Any) -> list[Any]:
    """X times the slope, over the result: exact shares of a linear function, first-order ones of another."""
    s = ratio(relevance, at.output, at.domain.composite.stabiliser)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    back = at.transpose(s, *args, **kwargs)
    return [None if g is None else x * g for x, g in zip(tensors, back, strict=True)]


@meaning(*overloads("add.Tensor", "sub.Tensor", "add_.Tensor"), output=True)
def added(at: At, relevance: Tensor, a: Any, b: Any, *, alpha: float = 1) -> list[Any]:
    """To the summands in proportion, or in proportion to their positive parts."""
    sign = -alpha if "sub" in str(at.node.target) else alpha
    summands = [a, b * sign]
    total = at.output
    if at.domain.composite.sums == "plus":
        summands = [torch.as_tensor(s).clamp(min=0) for s in summands]
        total = summands[0] + summands[1]
    s = ratio(relevance, total, at.domain.composite.stabiliser)
    shares, position = [], 0
    for given, summand in zip((a, b), summands, strict=True):
        if not isinstance(given, Tensor):
            continue
        shares.append(to_shape(summand * s, given.shape) if at.wants(position) else None)
        position += 1
    return shares


# -------------------------------------------------------------------------------------------------------- products


_BETWEEN_NUMBERS = frozenset(overloads("add.Tensor", "sub.Tensor", "rsub.Scalar", "add.Scalar", "sub.Scalar"))
_SCALED = frozenset(overloads("mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar", "neg", "_to_copy"))
_GATES = frozenset(overloads("sigmoid", "softmax.int", "hardsigmoid"))
_SQUASHED = frozenset(overloads("tanh", "erf"))  # gates once a constant is added: 1 + tanh
_NORMS = frozenset(overloads("rsqrt", "reciprocal"))
_MOVED = frozenset(MOVED)


def _kind(node: Node, tracked: Callable[[Node], bool]) -> str:
    """A factor is a "gate", a "norm" or neither (""), seen through moves and arithmetic with constants."""
    shifted = False
    while node.kind == "operation":
        if node.target in _NORMS:
            return "norm"
        if node.target in _GATES or (shifted and node.target in _SQUASHED):
            return "gate"
        depends = [operand for operand in node.operands if tracked(operand)]
        if len(depends) != 1 or node.target not in _MOVED | _SCALED | _BETWEEN_NUMBERS:
            return ""
        shifted |= node.target in _BETWEEN_NUMBERS
        node = depends[0]
    return ""


def _factors(at: At) -> tuple[float, float]:
    """Which part of the relevance either factor of a product of two gets."""
    dependent = at.state.dependent
    kinds = [_kind(node, dependent.__contains__) for node in at.node.operands[-2:]]
    held = {"norm"} if at.domain.composite.gates == "half" else {"norm", "gate"}
    gates = [kind in held for kind in kinds]
    if gates[0] == gates[1]:
        return 0.5, 0.5
    return (0.0, 1.0) if gates[0] else (1.0, 0.0)


@meaning(*overloads("mul.Tensor", "mul_.Tensor"), keep="shapes")
def multiplied(at: At, relevance: Tensor, a: Any, b: Any) -> list[Any]:
    """All to the factor that depends on the input, or to the one that is no gate, or half to each."""
    tensors = [x for x in (a, b) if isinstance(x, Tensor)]
    parts = _factors(at) if len(at.tracked) == 2 else (1.0, 1.0)
    return [
        to_shape(relevance * part, x.shape) if at.wants(i) and part else None
        for i, (x, part) in enumerate(zip(tensors, parts, strict=False))
    ]


@meaning(*overloads("div.Tensor", "div_.Tensor"))
def divided(at: At, relevance: Tensor, a: Any, b: Any) -> list[Any]:
    """All to the numerator: a denominator is a norm. One over something takes its first-order share, -R."""
    tensors = [x for x in (a, b) if isinstance(x, Tensor)]
    numerator = isinstance(a, Tensor) and at.wants(0)
    shares: list[Any] = [None] * len(tensors)
    place = 0 if numerator else len(tensors) - 1
    shares[place] = to_shape(relevance if numerator else -relevance, tensors[place].shape)
    return shares


@meaning(*overloads("softmax.int"), output=True)
def softmax(at: At, relevance: Tensor, x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """X (R - softmax * sum R): first order, as in AttnLRP; scores that a mask forbids get nothing."""
    share = x.masked_fill(x.isinf(), 0.0) * (relevance - at.output * relevance.sum(dim, keepdim=True))
    return share


@meaning(*overloads("log_softmax.int"), output=True)
def log_softmax(at: At, relevance: Tensor, x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """First order: the log of a probability is a logit less what all classes share."""
    slope = ratio(relevance, at.output, 0.0)
    return x * (slope - at.output.exp() * slope.sum(dim, keepdim=True))


# ----------------------------------------------------------------------------------------------------- linear maps


@meaning(*LINEAR, output=True)
def linear(at: At, relevance: Tensor, *args: Any, **kwargs: Any) -> list[Any]:
    """By the composite's rule for a map with fixed weights; in halves when both factors depend on the input."""
    made, position = _as_map(at, *args, **kwargs)
    if made is None:
        return _bilinear(at, relevance, args, kwargs)
    shares: list[Any] = [None] * len(at.node.operands)
    shares[position] = rule_for(at).share(_merged(at, made), relevance)
    return shares


def _as_map(at: At, *args: Any, **kwargs: Any) -> tuple[LinearMap | None, int]:
    """The map, and which operand is its input."""
    name = str(at.node.target).split(".")[1]
    if name == "convolution":
        x, weight, bias, *geometry = args
        return (_convolution(at, x, weight, bias, geometry), 0) if at.tracked == {0} else (None, 0)
    if name == "linear":
        x, weight, bias = (*args, None)[:3]
        if at.tracked != {0}:
            return None, 0
        made = LinearMap(
            x=x, weight=weight, bias=bias, y=at.output, by_row=True,
            apply=lambda x, w: torch.nn.functional.linear(x, w), back=torch.matmul,
            alike=lambda r: r.sum(-1, keepdim=True).div(x.shape[-1] + STABILISER).expand_as(x),
        )  # fmt: skip
        return made, 0
    bias, left, right = args if name == "addmm" else (None, *args)
    scales = [float(kwargs.get(key, 1)) for key in ("alpha", "beta")]
    shift = len(at.node.operands) - 2
    if at.tracked not in ({shift}, {shift + 1}):
        return None, 0
    on_left = at.tracked == {shift}
    x, weight = (left, right) if on_left else (right, left)

    def apply(x: Tensor, w: Tensor) -> Tensor:
        return torch.matmul(x, w) if on_left else torch.matmul(w, x)

    if bias is not None:
        bias = bias * scales[1]

    def back(s: Tensor, w: Tensor) -> Tensor:
        found: Tensor = torch.func.vjp(lambda v: apply(v, w), torch.zeros_like(x))[1](s)[0]
        return found

    made = LinearMap(x=x, weight=weight * scales[0], bias=bias, y=at.output, apply=apply, back=back)
    return made, shift if on_left else shift + 1


def _convolution(at: At, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[Any]) -> LinearMap:
    stride, padding, dilation, transposed, extra, groups = geometry

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        return aten.convolution(x, weight, None, *geometry)

    def alike(relevance: Tensor) -> Tensor:
        """One channel does for all: every input channel of a group gets the same."""
        one = (stride, padding, dilation, transposed, extra)
        kernel = weight.new_ones(1, 1, *weight.shape[2:])
        each = x.shape[1] // groups
        reached = aten.convolution(x.new_ones(1, 1, *x.shape[2:]), kernel, None, *one, 1) * each
        s = relevance / (reached + STABILISER)
        s = s.unflatten(1, (groups, -1)).sum(2).flatten(0, 1)[:, None]
        like = x[:1, :1].expand(len(s), 1, *x.shape[2:])
        share = back_through_convolution(s, like, kernel, [*one, 1])
        return share.reshape(len(x), groups, 1, *x.shape[2:]).expand(-1, -1, each, *x.shape[2:]).flatten(1, 2)

    return LinearMap(
        x=x, weight=weight, y=at.output, by_row=True, apply=apply, alike=alike,
        bias=None if bias is None else bias.reshape(-1, *(1 for _ in weight.shape[2:])),
        back=partial(_transposed, x, geometry),
    )  # fmt: skip


def _transposed(x: Tensor, geometry: list[Any], s: Tensor, weight: Tensor) -> Tensor:
    return back_through_convolution(s, x[: len(s)], weight, geometry)


def _merged(at: At, made: LinearMap) -> LinearMap:
    """The map with the batch-norm that follows it."""
    found = at.state.merged.pop(at.node, None)
    if found is None:
        return made
    scale, shift, made.y = found
    outer = scale.reshape(-1, *(1 for _ in made.y.shape[2:]))
    made.bias = shift.reshape(outer.shape) + (0.0 if made.bias is None else made.bias * outer)
    if at.node.target == aten.convolution.default and at.node.args[6]:  # transposed: [in, out / groups, ...]
        groups = at.node.args[8]
        weight = made.weight.unflatten(0, (groups, -1))
        by_group = scale.reshape(groups, 1, -1, *(1 for _ in made.weight.shape[2:]))
        made.weight = (weight * by_group).flatten(0, 1)
    else:
        made.weight = made.weight * scale.reshape(-1, *(1 for _ in made.weight.shape[1:]))
    return made


def _bilinear(at: At, relevance: Tensor, args: Any, kwargs: Any) -> list[Any]:
    """A product of two values that both depend on the input."""
    parts = _factors(at)
    s = ratio(relevance, at.output, at.domain.composite.stabiliser)
    back = at.transpose(s, *args, **kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    shares: list[Any] = [None] * len(tensors)
    for i, part in zip((-2, -1), parts, strict=True):
        if part and back[i] is not None:
            shares[i] = tensors[i] * back[i] * part
    return shares


# ---------------------------------------------------------------------------------------------------------- norms


@meaning(*overloads("batch_norm"), keep="shapes", output=True)
def batch_norm(
    at: At, relevance: Tensor, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float,
    eps: float, *_: Any,
) -> list[Any]:  # fmt: skip
    """Part of the linear map before it; scale and shift elsewhere."""
    if training or mean is None or var is None:  # by the statistics of the batch
        raise missing_rule(at.node, at.domain)
    scale = (var + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    producer, ledger = at.node.operands[0], at.state
    alone = ledger.readers[producer] == 1 and producer not in ledger.goals
    rest: list[Any] = [None] * (len(at.node.operands) - 1)
    if alone and producer.target in MERGED and is_linear_map(producer, ledger.dependent):
        ledger.merged[producer] = (scale, shift, at.output)
        return [relevance, *rest]
    if at.domain.composite.norms == "pass":
        return [relevance, *rest]
    by_channel = shift.reshape(-1, *(1 for _ in x.shape[2:]))
    return [(at.output - by_channel) * ratio(relevance, at.output, at.domain.composite.stabiliser), *rest]


@meaning(*overloads("layer_norm", "rms_norm", "group_norm", "instance_norm"), output=True)
def scaled_norm(at: At, relevance: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Any]:
    """Centred and scaled, with the scale of each group held fixed."""
    rest: list[Any] = [None] * (len(at.node.operands) - 1)
    if at.domain.composite.norms == "pass":
        return [relevance, *rest]
    name = str(at.node.target).split(".")[1]
    eps: float | None
    if name in ("layer_norm", "rms_norm"):
        size = len(args[0])
        weight, eps = (
            (args[1] if len(args) > 1 else None),
            (args[3 if name == "layer_norm" else 2 :] or (None,))[0],
        )
        grouped = x.flatten(-size)
        per = weight
    else:
        groups = args[0] if name == "group_norm" else x.shape[1]
        weight, eps = (args[1], args[3]) if name == "group_norm" else (args[0], args[6])
        grouped = x.reshape(len(x), groups, -1)
        per = None if weight is None else weight.reshape(-1, *(1 for _ in x.shape[2:]))
    centred = grouped if name == "rms_norm" else grouped - grouped.mean(-1, keepdim=True)
    small = (1e-5 if name != "rms_norm" else torch.finfo(x.dtype).eps) if eps is None else eps
    scale = (centred.square().mean(-1, keepdim=True) + small).rsqrt()
    s = ratio(relevance, at.output, at.domain.composite.stabiliser)
    s = (s if per is None else s * per).reshape(grouped.shape) * scale
    s = s if name == "rms_norm" else s - s.mean(-1, keepdim=True)
    return [x * s.reshape(x.shape), *rest]
