"""Signals of graphs: the structure, what its nodes hold in a layer, how far they reach, and changed edges.

``structure`` is the batch's :class:`~microtome.structure.Structure`. Where examples are graphs a layer's rows are
nodes, not examples: ``node_activation(layer)`` gives them all. Changes of edges and features are
:class:`~microtome.signals.expression.BatchChange` and go into ``.under(...)``; what they draw depends on node ids
alone, so that it is the same however the data is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microtome.batches import Batch
from microtome.errors import Refusal
from microtome.signals.expression import BatchChange, Signal, derive, source
from microtome.signals.noise import row_counters, row_uniform
from microtome.structure import Structure

structure = source("structure", named=True)
"""The batch's graph; the examples' nodes or graphs in it are ``structure.examples``."""


def _graph_inputs(structure: Structure) -> Tensor:
    if structure.x is None or not structure.x.is_floating_point():
        raise Refusal("nodes have no real-valued features")
    return structure.x


graph_inputs = derive(_graph_inputs, structure, name="graph_inputs")
"""[nodes, d] the features of every node of the batch."""


def node_activation(layer: str) -> Signal:
    """[nodes, ...] output of one call for every node of the batch, whether they are examples or not."""
    return source("node_activation", layer)


def sensitivity(layer: str, *, draws: int = 1, seed: int = 0) -> Signal:
    """[n, nodes] |d h_v / d x_u|_F^2 for the node v of each example and every node u of the batch.

    h_v is v's row of ``layer``. The squared Frobenius norm is estimated without bias as the mean of |J' s|^2 over
    ``draws`` random sign vectors s (Hutchinson 1989). An example that is a graph is represented by a node of its own,
    drawn by the example's id. Costs a forward and ``draws`` backwards a node (a graph batch: ``draws`` in all).
    """
    return Signal(kind="sensitivity", arguments=(layer, draws, seed), name="sensitivity")


def random_signs(size: int, seed: int, draw: int) -> Tensor:
    """[size] of -1 and 1."""
    return (row_uniform(torch.arange(size), seed + 7919, draw) < 0.5).double() * 2 - 1


def target_nodes(structure: Structure, rows: Tensor, seed: int) -> Tensor:
    """[n] the node that stands for each example: itself, or one drawn from its graph by the example's id."""
    if not structure.per_graph:
        return structure.examples
    sizes = torch.bincount(structure.graph, minlength=structure.graphs)
    first = sizes.cumsum(0) - sizes
    chosen = structure.examples
    place = (row_uniform(rows, seed + 104729) * sizes[chosen]).long()
    return first[chosen] + place


def _needed(batch: Batch) -> Structure:
    if batch.structure is None:
        raise Refusal("the data is no graph")
    return batch.structure


def _edge_keys(found: Structure) -> Tensor:
    """[edges] one key for both directions of an edge, from the ids of its ends."""
    ends = found.node_ids[found.edge_index]
    low, high = ends.amin(0), ends.amax(0)
    return low * 0x9E3779B1 + high


@dataclass(frozen=True)
class DropEdges(BatchChange):
    """Each undirected edge is left out with probability ``share``; 1 leaves none."""

    share: float
    seed: int = 0
    cost = 0.1

    def change(self, batch: Batch) -> Batch:
        """Both directions of an edge share their fate."""
        found = _needed(batch)
        kept = (row_uniform(_edge_keys(found), self.seed + 11) >= self.share).nonzero()[:, 0]
        return batch.with_edges(found.edge_index[:, kept], kept)


@dataclass(frozen=True)
class AddEdges(BatchChange):
    """To each undirected edge, with probability ``share``, one between two random nodes of its graph is added.

    It takes the weight and attributes of the edge it comes with.
    """

    share: float
    seed: int = 0
    cost = 0.1

    def change(self, batch: Batch) -> Batch:
        """The same ends for both directions, so that what was undirected stays so."""
        found = _needed(batch)
        keys = _edge_keys(found)
        chosen = (row_uniform(keys, self.seed + 13) < self.share).nonzero()[:, 0]
        sizes = torch.bincount(found.graph, minlength=int(found.graph.max()) + 1 if found.nodes else 1)
        first = sizes.cumsum(0) - sizes
        own = found.graph[found.edge_index[0, chosen]]
        ends = [
            first[own] + (row_uniform(keys[chosen], self.seed + 13, draw) * sizes[own]).long()
            for draw in (1, 2)
        ]
        ids = found.node_ids[found.edge_index[:, chosen]]
        turned = ids[0] > ids[1]
        new = torch.stack([torch.where(turned, ends[1], ends[0]), torch.where(turned, ends[0], ends[1])])
        every = torch.arange(found.edge_index.shape[1], device=keys.device)
        return batch.with_edges(torch.cat([found.edge_index, new], 1), torch.cat([every, chosen]))


@dataclass(frozen=True)
class FlipFeatures(BatchChange):
    """A share of the numbers in x is exchanged: 0 and 1 of binary features turn, others become another node's.

    Of binary features, as many ones are cleared as ``share`` says and as many zeros set, so that a node keeps about as
    many words as it had. Of others each number is taken, with probability ``share``, from the node that the row's
    shuffled partner is.
    """

    share: float
    seed: int = 0
    cost = 0.1

    def change(self, batch: Batch) -> Batch:
        """[nodes, d] features by the nodes' ids."""
        found = _needed(batch)
        x = batch.site()
        if x is None or x.dim() != 2 or len(x) != found.nodes:
            raise Refusal("nodes have no real-valued features that could be changed")
        draw = row_uniform(row_counters(found.node_ids, x.shape[1]), self.seed + 17)
        if bool(((x == 0) | (x == x.amax())).all()) and float(x.amax()) > 0:
            ones = x != 0
            rate = ones.double().sum(1, keepdim=True) / (~ones).double().sum(1, keepdim=True).clamp_min(1)
            turned = torch.where(ones, draw < self.share, draw < self.share * rate)
            return batch.with_site(torch.where(turned, x.amax() - x, x))
        other = x[random_partners(found, self.seed)]
        return batch.with_site(torch.where(draw < self.share, other, x))


@dataclass(frozen=True)
class ShuffleFeatures(BatchChange):
    """Every node is given the features of another node of its graph: what is left is the edges' alone."""

    seed: int = 0
    cost = 0.1

    def change(self, batch: Batch) -> Batch:
        """A permutation of the rows within each graph."""
        found = _needed(batch)
        x = batch.site()
        if x is None or len(x) != found.nodes:
            raise Refusal("nodes have no real-valued features that could be changed")
        return batch.with_site(x[random_partners(found, self.seed)])


def random_partners(found: Structure, seed: int = 0) -> Tensor:
    """[nodes] a permutation within each graph, drawn by node ids: each graph in the order of its nodes' draws."""
    draw = row_uniform(found.node_ids, seed + 19)
    shuffled = torch.argsort(found.graph.double() + draw)
    place = torch.empty_like(shuffled)
    place[torch.argsort(found.graph, stable=True)] = shuffled
    return place


def edges_into(found: Structure) -> tuple[Tensor, Tensor, Tensor]:
    """The edges that end in examples of a node task, loops left out: (source [m], example [m], edge [m]).

    ``example`` are positions among the slice's examples.
    """
    place = torch.full((found.nodes,), -1, device=found.edge_index.device)
    place[found.examples] = torch.arange(len(found.examples), device=place.device)
    source, target = found.edge_index
    kept = ((place[target] >= 0) & (source != target)).nonzero()[:, 0]
    return source[kept], place[target[kept]], kept


def whole(found: Structure) -> Structure:
    """The batch's structure with all its nodes (graphs) as examples."""
    count = found.graphs if found.per_graph else found.nodes
    return replace(found, examples=torch.arange(count, device=found.graph.device))


__all__ = [
    "AddEdges", "DropEdges", "FlipFeatures", "ShuffleFeatures", "edges_into", "graph_inputs", "node_activation",
    "random_partners", "random_signs",
    "sensitivity", "structure", "target_nodes", "whole",
]  # fmt: skip
