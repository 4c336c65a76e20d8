"""A network as a graph of its neurons: biases on nodes, weights on edges (Kofinas et al. 2024).

Hidden neurons have no place of their own, so a graph network that reads the graph answers alike for every network that
differs only in the order of its hidden neurons; inputs and outputs keep their place. Convolutions are channels joined
by kernels. The shape is traced once (``torch.fx``); weights are then gathered from any vector of parameters, so a whole
population becomes graphs by one index operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError

ACTIVATIONS = ("none", "relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu", "elu", "sin")
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.GELU: "gelu", nn.SiLU: "silu",
    nn.LeakyReLU: "leaky_relu", nn.ELU: "elu",
}  # fmt: skip
_FUNCTIONS: dict[Any, str] = {
    **{getattr(torch, k): k for k in ("relu", "tanh", "sigmoid", "sin")},
    **{getattr(F, k): k for k in ("relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu", "elu")},
}
_PASSED = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
           nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Flatten)  # fmt: skip
_PASSED_CALLS = ("flatten", "squeeze", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout", "view",
                 "reshape")  # fmt: skip
ONE, NOTHING = -1, -2
"""Places that are no parameter: the constant 1 of a skip connection, and the padding 0."""


@dataclass(frozen=True)
class NeuralGraph:
    """The shape of a network and where in its vector of parameters each number lies.

    Attributes:
        edge_index: [2, m] from, to.
        weight_at: [m, k] the parameters of each edge: one of a linear layer, the kernel of a convolution, the positions
            of a flattened channel; :data:`NOTHING` pads.
        bias_at: [n] the bias of each neuron.
        layer: [n] 0 for inputs, then as the layers are run.
        place: [n] the index of an input (from 1) or, after all inputs, of an output; 0 for hidden neurons.
        activation: [n] what follows the neuron, of :data:`ACTIVATIONS`.
        skip: [m] 1 for a skip connection.
    """

    edge_index: Tensor
    weight_at: Tensor
    bias_at: Tensor
    layer: Tensor
    place: Tensor
    activation: Tensor
    skip: Tensor

    def weights(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """[..., m, k] edge and [..., n, 1] node features of one vector [p] or many [N, p]; gradients go through."""
        more = parameters.new_tensor([0.0, 1.0]).expand(*parameters.shape[:-1], 2)
        whole = torch.cat([parameters, more], -1)  # [..., p + 2]: places -2 and -1 are 0 and 1
        return whole[..., self.weight_at], whole[..., self.bias_at, None]

    def data(self, parameters: Tensor) -> Any:
        """``Data`` of one network: x [n, 1] biases, edge_attr [m, k] weights, and the fields of the shape."""
        geometric()
        from torch_geometric.data import Data

        edge_attr, x = self.weights(parameters)
        return Data(
            x=x, edge_attr=edge_attr, edge_index=self.edge_index, layer=self.layer, place=self.place,
            activation=self.activation, skip=self.skip,
        )  # fmt: skip


class _Walk:
    """The graph as it grows; a value is the neurons it comes from, and whether they may still be added to."""

    def __init__(self, module: nn.Module) -> None:
        self.parts: dict[str, list[Tensor]] = {
            k: [] for k in ("from", "to", "weight", "skip", "bias", "layer")
        }
        self.activation: list[tuple[Tensor, int]] = []
        self.count = 0
        self.at: dict[str, Tensor] = {}
        start = 0
        for name, p in module.named_parameters():
            self.at[name] = torch.arange(start, start + p.numel()).view(p.shape)
            start += p.numel()

    def neurons(self, biases: Tensor) -> Tensor:
        nodes = torch.arange(self.count, self.count + len(biases))
        self.parts["layer"].append(torch.full_like(nodes, len(self.parts["layer"])))
        self.parts["bias"].append(biases)
        self.count += len(biases)
        return nodes

    def join(self, source: Tensor, target: Tensor, weights: Tensor, skip: int = 0) -> None:
        for name, found in (("from", source), ("to", target), ("weight", weights)):
            self.parts[name].append(found)
        self.parts["skip"].append(torch.full_like(source, skip))

    def layer(self, name: str, module: nn.Module, nodes: Tensor) -> Tensor:
        weight = self.at[f"{name}.weight"]
        out, groups = weight.shape[0], getattr(module, "groups", 1)
        biases = self.at.get(f"{name}.bias", torch.full((out,), NOTHING))
        if isinstance(module, nn.Linear):
            if weight.shape[1] % len(nodes):
                raise UsageError(
                    "MT512", f"{weight.shape[1]} inputs do not divide into {len(nodes)} channels", where=name
                )
            weight = weight.view(out, len(nodes), -1)  # the positions of a flattened channel lie side by side
        made = self.neurons(biases)
        ins, outs = len(nodes) // groups, out // groups
        source = nodes.view(groups, 1, ins).expand(groups, outs, ins)
        target = made.view(groups, outs, 1).expand(groups, outs, ins)
        self.join(source.flatten(), target.flatten(), weight.reshape(out * ins, -1))
        return made

    def same(self, source: Tensor, target: Tensor | None = None) -> Tensor:
        """Join neurons one to one by the constant 1, with new ones if no target is given."""
        made = self.neurons(torch.full((len(source),), NOTHING)) if target is None else target
        self.join(source, made, torch.full((len(source), 1), ONE), 1)
        return made

    def done(self, inputs: Tensor, outputs: Tensor) -> NeuralGraph:
        width = max(w.shape[1] for w in self.parts["weight"])
        weights = [F.pad(w, (0, width - w.shape[1]), value=NOTHING) for w in self.parts["weight"]]
        place = torch.zeros(self.count, dtype=torch.long)
        ends = torch.cat([inputs, outputs])
        place[ends] = torch.arange(1, len(ends) + 1)
        activation = torch.zeros(self.count, dtype=torch.long)
        for nodes, which in self.activation:
            activation[nodes] = which
        from_, to, skip, bias, layer = (
            torch.cat(self.parts[k]) for k in ("from", "to", "skip", "bias", "layer")
        )
        return NeuralGraph(torch.stack([from_, to]), torch.cat(weights), bias, layer, place, activation, skip)


def neural_graph(module: nn.Module, inputs: int) -> NeuralGraph:
    """The graph of a network of linear and convolutional layers, activations, pooling, flattening and sums.

    Pooling, dropout and reshaping join no neurons and are passed through; their sizes are not part of the graph. A
    sum adds constant edges to the layer it follows (a residual connection), or makes neurons of its own where neither
    side may still change.

    Args:
        module: what ``torch.fx`` can trace.
        inputs: input neurons: features, or channels of an image.

    Raises:
        UsageError: MT512 for an operation that has no such graph, with its name.
    """
    try:
        traced = fx.symbolic_trace(module)
    except Exception as error:  # tracing runs the module's own code, which may raise anything
        raise UsageError(
            "MT512", f"the network cannot be traced: {error}", fix="write forward without branches on values"
        ) from error
    walk = _Walk(module)
    value: dict[fx.Node, Tensor] = {}
    fresh: set[fx.Node] = set()  # out of a layer and used once: its neurons may still be changed
    first: Tensor | None = None
    for node in traced.graph.nodes:
        given = [value[a] for a in node.args if isinstance(a, fx.Node) and a in value]
        before = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        called = traced.get_submodule(node.target) if node.op == "call_module" else None
        name = getattr(node.target, "__name__", str(node.target))
        act = _MODULES.get(type(called)) if called is not None else _FUNCTIONS.get(node.target)
        if act is None and node.op == "call_method" and name in ACTIVATIONS:
            act = name
        if node.op == "placeholder" and first is None:
            first = value[node] = walk.neurons(torch.full((inputs,), NOTHING))
        elif isinstance(called, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            value[node] = walk.layer(str(node.target), called, given[0])
            fresh |= {node} if len(node.users) == 1 else set()
        elif act is not None and given:
            value[node] = given[0] if before in fresh else walk.same(given[0])
            walk.activation.append((value[node], ACTIVATIONS.index(act)))
        elif name in ("add", "iadd") and len(given) == 2 and len(given[0]) == len(given[1]):
            open_side = next((i for i in (1, 0) if node.args[i] in fresh), None)
            value[node] = walk.same(given[0]) if open_side is None else given[open_side]
            walk.same(given[1] if open_side is None else given[1 - open_side], value[node])
            fresh |= {node} if len(node.users) == 1 else set()
        elif given and (isinstance(called, _PASSED) or (called is None and name in _PASSED_CALLS)):
            value[node] = given[0]
            fresh |= {node} if before in fresh and len(node.users) == 1 else set()
        elif node.op == "output" and given and first is not None and walk.parts["weight"]:
            return walk.done(first, given[0])
        elif (given and node.op != "output") or node.op == "placeholder":
            raise UsageError(
                "MT512",
                f"'{name if called is None else type(called).__name__}' has no graph of neurons",
                where=str(node),
                fix="linear, convolution, activation, sum",
            )
    raise UsageError("MT512", "the network has no layer with weights, or does not give one tensor")


def shuffles(module: nn.Module, count: int, generator: torch.Generator | None = None) -> Tensor:
    """[count, p] orders of a vector of parameters that leave the function as it is: hidden neurons change places.

    ``vectors.gather(1, shuffles(module, len(vectors)))`` are the networks with their hidden neurons in random orders.

    Args:
        module: a chain of linear layers, in the order they are run, with no other parameters.
        count: how many orders.
        generator: of the orders.
    """
    at = {k: v.expand(count, *v.shape) for k, v in _Walk(module).at.items()}
    names = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    for here, there in pairwise(names):
        order = torch.rand(count, at[f"{here}.weight"].shape[1], generator=generator).argsort(1)
        rows, columns = (at[f"{k}.weight"] for k in (here, there))
        at[f"{here}.weight"] = rows.gather(1, order[:, :, None].expand_as(rows))
        at[f"{there}.weight"] = columns.gather(2, order[:, None].expand_as(columns))
        if f"{here}.bias" in at:
            at[f"{here}.bias"] = at[f"{here}.bias"].gather(1, order)
    return torch.cat([v.flatten(1) for v in at.values()], 1)


__all__ = ["ACTIVATIONS", "NeuralGraph", "neural_graph", "shuffles"]
