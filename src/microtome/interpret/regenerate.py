"""A captured program as a module again: the same operations in order, the same parameters, no Python of the model."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from microtome.interpret.graph import Graph, Node, substitute


class Regenerated(nn.Module):
    """The program of a graph as a module; its parameters are the model's own tensors, under their own names.

    ``program`` is a ``torch.fx.GraphModule``: ``regenerated.program.code`` is the network as a list of operations.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self.program = _program(graph)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model the graph was captured from, in eval mode."""
        bound = self._graph.bind(args, kwargs)
        return self._graph.unflatten(self.program(*(bound[node] for node in self._graph.inputs)))


def regenerate(graph: Graph) -> Regenerated:
    """A module that computes what the captured one does, and trains the same weights."""
    return Regenerated(graph)


def _program(graph: Graph) -> fx.GraphModule:
    holder = nn.Module()
    made = fx.Graph()
    at: dict[Node, fx.Node] = {}
    inputs = {node: made.placeholder(f"input_{i}") for i, node in enumerate(graph.inputs)}
    for node in graph.nodes:
        if node.kind == "input":
            at[node] = inputs[node]
        elif node.kind == "operation":
            args = substitute(node.args, at.__getitem__)
            at[node] = made.call_function(
                _callable(node.target), args, substitute(dict(node.kwargs), at.__getitem__)
            )
        else:
            at[node] = made.get_attr(_hold(holder, node.target, graph.state[node.target]))
    made.output(tuple(at[o] if isinstance(o, Node) else o for o in graph.outputs))
    return fx.GraphModule(holder, made)


def _hold(holder: nn.Module, path: str, tensor: Tensor) -> str:
    """Keep a tensor under its dotted name."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(holder, parent):
            holder.add_module(parent, nn.Module())
        holder = getattr(holder, parent)
    if hasattr(holder, name):
        return path
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(name, tensor)
    else:
        holder.register_buffer(name, tensor)
    return path


def _callable(target: Any) -> Any:
    """Arithmetic on sizes is kept as Python's own; everything else is an operation of torch."""
    return (
        getattr(operator, target.__name__, target)
        if getattr(target, "__module__", "") == "_operator"
        else target
    )


__all__ = ["Regenerated", "regenerate"]
