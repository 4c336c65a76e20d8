"""Occlusion for graphs: how far the target logit falls when an edge carries no message.

Both directions of an edge go together. Messages are silenced, degrees stay as they are: what a convolution normalises
by does not change, so the effect is that of the message alone. Copies of the graph that each lack one edge are answered
together; of a batch of graphs every copy lacks one edge in each of them, for graphs do not reach one another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.graphs.blocks import Blocks, computational_blocks

geometric()
from torch_geometric.explain import ExplainerAlgorithm, Explanation  # noqa: E402 - only once it is known to be there
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks  # noqa: E402
from torch_geometric.explain.config import ExplanationType, MaskType, ModelMode  # noqa: E402


class EdgeOcclusion(ExplainerAlgorithm):
    """Loss of the target logit by each edge's absence, in PyTorch Geometric's interface; signed.

    Args:
        copies: of the graph that are answered at once.
        hops: convolutions of the network; by default the number of its message-passing modules.
    """

    def __init__(self, *, copies: int = 64, hops: int | None = None) -> None:
        super().__init__()
        self.copies, self.hops = copies, hops

    def supports(self) -> bool:
        """Explanations of a model's classification, with an edge mask alone."""
        config = self.explainer_config
        return (
            config.explanation_type == ExplanationType.model
            and config.edge_mask_type == MaskType.object
            and config.node_mask_type is None
            and self.model_config.mode == ModelMode.multiclass_classification
        )

    @torch.no_grad()
    def forward(
        self, model: Any, x: Tensor, edge_index: Tensor, *, target: Tensor, index: Any = None, **kwargs: Any
    ) -> Any:
        """A mask [edges]; edges that the answer does not depend on have 0."""
        if index is None:
            graph = kwargs.get("batch")
            graph = torch.zeros(len(x), dtype=torch.long) if graph is None else graph
            return Explanation(edge_mask=self._losses(model, x, edge_index, target, graph, kwargs))
        asked = torch.as_tensor(index).reshape(-1)
        blocks = computational_blocks(edge_index, len(x), [asked], self.hops or self._num_hops(model))
        given = blocks.arguments(kwargs, len(x), edge_index.shape[1])
        graph = torch.zeros(len(blocks.nodes), dtype=torch.long)
        found = torch.zeros(edge_index.shape[1], dtype=x.dtype)
        labels = target[asked]
        found[blocks.edges] = self._losses(
            model, blocks.rows(x), blocks.edge_index, labels, graph, given, blocks
        )
        return Explanation(edge_mask=found)

    def _losses(
        self, model: Any, x: Tensor, edges: Tensor, labels: Tensor, graph: Tensor, kwargs: dict[str, Any],
        blocks: Blocks | None = None,
    ) -> Tensor:  # fmt: skip
        n, m = len(x), edges.shape[1]
        low, high = edges.amin(0), edges.amax(0)
        pairs, pair = (low * n + high).unique(return_inverse=True)
        own = graph[pairs // n]
        order = torch.argsort(own, stable=True)
        counts = torch.bincount(own, minlength=int(graph.max()) + 1)
        place = torch.empty_like(order)  # of a pair among those of its graph
        place[order] = torch.arange(len(pairs)) - (counts.cumsum(0) - counts)[own[order]]
        turns = int(counts.max()) if len(pairs) else 0
        kept = self._scores(model, x, edges, labels, torch.ones(1, m, dtype=x.dtype), kwargs, blocks)[0]
        losses = torch.zeros(turns, len(kept), dtype=x.dtype)
        for turn in torch.arange(turns).split(self.copies):
            masks = (place[pair][None] != turn[:, None]).to(x.dtype)
            losses[turn] = kept - self._scores(model, x, edges, labels, masks, kwargs, blocks)
        each = losses.shape[1] == len(
            counts
        )  # one answer a graph, else the sum of a graph's answers is explained
        of_pair = losses[place, own] if each else losses.sum(1)[place]
        return of_pair[pair] / torch.bincount(pair)[pair]  # shared out among the directions

    def _scores(
        self, model: Any, x: Tensor, edges: Tensor, labels: Tensor, masks: Tensor, kwargs: dict[str, Any],
        blocks: Blocks | None,
    ) -> Tensor:  # fmt: skip
        """[copies, answers] target logits of copies of the graph, each with its own [edges] weights of messages."""
        c, n, m = len(masks), len(x), edges.shape[1]
        shift = torch.arange(c)
        given = {}
        for key, value in kwargs.items():
            if key == "batch" and isinstance(value, Tensor):
                given[key] = (value + shift[:, None] * (int(value.max()) + 1)).flatten()
            elif isinstance(value, Tensor) and value.dim() and len(value) in (n, m):
                given[key] = value.repeat(c, *[1] * (value.dim() - 1))
            else:
                given[key] = value
        many = (edges[:, None] + n * shift[:, None]).flatten(1)
        set_masks(model, torch.nn.Parameter(masks.flatten(), requires_grad=False), many, apply_sigmoid=False)
        try:
            answer = model(x.repeat(c, 1), many, **given)
        finally:
            clear_masks(model)
        rows = n if blocks is not None else len(labels)
        answer = answer.reshape(c, rows, -1)
        answer = answer if blocks is None else answer[:, blocks.index]
        return answer.gather(2, labels.reshape(1, -1, 1).expand(c, -1, 1))[..., 0]


__all__ = ["EdgeOcclusion"]
