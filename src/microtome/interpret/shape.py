"""The shape of a captured program: how many operations, how deep, how often branches meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from microtome.interpret.cost import operation_nodes
from microtome.interpret.graph import Graph, Node
from microtome.interpret.operations import SHAPE_ONLY


@dataclass(frozen=True, kw_only=True)
class ProgramShape:
    """Counts of a program.

    Attributes:
        operations: those that give tensors and depend on an input or a parameter.
        depth: the most of them on one way from an input or parameter to an output.
        merges: those that read two or more values that depend on an input.
        learned: those that read a parameter.
        parameters: numbers in all parameters that are read.
        kinds: how often each operation occurs, most frequent first.
    """

    operations: int
    depth: int
    merges: int
    learned: int
    parameters: int
    kinds: Mapping[str, int]


def tensor_nodes(graph: Graph) -> tuple[Node, ...]:
    """The operations that give tensors and depend on an input or a parameter, not on shapes alone."""
    held = [node for node in graph.nodes if node.kind in ("input", "parameter")]
    reached = graph.reached(held, lambda node: node.target not in SHAPE_ONLY)
    return tuple(n for n in operation_nodes(graph) if n in reached and n.target not in SHAPE_ONLY)


def program_shape(graph: Graph) -> ProgramShape:
    """Count; see :class:`ProgramShape`."""
    nodes = tensor_nodes(graph)
    counted = set(nodes)
    moving = graph.reached(graph.inputs, lambda node: node.target not in SHAPE_ONLY)
    depth: dict[Node, int] = {}
    for node in graph.nodes:  # choices among several results count nothing, but are passed through
        before = max((depth.get(operand, 0) for operand in node.operands), default=0)
        depth[node] = before + (node in counted)
    used = {operand for node in nodes for operand in node.operands if operand.kind == "parameter"}
    return ProgramShape(
        operations=len(nodes),
        depth=max((depth[node] for node in nodes), default=0),
        merges=sum(
            len({o for o in node.operands if o in moving and o.shape is not None}) > 1 for node in nodes
        ),
        learned=sum(any(o.kind == "parameter" for o in node.operands) for node in nodes),
        parameters=sum(graph.state[node.target].numel() for node in used),
        kinds=dict(Counter(node.operation.split(".")[1] for node in nodes).most_common()),
    )
