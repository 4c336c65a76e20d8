"""Graphs small enough to keep and draw: a node's surroundings, or a whole graph, as a row of whole numbers.

A row is [total, centred, N, N kinds, ends ...]: how many nodes there are to draw; 1 where the first drawn node is the
example; places for nodes; of each drawn node its kind (its label, or which feature of one-hot features it has; -1
unknown, -2 no such node); the places of both ends of each edge, every edge once, filled with -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.signals.expression import Signal, derive
from microtome.signals.graphs import structure
from microtome.structure import Structure
from microtome.subject import Subject

NODES, EDGES = 48, 96
"""Most of a graph that are kept; the first of it."""
NEAR, FURTHER = 12, 3
"""Neighbours of a node, and neighbours of each of these, that are kept, by the order of their ids."""
AROUND, BETWEEN = 24, 60
"""Most nodes of a node's surroundings, itself among them, and edges between them."""
HEAD = 3
CHUNK = 2048
NOBODY, UNKNOWN = -2, -1


def graph_picture(subject: Subject) -> Signal:
    """[n, width] int32: each example's graph, or its node's surroundings within two steps."""
    return derive(_picture, structure, offset=subject.task.label_offset, name="graph_picture")


def _picture(structure: Structure, *, offset: int) -> Tensor:
    kinds = _kinds(structure, offset)
    low, high = _simple(structure)
    return (_whole if structure.per_graph else _around)(structure, kinds, low, high).int()


def _kinds(structure: Structure, offset: int) -> Tensor:
    """[nodes] the label of each node, or the one feature it has."""
    unknown = torch.full((structure.nodes,), UNKNOWN, device=structure.graph.device)
    if structure.labels is not None and len(structure.labels) == structure.nodes:
        return torch.where(structure.labels < 0, unknown, (structure.labels - offset).clamp_min(UNKNOWN))
    if structure.x is None or not 1 < structure.x.shape[1] <= 128:
        return unknown
    one = ((structure.x == 0) | (structure.x == 1)).all(1) & (structure.x.sum(1) == 1)
    return torch.where(one, structure.x.argmax(1), unknown)


def _simple(structure: Structure) -> tuple[Tensor, Tensor]:
    """Ends of every edge once, without direction and loops, in the order of the nodes."""
    ends = structure.edge_index
    low, high = ends.amin(0), ends.amax(0)
    keys = (low * structure.nodes + high)[low != high].unique()
    return keys // max(structure.nodes, 1), keys % max(structure.nodes, 1)


def _ranks(groups: Tensor, count: int) -> Tensor:
    """Place of each entry within its group; equal groups stand together."""
    sizes = torch.bincount(groups, minlength=count)
    return torch.arange(len(groups), device=groups.device) - (sizes.cumsum(0) - sizes)[groups]


def _blank(rows: int, centred: int, nodes: int, edges: int, device: torch.device) -> Tensor:
    made = torch.full((rows, HEAD + nodes + 2 * edges), UNKNOWN, device=device)
    made[:, 1], made[:, 2], made[:, HEAD : HEAD + nodes] = centred, nodes, NOBODY
    return made


def _whole(structure: Structure, kinds: Tensor, low: Tensor, high: Tensor) -> Tensor:
    graph, count = structure.graph, structure.graphs
    order = torch.argsort(graph, stable=True)
    place = torch.empty_like(order)
    place[order] = _ranks(graph[order], count)
    made = _blank(count, 0, NODES, EDGES, graph.device)
    made[:, 0] = torch.bincount(graph, minlength=count)
    kept = place < NODES
    made[graph[kept], HEAD + place[kept]] = kinds[kept]
    drawn = kept[low] & kept[high] & (graph[low] == graph[high])
    low, high = low[drawn], high[drawn]
    order = torch.argsort(graph[low], stable=True)
    low, high = low[order], high[order]
    rank = _ranks(graph[low], count)
    few = rank < EDGES
    at = HEAD + NODES + 2 * rank[few]
    made[graph[low[few]], at], made[graph[low[few]], at + 1] = place[low[few]], place[high[few]]
    return made[structure.examples]


def _around(structure: Structure, kinds: Tensor, low: Tensor, high: Tensor) -> Tensor:
    count, device = structure.nodes, structure.graph.device
    source, target = torch.cat([low, high]), torch.cat([high, low])
    order = torch.argsort(
        structure.node_ids[target], stable=True
    )  # the same neighbours however the data is cut
    order = order[torch.argsort(source[order], stable=True)]
    source, target = source[order], target[order]
    degree = torch.bincount(source, minlength=count)
    rank = _ranks(source, count)
    near = torch.full((count + 1, NEAR), -1, device=device)  # the last row is nobody's
    few = rank < NEAR
    near[source[few], rank[few]] = target[few]
    keys = low * count + high
    return torch.cat(
        [_chunk(part, kinds, near, degree, keys, count) for part in structure.examples.split(CHUNK)]
        or [_blank(0, 1, AROUND, BETWEEN, device)]
    )


def _chunk(centre: Tensor, kinds: Tensor, near: Tensor, degree: Tensor, keys: Tensor, count: int) -> Tensor:
    n, device = len(centre), centre.device
    first = near[centre]
    second = near[first][:, :, :FURTHER].flatten(1)
    found = torch.cat([centre[:, None], first, second], 1)
    # Of a node that is met twice the first place counts; nobody counts nowhere.
    order = torch.argsort(found, dim=1, stable=True)
    ordered = found.gather(1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    again = torch.zeros_like(again).scatter(1, order, again) | (found < 0)
    place = (~again).cumsum(1) - 1
    kept = ~again & (place < AROUND)
    nodes = torch.full((n, AROUND), -1, device=device)
    row = torch.arange(n, device=device)[:, None].expand_as(found)
    nodes[row[kept], place[kept]] = found[kept]
    i, j = torch.triu_indices(AROUND, AROUND, 1, device=device)
    a, b = nodes[:, i], nodes[:, j]
    sought = torch.minimum(a, b) * count + torch.maximum(a, b)
    at = torch.searchsorted(keys, sought).clamp_max(max(len(keys) - 1, 0))
    linked = (
        (a >= 0) & (b >= 0) & (keys[at] == sought) if len(keys) else torch.zeros_like(a, dtype=torch.bool)
    )
    rank = linked.cumsum(1) - 1
    linked &= rank < BETWEEN
    made = _blank(n, 1, AROUND, BETWEEN, device)
    # Nodes that are not drawn are not counted one by one: neighbours left out of the first circle are.
    made[:, 0] = (~again).sum(1) + (degree[centre] - NEAR).clamp_min(0)
    made[:, HEAD : HEAD + AROUND] = torch.where(nodes >= 0, kinds[nodes.clamp_min(0)], NOBODY)
    rows, pairs = linked.nonzero(as_tuple=True)
    at = HEAD + AROUND + 2 * rank[rows, pairs]
    made[rows, at], made[rows, at + 1] = i[pairs], j[pairs]
    return made
