"""GOAt: a graph network's output shared out among the edges and features it is a sum of products of.

With activation patterns held fixed the output of a network of sums is a polynomial: every term is a product of weights,
edge entries and at most one feature. Each term is shared equally among the edges and the feature in it (an edge that is
passed twice counts twice), so that all shares add up to the output less what biases alone give (Lu et al. 2024). By
Euler's theorem the shares of all terms at once are z * integral of d f(t z) / d z over t in 0..1, z the edges and
features; the integrand is a polynomial in t of degree at most the number of convolutions, which a Gauss-Legendre rule
of half as many points integrates exactly. So a few backward passes replace the enumeration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.blocks import Blocks, computational_blocks

geometric()
from torch_geometric.explain import ExplainerAlgorithm, Explanation  # noqa: E402 - only once it is known to be there
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks  # noqa: E402
from torch_geometric.explain.config import ExplanationType, MaskType, ModelMode  # noqa: E402

_RECTIFIERS = (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.leaky_relu)


class _FixedGates(TorchFunctionMode):
    """Notes which rectifiers are open on the first call, and keeps them so on all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[Tensor] = []
        self.noting, self.at = True, 0

    def again(self) -> None:
        """Before each further call."""
        self.noting, self.at = False, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _RECTIFIERS:
            return func(*args, **kwargs)
        x = args[0]
        if self.noting:
            closed = 0.0
            if func is F.leaky_relu:
                closed = float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01))
            self.gates.append(torch.where(x > 0, 1.0, closed).to(x.dtype))
            return x * self.gates[-1]
        self.at += 1
        return x * self.gates[self.at - 1]


class GOAt(ExplainerAlgorithm):
    """Graph Output Attribution for networks of sums or means with (leaky) rectifiers, in PyTorch Geometric's interface.

    Masks are signed: the share of the target logit that each edge and each feature has. The explanation also carries
    ``baseline`` (what biases alone give) and ``completeness_error``, |logit - baseline - sum of shares|: near 0 where
    the network is such a sum of products, and large where it is not (attention, normalisation over nodes, max);
    ``baselines`` and ``logits`` are those of each answer that was asked for.

    Edge entries are as a convolution normalises them; loops that a convolution adds are no edges of the graph.

    Args:
        hops: convolutions of the network; by default the number of its message-passing modules.
    """

    def __init__(self, *, hops: int | None = None) -> None:
        super().__init__()
        self.hops = hops

    def supports(self) -> bool:
        """Explanations of a model's classification, with an edge mask and (or not) a mask of each feature."""
        config = self.explainer_config
        return (
            config.explanation_type == ExplanationType.model
            and config.edge_mask_type == MaskType.object
            and config.node_mask_type in (MaskType.attributes, MaskType.object, None)
            and self.model_config.mode == ModelMode.multiclass_classification
        )

    def forward(
        self, model: Any, x: Tensor, edge_index: Tensor, *, target: Any, index: Any = None, **kwargs: Any
    ) -> Any:
        """Masks [nodes, d] (or [nodes, 1]) and [edges] for the whole graph."""
        if index is None:
            everything = torch.zeros(len(x), dtype=torch.long)
            return self._attribute(model, x, edge_index, target, None, everything, kwargs)[0]
        sets = [torch.as_tensor(index).reshape(-1)]
        return self._on_blocks(model, x, edge_index, target, sets, kwargs)[0]

    def explain(
        self,
        model: torch.nn.Module,
        x: Tensor,
        edge_index: Tensor,
        nodes: Sequence[int] | Tensor,
        *,
        target: Tensor,
        **kwargs: Any,
    ) -> list[Any]:
        """One explanation a node, all at once on their computational subgraphs."""
        sets = list(torch.as_tensor(nodes).reshape(-1).split(1))
        return self._on_blocks(model, x, edge_index, target, sets, kwargs)

    def _on_blocks(
        self, model: Any, x: Tensor, edge_index: Tensor, target: Tensor, sets: list[Tensor], kwargs: Any
    ) -> list[Any]:
        blocks = computational_blocks(edge_index, len(x), sets, self.hops or self._num_hops(model))
        return self._attribute(model, x, edge_index, target, blocks, blocks.node_block, kwargs)

    def _attribute(
        self,
        model: Any,
        x: Tensor,
        edge_index: Tensor,
        target: Tensor,
        blocks: Blocks | None,
        group: Tensor,
        kwargs: Any,
    ) -> list[Any]:
        features = x if blocks is None else blocks.rows(x)
        edges = edge_index if blocks is None else blocks.edge_index
        given = kwargs if blocks is None else blocks.arguments(kwargs, len(x), edge_index.shape[1])
        degree = self.hops or self._num_hops(model)
        points, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
        gates = _FixedGates()
        labels = target.reshape(-1) if blocks is None else target[blocks.nodes[blocks.index]]

        def score(scale: float, leaves: bool) -> tuple[Tensor, Tensor, Tensor]:
            z = (features * scale).detach().requires_grad_(leaves)
            mask = torch.nn.Parameter(
                torch.full((edges.shape[1],), scale, dtype=x.dtype), requires_grad=leaves
            )
            set_masks(model, mask, edges, apply_sigmoid=False)
            try:
                with gates, torch.set_grad_enabled(leaves):
                    answer = model(z, edges, **given)
                    if blocks is not None:
                        answer = answer[blocks.index]
                    value = answer.gather(1, labels[:, None])[:, 0]
            finally:
                clear_masks(model)
            gates.again()
            return value, z, mask

        logits = score(1.0, False)[0]
        baseline = score(0.0, False)[0]
        of_x, of_edges = torch.zeros_like(features), torch.zeros(edges.shape[1], dtype=x.dtype)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            value, z, mask = score(float(point), True)
            with torch.enable_grad():
                slopes = torch.autograd.grad(value.sum(), [z, mask], allow_unused=True)
            if slopes[1] is None:
                raise UsageError(
                    "MT448", "no message of the network passes an edge mask", fix="use MessagePassing layers"
                )
            of_edges += float(weight) * slopes[1]
            if slopes[0] is not None:
                of_x += float(weight) * slopes[0]
        return self._explanations(x, edge_index, features * of_x, of_edges, logits, baseline, blocks, group)

    def _explanations(
        self, x: Tensor, edge_index: Tensor, of_x: Tensor, of_edges: Tensor, logits: Tensor, baseline: Tensor,
        blocks: Blocks | None, group: Tensor,
    ) -> list[Any]:  # fmt: skip
        found = []
        for b in range(1 if blocks is None else blocks.count):
            rows = group == b
            node, edge = torch.zeros_like(x), torch.zeros(edge_index.shape[1], dtype=x.dtype)
            if blocks is None:
                node, edge, asked = of_x, of_edges, torch.ones(len(logits), dtype=torch.bool)
            else:
                rows = rows & (blocks.nodes >= 0)
                node[blocks.nodes[rows]] = of_x[rows]
                inside = blocks.edge_block == b
                edge[blocks.edges[inside]] = of_edges[inside]
                asked = blocks.index_block == b
            rest = (logits - baseline)[asked].sum()
            error = float((rest - node.sum() - edge.sum()).abs())
            kind = self.explainer_config.node_mask_type
            shown = (
                None if kind is None else node if kind == MaskType.attributes else node.sum(1, keepdim=True)
            )
            made = Explanation(node_mask=shown, edge_mask=edge)
            made.baseline, made.completeness_error = float(baseline[asked].sum()), error
            made.baselines, made.logits = baseline[asked], logits[asked]
            found.append(made)
        return found


__all__ = ["GOAt"]
