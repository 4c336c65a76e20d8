"""Arguments that export cannot take as they are.

Graph objects (PyTorch Geometric ``Data`` and ``Batch``) are taken apart into a dict of their tensors, and put
together again inside the program. ``int(batch.max())``, by which pooling layers count the graphs of a batch,
is a number of the example's: the program is then for that many graphs, and ``Graph.bind`` checks it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from microtome.batches import is_graph

_WHOLE_NUMBERS = (Tensor.__int__, Tensor.__index__, Tensor.item)


def tensors_of(graph: Any) -> dict[str, Tensor]:
    """The tensors of a graph object by name, in alphabetical order."""
    held = graph.to_dict()
    return {key: held[key] for key in sorted(held) if isinstance(held[key], Tensor)}


def needs_adapting(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether there is a graph object among the arguments, or an index a pooling layer may count by."""
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    return any(is_graph(leaf) or _is_index(leaf) for leaf in leaves)


def _is_index(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 1 and leaf.numel() > 0 and not leaf.is_floating_point()


def apart(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with graph objects as dicts of tensors."""
    given = (tuple(args), dict(kwargs or {}))
    if not any(is_graph(leaf) for leaf in pytree.tree_leaves(given)):
        return given
    return pytree.tree_map(lambda leaf: tensors_of(leaf) if is_graph(leaf) else leaf, given)


def open_sizes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int | None]:
    """For each leaf of the arguments taken apart, the dimension whose size may change, None for none.

    Of a graph these are the numbers of nodes and of edges; what there is one of per graph is fixed.
    """
    sizes: list[int | None] = []
    for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))):
        if not is_graph(leaf):
            sizes.append(0 if isinstance(leaf, Tensor) and leaf.dim() else None)
            continue
        for key, tensor in tensors_of(leaf).items():
            many = tensor.dim() and (leaf.is_node_attr(key) or leaf.is_edge_attr(key) or key == "edge_index")
            sizes.append(int(leaf.__cat_dim__(key, tensor)) % tensor.dim() if many else None)
    return sizes


class _Counting(TorchFunctionMode):
    """Answers ``int(index.max())`` of an integer input by the example's number, and notes which it was."""

    def __init__(self, inputs: Sequence[Any], numbers: Sequence[int | None]) -> None:
        super().__init__()
        self.numbers = {id(x): (i, number) for i, (x, number) in enumerate(zip(inputs, numbers, strict=True))}
        self.maxima: dict[int, tuple[Tensor, int, int]] = {}
        self.used: dict[int, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WHOLE_NUMBERS and args and id(args[0]) in self.maxima:
            _, place, number = self.maxima[id(args[0])]
            self.used[place] = number
            return number
        result = func(*args, **kwargs)
        if func in (Tensor.max, torch.max) and len(args) == 1 and not kwargs and id(args[0]) in self.numbers:
            place, known = self.numbers[id(args[0])]
            if known is not None:  # the result is kept, so that its id stays its own
                self.maxima[id(result)] = (result, place, known)
        return result


@contextmanager
def adapted(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], maxima: dict[int, int]
) -> Iterator[None]:
    """While entered, ``model`` takes arguments that are apart; ``maxima`` gets the numbers that were read.

    The model's own ``forward`` is put aside instead of a module around it, so that no path changes.
    """
    originals = pytree.tree_leaves((tuple(args), dict(kwargs)))
    numbers: list[int | None] = []
    for leaf in pytree.tree_leaves(apart(args, kwargs)):
        numbers.append(int(leaf.max()) if _is_index(leaf) else None)
    forward: Callable[..., Any] = model.forward
    own = "forward" in model.__dict__
    _, whole = pytree.tree_flatten((tuple(args), dict(kwargs)))

    @functools.wraps(forward)
    def rebuilt(*given: Any, **named: Any) -> Any:
        flat = pytree.tree_leaves((given, named))
        rest = iter(flat)
        leaves = []
        for original in originals:
            if is_graph(original):
                joined = copy.copy(original)
                for key in tensors_of(original):
                    joined[key] = next(rest)
                leaves.append(joined)
            else:
                leaves.append(next(rest))
        again, keywords = pytree.tree_unflatten(leaves, whole)
        with _Counting(flat, numbers) as counting:
            result = forward(*again, **keywords)
        maxima.update(counting.used)
        return result

    model.forward = rebuilt
    try:
        yield
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward
