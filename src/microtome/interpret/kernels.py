"""Kernels of infinitely wide networks: what a network of this architecture computes and learns as its width grows.

``infinite_width_kernels(model, x)`` reads the exported program once. At initialisation the outputs of a very wide
network are Gaussian with covariance ``nngp`` (Neal 1996; Lee et al. 2018), and gradient descent on it is kernel descent
with ``ntk`` (Jacot et al. 2018). Dense and convolutional networks with any function of one number, residual sums,
average pools, flattening and batch-norm by its statistics; all else is an error, MT310 or MT374, that names it.

Variances of weights are given, or those this network's own weights have. ``parametrization="standard"`` is torch's:
every layer adds its fan-in times what it sees, and 1 for a bias, as the network's own gradients do; with ``"ntk"``
weights of variance 1 are multiplied by sigma_w over the root of the fan-in, and widths fall out.

Convolutions hold the covariance of every position with itself, and of all pairs of positions only where a pool comes
later: n^2 p^2 numbers instead of n^2 p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from microtome.errors import SubjectError
from microtome.interpret import kernel_rules
from microtome.interpret.capture import capture
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import forward
from microtome.interpret.kernel_domain import InfiniteWidth, Kernel, Layer, Parametrization, Random
from microtome.interpret.operations import aten
from microtome.interpret.patterns import as_double, doubled, widened

WEIGHTS = (aten.linear.default, aten.convolution.default)
"""Operations that a layer of weights is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernels:
    """Kernels of n inputs, means over positions where the value has several.

    Attributes:
        nngp: [n, n] covariance of a unit's values, float64.
        ntk: [n, n] inner product of a unit's gradients by all weights.
        steps: layers and functions on the way, in order.
        at: kernels at the layers asked for, by name.
    """

    nngp: Tensor
    ntk: Tensor
    steps: tuple[Layer, ...] = ()
    at: Mapping[str, Kernels] = field(default_factory=dict)


def infinite_width_kernels(
    model: nn.Module | Graph,
    inputs: Tensor | Mapping[Node, Any],
    *,
    sigma_w: float | None = None,
    sigma_b: float | None = None,
    parametrization: Parametrization = "standard",
    layers: Sequence[str] | Literal["weights"] = (),
    output: str | None = None,
    limit: int = 1 << 27,
) -> Kernels:
    """NNGP and NTK of a network's architecture over a batch.

    Args:
        model: a network, or its captured program.
        inputs: [n, ...], or values by input node for a program.
        sigma_w: deviation of all weights times the root of their fan-in; None for those of this network.
        sigma_b: deviation of all biases; None for those of this network.
        parametrization: torch's, or that of the NTK.
        layers: nodes or layers to give the kernels of as well; "weights" for all linear and convolutional ones.
        output: where to end instead of the first output ("fc3", before a softmax).
        limit: most numbers in one kernel.

    Raises:
        SubjectError: MT310 or MT374 for an operation without a rule, MT375 for what is too large.
    """
    if isinstance(model, nn.Module):
        if not isinstance(inputs, Tensor):
            raise SubjectError(
                "MT374", "inputs by node need a captured program", fix="capture the model first"
            )
        graph = capture(model, (inputs,))
    else:
        graph = model
    given = graph.bind((inputs,)) if isinstance(inputs, Tensor) else dict(inputs)
    graph = doubled(graph)
    end = graph.output if output is None else graph.node(output)
    if layers == "weights":
        on_the_way = graph.needed([end])
        wanted = {n.name: n for n in graph.operations if n.target in WEIGHTS and n in on_the_way}
    else:
        wanted = {name: graph.node(name) for name in layers}
    pools = [n for n in graph.operations if n.target in kernel_rules.POOLS]
    full = graph.needed([operand for n in pools for operand in n.operands])
    domain = InfiniteWidth(sigma_w, sigma_b, parametrization, frozenset(full), limit)
    drawn = {n.target: Random(graph.state[n.target], n.target) for n in graph.nodes if n.kind == "parameter"}
    with torch.no_grad():
        run = forward(
            graph, as_double(given), domain, replace=widened(graph), parameters=drawn,
            keep=list(wanted.values()), targets=[end, *wanted.values()],
        )  # fmt: skip
    found = _read(run.values[end], end)
    each = {name: _read(run.values[node], node) for name, node in wanted.items()}
    return Kernels(nngp=found.nngp, ntk=found.ntk, steps=tuple(domain.layers), at=each)


def _read(value: Any, node: Node) -> Kernels:
    if not isinstance(value, Kernel):
        raise SubjectError(
            "MT374", f"no random weights lie between the input and '{node.layer or node.name}'", where=node.place(),
            fix="ask about a later layer",
        )  # fmt: skip
    nngp, ntk = (k.mean(2) for k in value.same)
    return Kernels(nngp=nngp, ntk=ntk)


__all__ = ["WEIGHTS", "Kernels", "infinite_width_kernels"]
