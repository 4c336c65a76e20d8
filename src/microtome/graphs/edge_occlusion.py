"""Occlusion for graphs: how far the target logit falls when an edge carries no message.

Both directions of an edge go together. Messages are silenced, degrees stay as they are: what a convolution normalises
by does not change, so the effect is that of the message alone. Copies of the graph that each lack one edge are answered
together; of a batch of graphs every copy lacks one edge in each of them, for graphs do not reach one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.graphs.blocks import computational_blocks

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
            found = occlusion_losses(model, x, edge_index, target, graph, kwargs, self.copies)
            return Explanation(edge_mask=found)
        asked = torch.as_tensor(index).reshape(-1)
        blocks = computational_blocks(edge_index, len(x), [asked], self.hops or self._num_hops(model))
        given = blocks.arguments(kwargs, len(x), edge_index.shape[1])
        one = AnswersAt(model, blocks.index, len(blocks.nodes))
        found = torch.zeros(edge_index.shape[1], dtype=x.dtype)
        found[blocks.edges] = occlusion_losses(
            one, blocks.rows(x), blocks.edge_index, target[asked], blocks.node_block, given, self.copies
        )
        return Explanation(edge_mask=found)


class AnswersAt(torch.nn.Module):
    """A node network asked at some rows alone, in each of the copies of the graph it is given.

    Args:
        model: [nodes, d] -> [nodes, k].
        index: [t] int64 rows of one copy.
        nodes: of one copy.
    """

    def __init__(self, model: Any, index: Tensor, nodes: int) -> None:
        super().__init__()
        self.model, self.index, self.nodes = model, index, nodes

    def forward(self, x: Tensor, edge_index: Tensor, **kwargs: Any) -> Tensor:
        """[copies * nodes, d] -> [copies * t, k]."""
        shift = torch.arange(len(x) // self.nodes)[:, None] * self.nodes
        answers: Tensor = self.model(x, edge_index, **kwargs)[(self.index + shift).flatten()]
        return answers


def silenced_answers(
    model: Any, x: Tensor, edges: Tensor, masks: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """[copies, answers, k] of copies of the graph, each with its own weights of messages, masks [copies, edges]."""
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
    return answer.reshape(c, -1, answer.shape[-1])


def occlusion_losses(
    model: Any, x: Tensor, edges: Tensor, labels: Tensor, graph: Tensor, kwargs: Mapping[str, Any], copies: int = 64
) -> Tensor:  # fmt: skip
    """[edges] loss of the label's logit in the edge's graph (of all answers' sum where a graph has several)."""
    n, m = len(x), edges.shape[1]
    pairs, pair = (edges.amin(0) * n + edges.amax(0)).unique(return_inverse=True)
    own = graph[pairs // n]
    order = torch.argsort(own, stable=True)
    counts = torch.bincount(own, minlength=int(graph.max()) + 1)
    place = torch.empty_like(order)  # of a pair among those of its graph
    place[order] = torch.arange(len(pairs)) - (counts.cumsum(0) - counts)[own[order]]
    turns = int(counts.max()) if len(pairs) else 0

    def scores(masks: Tensor) -> Tensor:
        answers = silenced_answers(model, x, edges, masks, kwargs)
        return answers.gather(2, labels.reshape(1, -1, 1).expand(len(masks), -1, 1))[..., 0]

    kept = scores(torch.ones(1, m, dtype=x.dtype))[0]
    losses = torch.zeros(turns, len(kept), dtype=x.dtype)
    for turn in torch.arange(turns).split(copies):
        losses[turn] = kept - scores((place[pair][None] != turn[:, None]).to(x.dtype))
    of_pair = losses[place, own] if len(kept) == len(counts) else losses.sum(1)[place]
    return of_pair[pair] / torch.bincount(pair)[pair]  # shared out among the directions


__all__ = ["AnswersAt", "EdgeOcclusion", "occlusion_losses", "silenced_answers"]
