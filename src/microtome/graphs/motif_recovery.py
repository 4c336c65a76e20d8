"""Do explanations find the edges that were planted?

For each question (a graph, or a node) the area under the ROC curve of its edge scores against planted edges: the chance
that a planted edge is scored above another one, ties counting half (Ying et al. 2019 and Luo et al. 2020 pool the edges
of all graphs; scores of two graphs have no common scale, so here each question is judged alone and then averaged).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.graphs.blocks import computational_blocks
from microtome.statistics import student


@dataclass(frozen=True, eq=False)
class MotifRecovery:
    """How well planted edges were found.

    Attributes:
        auc: [q] of each question that has planted edges and others.
        asked: [q] int64, which questions those are.
        mean, low, high: of ``auc``, with Student's interval over questions.
        scores: [edges] each question's scores, one after another, as they were ranked.
    """

    auc: Tensor
    asked: Tensor
    mean: float
    low: float
    high: float
    scores: tuple[Tensor, ...]


def grouped_auc(scores: Tensor, truth: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(AUC [q], group [q]) of every group that has edges of both kinds; ties count half.

    Args:
        scores, truth: [m]; truth > 0 is planted.
        group: [m] int64.
    """
    keys = torch.stack([group.double(), scores.double()])
    _, place, count = keys.unique(
        dim=1, return_inverse=True, return_counts=True
    )  # sorted by group, then score
    rank = (count.cumsum(0) - (count - 1) / 2).double()[place]
    groups = int(group.max()) + 1 if len(group) else 0
    zero, planted = torch.zeros(groups, dtype=torch.double), (truth > 0).double()
    size = zero.index_add(0, group, torch.ones_like(planted))
    found = zero.index_add(0, group, planted)
    before = size.cumsum(0) - size
    total = zero.index_add(0, group, planted * (rank - before[group]))
    both = ((found > 0) & (found < size)).nonzero()[:, 0]
    p, q = found[both], (size - found)[both]
    return (total[both] - p * (p + 1) / 2) / (p * q), both


def pair_sums(scores: Tensor, edge_index: Tensor) -> Tensor:
    """[m] for each edge the sum over both directions of its pair of nodes."""
    low, high = edge_index.amin(0), edge_index.amax(0)
    _, pair = (low * (int(high.max()) + 1 if len(high) else 1) + high).unique(return_inverse=True)
    total = torch.zeros(int(pair.max()) + 1 if len(pair) else 0, dtype=scores.dtype)
    return total.index_add_(0, pair, scores)[pair]


def recovery(scores: Sequence[Tensor], truths: Sequence[Tensor]) -> MotifRecovery:
    """Of scores and planted edges ([m] each) of one question after another.

    Raises:
        UsageError: MT500 where no question has planted edges beside others, or lengths or numbers do not fit.
    """
    if len(scores) != len(truths) or any(len(a) != len(b) for a, b in zip(scores, truths, strict=False)):
        raise UsageError("MT500", "every question needs as many scores as it has edges that are judged")
    group = torch.arange(len(scores)).repeat_interleave(torch.tensor([len(s) for s in scores]))
    empty = [torch.zeros(0)]
    flat, truth = (torch.cat([v.detach() for v in values] or empty) for values in (scores, truths))
    if not bool(torch.isfinite(flat).all()):
        raise UsageError("MT500", "some edges have no finite score")
    auc, asked = grouped_auc(flat, truth, group)
    if not len(auc):
        raise UsageError(
            "MT500", "no question has planted edges beside others", fix="give edge_truth of 0 and 1"
        )
    mean, low, high = student(auc.numpy())
    return MotifRecovery(auc, asked, mean, low, high, tuple(scores))


def graph_recovery(
    explainer: Any, graphs: Sequence[Any], *, undirected: bool = True, together: bool = False
) -> MotifRecovery:
    """Of an ``Explainer`` of a graph network and graphs that carry ``edge_truth`` [edges].

    Args:
        explainer: PyTorch Geometric's, with any algorithm that gives an edge mask; the model takes ``batch``.
        graphs: ``Data`` each.
        undirected: both directions of an edge are scored by their sum.
        together: explain all in one call; right for algorithms that treat graphs of a batch apart (GOAt, gradients,
            occlusion), not for those that fit a mask to the mean loss (GNNExplainer).

    Raises:
        UsageError: MT500 as :func:`recovery`.
    """
    from torch_geometric.data import Batch

    scores: list[Tensor] = []
    for some in [list(graphs)] if together else [[g] for g in graphs]:
        batch = Batch.from_data_list(some)
        mask = explainer(batch.x, batch.edge_index, batch=batch.batch).get("edge_mask")
        scores += [] if mask is None else mask.split([g.num_edges for g in some])
    if undirected:
        scores = [pair_sums(s, g.edge_index) for s, g in zip(scores, graphs, strict=True)]
    return recovery(scores, [g.edge_truth for g in graphs])


def node_recovery(
    explanations: Sequence[Any], data: Any, nodes: Sequence[int], *, hops: int, undirected: bool = True
) -> MotifRecovery:
    """Of explanations of single nodes: their own motif's edges against the others they could have been told by.

    Args:
        explanations: with ``edge_mask`` [edges], one a node.
        data: a graph with ``edge_truth`` [edges] and ``motif`` [nodes], the motif a node belongs to or -1.
        nodes: which were explained.
        hops: convolutions of the network; edges beyond are not judged.
        undirected: both directions of an edge are scored by their sum.
    """
    # Of so many hops less one a block has just the edges that messages pass on their way to its node.
    sets = [torch.tensor([int(v)]) for v in nodes]
    blocks = computational_blocks(data.edge_index, data.num_nodes, sets, hops - 1)
    source, target = data.edge_index
    scores, truths = [], []
    for b, (node, found) in enumerate(zip(nodes, explanations, strict=True)):
        edges = blocks.edges[blocks.edge_block == b]
        mask = pair_sums(found.edge_mask, data.edge_index) if undirected else found.edge_mask
        own = (data.edge_truth > 0) & (data.motif[source] == data.motif[node]) & (data.motif[target] >= 0)
        scores.append(mask[edges])
        truths.append(own[edges])
    return recovery(scores, truths)


__all__ = ["MotifRecovery", "graph_recovery", "grouped_auc", "node_recovery", "pair_sums", "recovery"]
