"""Gradient times input for graphs: the slope of the target logit by each edge's weight, and by each feature times it.

At the graph as it is every edge has weight 1, so its slope is its share to first order (Pope et al. 2019). A product of
k edges and a feature is counted in full for each of them: by Euler's theorem shares sum to the number of factors times
the product, not to the logit; :class:`~microtome.graphs.goat.GOAt` divides by that number, term by term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microtome.data.graphs import geometric

geometric()
from torch_geometric.explain import ExplainerAlgorithm, Explanation  # noqa: E402 - only once it is known to be there
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks  # noqa: E402
from torch_geometric.explain.config import ExplanationType, MaskType, ModelMode  # noqa: E402


class EdgeGradient(ExplainerAlgorithm):
    """Gradient times input of edges and features, in PyTorch Geometric's interface; signed, without a parameter."""

    def supports(self) -> bool:
        """Explanations of a model's classification, with an edge mask and (or not) a mask of each feature."""
        config = self.explainer_config
        return (
            config.explanation_type == ExplanationType.model
            and config.edge_mask_type == MaskType.object
            and config.node_mask_type in (MaskType.attributes, None)
            and self.model_config.mode == ModelMode.multiclass_classification
        )

    def forward(
        self, model: Any, x: Tensor, edge_index: Tensor, *, target: Tensor, index: Any = None, **kwargs: Any
    ) -> Any:
        """Masks [nodes, d] (where asked for) and [edges] of the sum of the target logits at ``index``."""
        features = x.detach().clone().requires_grad_()
        mask = torch.nn.Parameter(torch.ones(edge_index.shape[1], dtype=x.dtype))
        set_masks(model, mask, edge_index, apply_sigmoid=False)
        try:
            with torch.enable_grad():
                answer, labels = model(features, edge_index, **kwargs), target
                if index is not None:
                    at = torch.as_tensor(index).reshape(-1)
                    answer, labels = answer[at], target[at]
                score = answer.gather(1, labels.reshape(-1, 1)).sum()
                slopes = torch.autograd.grad(score, [features, mask], allow_unused=True)
        finally:
            clear_masks(model)
        of_x, of_edges = (
            torch.zeros_like(v) if g is None else g for v, g in zip((features, mask), slopes, strict=True)
        )
        shown = None if self.explainer_config.node_mask_type is None else (of_x * x).detach()
        return Explanation(node_mask=shown, edge_mask=of_edges.detach())


__all__ = ["EdgeGradient"]
