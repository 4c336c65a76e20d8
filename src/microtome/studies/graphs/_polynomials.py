"""What the study of polynomials measures: ranks, exact differences, and what a network explains with features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.utils import to_dense_adj

from microtome.graphs.equivariant_polynomials import evaluate, exact_rank
from microtome.graphs.multigraphs import Multigraph, basis, connected_multigraphs, count_basis, elimination
from microtome.learn.graph_training import fit_graphs, graph_accuracy
from microtome.studies.graphs import _networks as n


def rank(nodes: int, degree: int, roots: int, loops: bool, seed: int) -> tuple[int, int, int]:
    """Named, counted by Burnside's lemma, and independent at random integer matrices (modulo a large prime)."""
    named = basis(nodes, degree, roots=roots, loops=loops)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 4, (len(named) + 20, nodes, nodes), generator=draw).double()
    x = x.triu(0 if loops else 1)
    x = x + x.triu(1).mT
    pieces = sorted({p for some in named for p in some})
    values = {p: evaluate([p], x)[..., 0].reshape(len(x), -1)[:, 0].long() for p in pieces}  # at node 0
    columns = [torch.stack([values[p] for p in some]).prod(0) for some in named]
    return (
        len(named),
        count_basis(nodes, degree, roots=roots, loops=loops),
        exact_rank(torch.stack(columns, 1)),
    )


def parted(pairs: Sequence[tuple[Any, Any]], polynomials: Sequence[Multigraph]) -> Tensor:
    """[pairs, polynomials] whether the exact values differ."""
    graphs = list({id(g): g for pair in pairs for g in pair}.values())
    place = {id(g): i for i, g in enumerate(graphs)}
    batch = Batch.from_data_list(graphs)
    values = evaluate(polynomials, to_dense_adj(batch.edge_index, batch.batch).double()).round().long()
    first, second = torch.tensor([[place[id(a)], place[id(b)]] for a, b in pairs]).T
    return values[first] != values[second]


def targets(graphs: list[Any], most: int, seed: int) -> dict[int, Tensor]:
    """[graphs] of each degree: a random mixture of the polynomials of treewidth 2 and more, each standardised."""
    batch = Batch.from_data_list(graphs)
    dense = to_dense_adj(batch.edge_index, batch.batch).double()
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for degree, some in enumerate(connected_multigraphs(most, parallel=False)):
        cyclic = [p for p in some if elimination(p)[0] > 1]
        if cyclic:
            values = evaluate(cyclic, dense)
            values = (values - values.mean(0)) / values.std(0).clamp_min(1e-9)
            mixed = values @ torch.randn(len(cyclic), generator=draw).double()
            found[degree] = ((mixed - mixed.mean()) / mixed.std()).float()
    return found


def explained(graphs: list[Any], target: Tensor, train: int, epochs: int, seed: int) -> float:
    """R^2 of a GIN on graphs it has not seen."""
    given = [g.clone() for g in graphs]
    for g, y in zip(given, target, strict=True):
        g.y = y[None]
    model = n.seeded(partial(n.GraphNetwork, n.isomorphism, given[0].x.shape[1], 24, 1, 2), seed)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(network(batch.x, batch.edge_index, batch.batch)[:, 0], batch.y)

    fit_graphs(model, given[:train], epochs=epochs, seed=seed, loss=loss)
    test = Batch.from_data_list(given[train:])
    with torch.no_grad():
        return 1 - float(loss(model, test)) / float(test.y.var(unbiased=False))


def triangle_accuracy(graphs: list[Any], train: int, epochs: int, seed: int) -> float:
    model = n.seeded(partial(n.GraphNetwork, n.isomorphism, graphs[0].x.shape[1], 24, 2, 2), seed)
    return graph_accuracy(fit_graphs(model, graphs[:train], epochs=epochs, seed=seed), graphs[train:])


__all__ = ["explained", "parted", "rank", "targets", "triangle_accuracy"]
