"""How long every operation of a captured program takes, on this machine, by running it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from microtome.interpret.graph import Graph, Node, substitute


def latencies(
    graph: Graph, inputs: Mapping[Node, Any], repeats: int = 5, parameters: Mapping[str, Tensor] | None = None
) -> dict[Node, float]:
    """Median seconds of each operation over ``repeats`` runs after one that warms up.

    Only the operation is timed, not the walk from one to the next; on a GPU each is waited for, so that the
    sum is more than a run takes. Below some microseconds it is the time a call of any operation takes.
    """
    held = {**graph.state, **(parameters or {})}
    taken: dict[Node, list[float]] = {}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for node, seconds in _run(graph, inputs, held).items():
                if turn:
                    taken.setdefault(node, []).append(seconds)
    return {node: statistics.median(times) for node, times in taken.items()}


def _run(graph: Graph, inputs: Mapping[Node, Any], held: Mapping[str, Any]) -> dict[Node, float]:
    values: dict[Node, Any] = {}
    taken: dict[Node, float] = {}
    last = {operand: node for node in graph.nodes for operand in node.operands}
    ends = {node for node in graph.outputs if isinstance(node, Node)}
    done: dict[Node, list[Node]] = {}
    for operand, user in last.items():
        if operand not in ends:
            done.setdefault(user, []).append(operand)
    for node in graph.nodes:
        if node.kind == "input":
            values[node] = inputs[node]
        elif node.kind != "operation":
            values[node] = held[node.target]
        else:
            args = substitute(node.args, values.__getitem__)
            kwargs = substitute(dict(node.kwargs), values.__getitem__)
            began = time.perf_counter()
            values[node] = node.target(*args, **kwargs)
            _wait(values[node])
            taken[node] = time.perf_counter() - began
        for operand in done.get(node, ()):
            del values[operand]
    return taken


def _wait(value: Any) -> None:
    if isinstance(value, Tensor) and value.is_cuda:
        torch.cuda.synchronize(value.device)
