"""Groups of operations that most domains treat alike, and the vocabulary that capture speaks.

Capture decomposes a program into core ATen operations, but keeps the ones in ``KEPT`` whole: a linear map,
a normalisation or an activation has a tighter bound, a relevance rule or a name of its own; its pieces have
not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def overloads(*names: str) -> tuple[Any, ...]:
    """The operations of these names ("relu.default") that this version of torch has."""
    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        if hasattr(aten, packet) and hasattr(getattr(aten, packet), overload or "default"):
            found.append(getattr(getattr(aten, packet), overload or "default"))
    return tuple(found)


KEPT = overloads(
    *("linear", "matmul", "layer_norm", "group_norm", "instance_norm", "rms_norm", "batch_norm"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    *("softmax.int", "log_softmax.int", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "relu6"),
    *("softplus", "elu", "selu", "celu", "leaky_relu", "prelu", "log_sigmoid", "square"),
)

# The result rearranges, selects or repeats operand entries: a forward domain applies the operation
# to each of its parts, a backward domain takes the transpose (``At.transpose``).
STRUCTURAL = overloads(
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose.int",
        "t",
        "unsqueeze",
        "squeeze",
        "squeeze.dim",
    ),
    *(
        "squeeze.dims",
        "expand",
        "clone",
        "alias",
        "detach",
        "contiguous",
        "lift_fresh_copy",
        "_to_copy",
        "select.int",
    ),
    *(
        "slice.Tensor",
        "split.Tensor",
        "split_with_sizes",
        "unbind.int",
        "chunk",
        "cat",
        "stack",
        "flip",
        "roll",
    ),
    *(
        "repeat",
        "index.Tensor",
        "index_select",
        "gather",
        "as_strided",
        "embedding",
        "diagonal",
        "unfold",
        "tril",
    ),
    *(
        "triu",
        "reflection_pad1d",
        "reflection_pad2d",
        "replication_pad2d",
        "pixel_shuffle",
        "im2col",
        "dropout",
    ),
    *("slice_scatter", "select_scatter", "narrow", "view_as", "expand_as", "movedim.int", "_reshape_alias"),
    *("upsample_nearest2d.vec", "upsample_nearest2d", "copy", "masked_select"),
)

# Linear with weights that are not negative: bounds go through end by end.
AVERAGES = overloads(
    *("mean", "mean.dim", "sum", "sum.dim_IntList", "avg_pool1d", "avg_pool2d", "avg_pool3d", "cumsum"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("scatter_add", "index_add", "upsample_bilinear2d.vec", "col2im"),
)

# Not decreasing in any operand entry, and exact (they choose an entry): bounds go through end by end.
SELECTIONS = overloads(
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "amax", "amin", "maximum", "minimum"),
    *(
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "clamp_min",
        "clamp_max",
        "relu_",
        "floor",
        "ceil",
        "round",
        "sign",
    ),
    *("max", "min", "threshold", "heaviside"),
)

# Only the shape and type of their operand matters.
SHAPE_ONLY = overloads(
    *(
        "sym_size.int",
        "sym_numel",
        "full_like",
        "zeros_like",
        "ones_like",
        "empty_like",
        "new_zeros",
        "new_ones",
    ),
    *("new_full", "new_empty", "sym_stride.int", "_assert_tensor_metadata"),
)


def attention_heads_last(*args: Any, **kwargs: Any) -> Tensor:
    """As :func:`attention`, laid out in memory as fused kernels lay it out: heads beside features.

    A program in which ``contiguous()`` was no work, because a fused kernel had run, needs it so.
    """
    result = attention(*args, **kwargs)
    return result.transpose(-3, -2).contiguous().transpose(-3, -2) if result.dim() > 3 else result


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in plain operations: the mask stays a function of masks alone, so that it is concrete.

    The decomposition torch brings asks of every score whether it is minus infinity; here only rows that the
    mask forbids entirely get the value 0, as the original program gives them.
    """
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    infinity = float("-inf")
    if is_causal:
        allowed = torch.ones(scores.shape[-2], scores.shape[-1], dtype=torch.bool, device=query.device).tril()
        scores = scores + torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, infinity)
    if attn_mask is None:
        return torch.matmul(torch.softmax(scores, -1), value)
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, infinity)
    empty = (attn_mask == infinity).all(-1, keepdim=True)
    weights = torch.softmax(scores + attn_mask.masked_fill(empty, 0.0), -1)
    return torch.matmul(weights * (~empty).to(weights.dtype), value)


def adaptive_maxima(x: Tensor, size: Sequence[int]) -> Any:
    """Adaptive max-pooling as the plain one that it is where all windows are equal; elsewhere it stays whole.

    The plain one has one result, and every domain a rule for it. The places of the maxima are computed only where a
    program asks for them.
    """
    rank = len(size)
    if any(have % want for have, want in zip(x.shape[-rank:], size, strict=True)):
        return NotImplemented
    kernel = [have // want for have, want in zip(x.shape[-rank:], size, strict=True)]
    pool, places = {
        2: (aten.max_pool2d.default, aten.max_pool2d_with_indices.default),
        3: (aten.max_pool3d.default, aten.max_pool3d_with_indices.default),
    }[rank]
    return pool(x, kernel, kernel), places(x, kernel, kernel)[1]
