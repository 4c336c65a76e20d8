"""Rules of the domain ``isolation``: what each operation does to the examples of a batch.

They are of a few kinds:

- entry by entry: what torch tags pointwise, dropout, copies. Operands must lie along one axis;
- moved: views, permutations, slices, concatenations, selections by constants. The operation itself is run on the
  numbers of the examples, and the result must again count them along one axis;
- along dimensions: reductions, softmax, sorting, cumulated sums leak when a dimension is that of the examples;
- the last dimensions: linear layers, layer-norm, pools, interpolation mix those alone;
- chosen by contents: gather and scatter leak when they choose along the axis of the examples.

What has no rule counts as a leak: nothing is passed on unseen. Weights are taken to be any numbers, so a zero weight
hides nothing; nor does an index that the network holds: it may name other examples in batches of other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, rule
from microtome.interpret.isolation_domain import (
    Isolation,
    Leak,
    Rows,
    flat,
    found,
    known,
    leak,
    named,
    outline,
    settled,
)
from microtome.interpret.operations import STRUCTURAL, aten, overloads

# --- entry by entry


def _lies(x: Rows) -> tuple[int, int, int]:
    """Where the examples lie, in a way that compares operands that broadcast."""
    assert x.axis is not None
    return x.from_end, x.inner, x.shape[x.axis]


@settled
def pointwise(at: At, *args: Any, **kwargs: Any) -> Any:
    """Operands that broadcast must have the examples along one axis, counted alike."""
    apart, _ = known(args, kwargs)
    first = apart[0]
    same = all(_lies(x) == _lies(first) for x in apart)
    if not same:
        return leak(at, args, kwargs, "pairs entries of different examples")
    result = outline(at, args, kwargs)
    rank = max(t.dim() for t in flat([result]) if isinstance(t, Tensor))
    return found(at, args, kwargs, rank - first.from_end, first.inner)


rule(
    Isolation,
    *overloads("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "_to_copy", "copy"),
    *overloads("dropout", "native_dropout", "log_sigmoid", "hardswish", "hardsigmoid", "bernoulli.p"),
    *overloads("celu", "rand_like", "randn_like", "nan_to_num", "tril", "triu", "fill.Scalar", "zero"),
)(pointwise)


@rule(Isolation, aten.prelu.default)
@settled
def prelu(at: At, x: Rows, weight: Any) -> Any:
    """Slopes are held by the network."""
    if isinstance(weight, Rows):
        return leak(at, (x, weight), {}, "has slopes that depend on examples")
    return found(at, (x, weight), {}, x.axis, x.inner)


@settled
def unknown(at: At, *args: Any, **kwargs: Any) -> Any:
    """Nothing is known, so everything may meet."""
    return leak(at, args, kwargs, "has no rule, so that nothing is proven about it")


# --- moved


_CHOOSING = ("index", "indices", "mask", "masks")


@settled
def moved(at: At, *args: Any, **kwargs: Any) -> Any:
    """The operation on the numbers of the examples; 0 stands for none."""
    given = named(at, args, kwargs)
    if any(isinstance(item, Rows) for key in _CHOOSING for item in flat([given.get(key)])):
        return leak(at, args, kwargs, "chooses entries by contents of examples")

    def numbers(tree: Any) -> Any:
        if isinstance(tree, Rows):
            return numbered(tree, at.domain.rows)
        if isinstance(tree, Tensor):
            return torch.zeros(tree.shape)
        if isinstance(tree, tuple | list):
            return type(tree)(numbers(item) for item in tree)
        return tree

    schema = [argument.name for argument in at.node.target._schema.arguments]
    plain = [_near(a) if name in _CHOOSING else numbers(a) for name, a in zip(schema, args, strict=False)]
    named_plain = {
        key: _near(a) if key in _CHOOSING else numbers(a) for key, a in kwargs.items() if key != "device"
    }
    run = aten.reshape.default if at.node.target in _VIEWS else at.node.target
    try:
        result = run(*plain, **named_plain)
    except Exception:
        return leak(at, args, kwargs, "takes examples by fixed places, which other batches do not have")
    return _counted(at, args, kwargs, result)


_VIEWS = frozenset(overloads("view", "_unsafe_view", "_reshape_alias"))


def _near(tree: Any) -> Any:
    """Indices beside the numbers they choose from."""
    if isinstance(tree, tuple | list):
        return type(tree)(_near(item) for item in tree)
    return tree.cpu() if isinstance(tree, Tensor) else tree


def held(index: Any) -> bool:
    """Whether an index is made of numbers that the network holds, and not of sizes alone."""
    waiting, seen = [index], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            if node.kind in ("parameter", "buffer", "constant"):
                return True
            waiting += node.operands
    return False


HELD = "chooses examples by numbers that the network holds"


def numbered(x: Rows, rows: int) -> Tensor:
    """1 ... B at the entries of each example, 0 where there is none."""
    if x.axis is None:
        return torch.zeros(x.shape)
    size = x.shape[x.axis]
    numbers = (torch.arange(size) // x.inner) % rows + 1.0
    return numbers.reshape(-1, *[1] * (x.from_end - 1)).expand(x.shape).contiguous()


def _counted(at: At, args: Any, kwargs: Any, result: Any) -> Any:
    at.domain.followed.append(at.node)
    device = next(item.device for item in flat((args, kwargs)) if isinstance(item, Rows))
    dtypes = [t.dtype for t in flat([outline(at, args, kwargs)]) if isinstance(t, Tensor)]
    places: list[Tensor] = [t for t in flat([result]) if isinstance(t, Tensor)]
    made = []
    for place, dtype in zip(places, dtypes, strict=True):
        counted = counting(place, at.domain.rows)
        if counted is None:
            why = "moves entries of one example to the place of another"
            made.append(Rows(place.shape, dtype, device, leaks=frozenset([Leak(at.node, why)])))
        else:
            made.append(Rows(place.shape, dtype, device, *counted))
    return type(result)(made) if isinstance(result, tuple | list) else made[0]


def counting(numbers: Tensor, rows: int) -> tuple[int | None, int] | None:
    """(axis, inner) along which numbers 1 ... B count the examples; (None, 1) when all are 0; None otherwise."""
    if not bool(numbers.any()):
        return None, 1
    for axis, size in enumerate(numbers.shape):
        if size % rows:
            continue
        lines = numbers.movedim(axis, 0).reshape(size, -1)
        most = lines.amax(1)
        least = torch.where(lines == 0, math.inf, lines).amin(1)
        held = most > 0
        if not bool((least[held] == most[held]).all()):
            continue
        for inner in (i for i in range(1, size // rows + 1) if (size // rows) % i == 0):
            expected = (torch.arange(size) // inner) % rows + 1
            if bool((most[held] == expected[held]).all()):
                return axis, inner
    return None


rule(
    Isolation,
    *(op for op in dict.fromkeys(STRUCTURAL) if Isolation.entry(op) is None and op not in overloads(
        *("embedding", "gather", "index.Tensor", "as_strided", "masked_select", "roll", "flip", "im2col", "unfold"),
        *("reflection_pad1d", "reflection_pad2d", "replication_pad2d", "pixel_shuffle", "upsample_nearest2d.vec"),
        *("upsample_nearest2d", "index_select"),
    )),
    *overloads("squeeze_copy.dims", "select_copy.int", "split_copy.Tensor", "permute_copy", "expand_copy"),
)(moved)  # fmt: skip


@rule(Isolation, aten.index_put.default)
@settled
def index_put(at: At, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    """Entries at constant places are replaced."""
    if accumulate:
        return leak(at, (x, list(indices), values, accumulate), {}, "adds entries up at places of an index")
    return moved(at, x, list(indices), values)


@rule(Isolation, aten.constant_pad_nd.default)
@settled
def padded(at: At, x: Rows, pad: Sequence[int], value: Any = 0) -> Any:
    """The number that fills is of no example."""
    return moved(at, x, pad, 0.0)


@rule(Isolation, *overloads("as_strided", "masked_select"))
@settled
def by_memory(at: At, *args: Any, **kwargs: Any) -> Any:
    """Entries are taken by their place in memory, or as many as there happen to be."""
    return leak(at, args, kwargs, "takes entries regardless of examples")


# --- along dimensions


def _dimensions(given: Any, rank: int) -> list[int]:
    if given is None or (isinstance(given, tuple | list) and not given):
        return list(range(rank))
    return [d % max(rank, 1) for d in ([given] if isinstance(given, int) else given)]


@settled
def along(at: At, *args: Any, **kwargs: Any) -> Any:
    """Reductions and what else works along ``dim`` (all dimensions without one)."""
    given = named(at, args, kwargs)
    x = next(item for item in args if isinstance(item, Rows))
    dims = _dimensions(given.get("dim", given.get("dims")), len(x.shape))
    if x.axis in dims:
        many = "all dimensions" if len(dims) == len(x.shape) and len(dims) > 1 else f"dimension {x.axis}"
        return leak(at, args, kwargs, f"works along {many}, and examples lie along dimension {x.axis}")
    result = outline(at, args, kwargs)
    rank = next(t for t in flat([result]) if isinstance(t, Tensor)).dim()
    assert x.axis is not None
    axis = x.axis if rank == len(x.shape) else x.axis - sum(d < x.axis for d in dims)
    return found(at, args, kwargs, axis, x.inner)


rule(
    Isolation,
    *overloads(
        "sum", "sum.dim_IntList", "mean", "mean.dim", "amax", "amin", "argmax", "argmin", "max", "min"
    ),
    *overloads("max.dim", "min.dim", "median", "median.dim", "any", "any.dim", "any.dims", "all", "all.dim"),
    *overloads("all.dims", "prod", "prod.dim_int", "logsumexp", "var", "var.dim", "var.correction", "std"),
    *overloads(
        "std.dim", "std.correction", "var_mean.correction", "linalg_vector_norm", "norm.ScalarOpt_dim"
    ),
    *overloads("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "softmax.int", "_softmax", "aminmax"),
    *overloads(
        "log_softmax.int", "_log_softmax", "sort", "sort.stable", "topk", "argsort", "kthvalue", "mode"
    ),
    *overloads(
        "roll", "flip", "glu", "nonzero_static", "count_nonzero", "norm.Scalar", "norm.ScalarOpt_dim_dtype"
    ),
)(along)


# --- the last dimensions


def _last(count: Callable[[dict[str, Any], Rows], int]) -> Callable[..., Any]:
    @settled
    def ruled(at: At, *args: Any, **kwargs: Any) -> Any:
        x = args[0]
        apart, _ = known(args, kwargs)
        if not isinstance(x, Rows) or x.axis is None or len(apart) > 1:
            return leak(at, args, kwargs, "has weights that depend on examples")
        mixed = count(named(at, args, kwargs), x)
        if x.axis >= len(x.shape) - mixed:
            return leak(at, args, kwargs, f"mixes its last {mixed} dimensions, along which examples lie")
        return found(at, args, kwargs, x.axis, x.inner)

    return ruled


rule(Isolation, aten.linear.default)(_last(lambda given, x: 1))
rule(Isolation, *overloads("layer_norm", "native_layer_norm", "rms_norm"))(
    _last(lambda given, x: len(given["normalized_shape"]))
)
# All but the first dimension is mixed: channels, groups and positions.
rule(Isolation, aten.convolution.default, *overloads("group_norm", "native_group_norm", "instance_norm"))(
    _last(lambda given, x: len(x.shape) - 1)
)
for _count in (1, 2, 3):
    rule(
        Isolation,
        *overloads(f"max_pool{_count}d", f"avg_pool{_count}d", f"adaptive_avg_pool{_count}d"),
        *overloads(f"_adaptive_avg_pool{_count}d", f"adaptive_max_pool{_count}d", f"reflection_pad{_count}d"),
        *overloads(f"max_pool{_count}d_with_indices", f"replication_pad{_count}d"),
    )(_last(lambda given, x, count=_count: count))  # type: ignore[misc]
rule(
    Isolation,
    *overloads(
        "upsample_nearest2d.vec", "upsample_nearest2d", "upsample_bilinear2d.vec", "upsample_bilinear2d"
    ),
    *overloads("upsample_bicubic2d.vec"),
)(_last(lambda given, x: 2))
rule(Isolation, *overloads("pixel_shuffle", "im2col", "col2im"))(_last(lambda given, x: len(x.shape) - 1))


@rule(Isolation, aten.unfold.default)
@settled
def unfolded(at: At, x: Rows, dimension: int, size: int, step: int) -> Any:
    """Windows along one dimension."""
    if dimension % len(x.shape) == x.axis:
        return leak(at, (x, dimension, size, step), {}, "takes windows along the axis of the examples")
    return found(at, (x, dimension, size, step), {}, x.axis, x.inner)


@rule(
    Isolation,
    *overloads("batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"),
    *overloads("_native_batch_norm_legit.no_stats", "_native_batch_norm_legit_no_training"),
    *overloads("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
)
@settled
def batch_norm(at: At, *args: Any, **kwargs: Any) -> Any:
    """By running statistics entry by entry; by the batch's own, channel by channel, examples meet."""
    given, x = named(at, args, kwargs), args[0]
    training = given.get("training", given.get("train", "no_training" not in at.node.operation))
    if not isinstance(x, Rows) or len(known(args, kwargs)[0]) > 1 or (training and x.axis != 1):
        return leak(at, args, kwargs, "normalises by the mean and variance of the batch")
    return found(at, args, kwargs, x.axis, x.inner)


# --- products


@rule(Isolation, *overloads("matmul", "mm", "bmm", "dot", "mv"))
@settled
def matmul(at: At, a: Any, b: Any) -> Any:
    """[..., m, k] times [..., k, n]: the axis of the examples must not be summed over."""
    apart, _ = known((a, b), {})
    why = "multiplies entries of different examples"
    result = outline(at, (a, b), {})
    if len(apart) == 1:
        x = apart[0]
        summed = 1 if x is a or len(x.shape) == 1 else 2  # counted from the end
        if x.from_end == summed:
            return leak(at, (a, b), {}, "sums over the axis of the examples")
        other = b if x is a else a
        lost = len(other.shape) == 1 and (x is a or x.from_end > 2)  # a vector has no dimension in the result
        place = x.from_end - lost
        return found(at, (a, b), {}, result.dim() - place, x.inner)
    if (
        a.from_end != b.from_end
        or a.from_end <= 2
        or (a.inner, a.shape[a.axis]) != (b.inner, b.shape[b.axis])
    ):
        return leak(at, (a, b), {}, why)
    return found(at, (a, b), {}, result.dim() - a.from_end, a.inner)


@rule(Isolation, *overloads("addmm", "baddbmm"))
@settled
def addmm(at: At, bias: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """A product, and a bias that the network holds."""
    if isinstance(bias, Rows):
        return leak(at, (bias, a, b), kwargs, "adds what depends on examples to a product")
    apart, _ = known((a, b), {})
    summed = 1 if apart[0] is a else 2
    batched = len(apart) == 2 and a.from_end == b.from_end == 3 and a.inner == b.inner
    if (len(apart) == 2 and not batched) or apart[0].from_end == summed:
        return leak(at, (bias, a, b), kwargs, "sums over the axis of the examples")
    return found(at, (bias, a, b), kwargs, len(apart[0].shape) - apart[0].from_end, apart[0].inner)


# --- chosen by contents


@rule(Isolation, aten.embedding.default)
@settled
def embedding(at: At, weight: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows of a table that the network holds."""
    if isinstance(weight, Rows):
        return leak(at, (weight, indices, *args), kwargs, "looks examples up in a table made of examples")
    return found(at, (weight, indices, *args), kwargs, indices.axis, indices.inner)


@rule(
    Isolation,
    *overloads("gather", "scatter.src", "scatter.value", "scatter_add", "scatter_reduce.two", "index_add"),
    *overloads("take_along_dim"),
)
@settled
def by_index(at: At, *args: Any, **kwargs: Any) -> Any:
    """Along ``dim`` entries are chosen; all else is entry by entry."""
    given = named(at, args, kwargs)
    apart, _ = known(args, kwargs)
    first = apart[0]
    if any(x.axis == given["dim"] % len(x.shape) for x in apart):
        return leak(at, args, kwargs, f"chooses among examples along dimension {given['dim']}")
    if any((x.axis, x.inner, x.shape[x.axis or 0]) != (first.axis, first.inner, first.shape[first.axis or 0])
           for x in apart):  # fmt: skip
        return leak(at, args, kwargs, "pairs entries of different examples")
    return found(at, args, kwargs, first.axis, first.inner)


@rule(Isolation, aten.index_select.default)
@settled
def index_select(at: At, x: Any, dim: int, index: Any) -> Any:
    """By a constant index entries are moved; by contents they are looked up in what the network holds."""
    if not isinstance(index, Rows):
        if dim % len(x.shape) == x.axis and held(at.node.args[2]):
            return leak(at, (x, dim, index), {}, HELD)
        return moved(at, x, dim, index)
    if isinstance(x, Rows):
        return leak(at, (x, dim, index), {}, f"chooses along dimension {dim} by contents of examples")
    return found(at, (x, dim, index), {}, dim % len(x.shape), index.inner)


@rule(Isolation, aten.index.Tensor)
@settled
def index(at: At, x: Any, indices: Sequence[Any]) -> Any:
    """As ``index_select``; examples may be named one by one in order while their contents choose among their own."""
    abstract = [i for i in indices if isinstance(i, Rows)]
    own = indices[x.axis] if isinstance(x, Rows) and x.axis is not None and x.axis < len(indices) else None
    if own is not None and isinstance(x, Rows) and held(at.node.args[1][x.axis]):
        return leak(at, (x, list(indices)), {}, HELD)
    if not abstract:
        return moved(at, x, list(indices))
    why = "chooses entries by contents of examples"
    places = [k for k, i in enumerate(indices) if i is not None]
    first = abstract[0]
    together = places == list(range(places[0], places[-1] + 1))
    alike = all(_lies(i) == _lies(first) for i in abstract if i.axis is not None)
    booleans = any(i.dtype == torch.bool for i in indices if i is not None)
    if not together or not alike or booleans:
        return leak(at, (x, list(indices)), {}, why)
    rank = max(len(i.shape) for i in indices if i is not None)
    if isinstance(x, Rows) and x.axis is not None:
        if not isinstance(own, Tensor) or x.inner != 1 or x.shape[x.axis] != at.domain.rows:
            return leak(at, (x, list(indices)), {}, why)
        numbers = torch.full((1,) * rank, 0.0) + own.cpu() + 1.0
        expected = numbered(first, at.domain.rows)
        shape = torch.broadcast_shapes(numbers.shape, expected.shape)
        if not bool((numbers.expand(shape) == expected.expand(shape)).all()):
            return leak(at, (x, list(indices)), {}, why)
    return found(at, (x, list(indices)), {}, places[0] + rank - first.from_end, first.inner)
