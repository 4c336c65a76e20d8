"""A traced training step made leaner: few columns laid out as rows, products joined with their bias, nothing idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def _first(shape: Sequence[int], dim: int) -> bool:
    """Whether a softmax over this dimension is worth turning: the last one, too short to vectorise over."""
    return len(shape) > 1 and dim in (-1, len(shape) - 1) and shape[-1] < 32


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if half_to_float or not _first(x.shape, dim):
        return NotImplemented
    return aten._log_softmax(x.mT.contiguous(), x.dim() - 2, False).mT


def _log_softmax_backward(g: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    if dtype != g.dtype or not _first(output.shape, dim):
        return NotImplemented
    turned = (g.mT.contiguous(), output.mT.contiguous())
    return aten._log_softmax_backward_data(*turned, output.dim() - 2, dtype).mT


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Few columns: the transposed product, whose rows are long, is twice as fast, and so is softmax after it."""
    if not b.shape[2] < 32 <= a.shape[1]:
        return NotImplemented
    return aten.bmm(b.mT, a.mT).mT


LAID_OUT: Any = {
    aten.bmm.default: _bmm,
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
}


def lean(traced: fx.GraphModule) -> fx.GraphModule:
    """Drop operations that return their input, join a product and its bias, forget what is no longer used."""
    graph = traced.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and _returns_its_input(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2:
            _join(graph, node)
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()
    return traced


def _join(graph: fx.Graph, node: fx.Node) -> None:
    """Bias + a b -> baddbmm(bias, a, b), also where the product was taken transposed."""
    for product, bias in (node.args, node.args[::-1]):
        if not isinstance(product, fx.Node) or not isinstance(bias, fx.Node) or len(product.users) > 1:
            continue
        turned = product.target is aten.transpose.int
        inner: Any = product.args[0] if turned else product
        value = bias.meta["val"]
        if inner.target is not aten.bmm.default or len(inner.users) > 1:
            continue
        if value.dim() != 3 or value.dtype != inner.meta["val"].dtype:
            continue
        joined: Any
        with graph.inserting_before(node):
            if turned:
                bias = graph.call_function(aten.transpose.int, (bias, 1, 2))
            joined = graph.call_function(aten.baddbmm.default, (bias, *inner.args))
            if turned:
                joined = graph.call_function(aten.transpose.int, (joined, 1, 2))
        joined.meta = dict(node.meta)
        node.replace_all_uses_with(joined)
        graph.erase_node(node)
        return


_RESHAPES = {aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.reshape.default}
_SAME = {aten.alias.default, aten.detach.default}


def _returns_its_input(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or "val" not in node.meta or "val" not in source.meta:
        return False
    if node.target in _SAME:
        return True
    if node.target in _RESHAPES:
        return bool(node.meta["val"].shape == source.meta["val"].shape)
    return node.target is aten.mul.Scalar and bool(node.args[1] == 1)


__all__ = ["LAID_OUT", "lean"]
