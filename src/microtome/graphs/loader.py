"""Neighbour sampling without a compiled sampler: numpy over CSR, behind the interface of PyTorch Geometric's loader.

``neighbor_loader(...)`` gives PyTorch Geometric's ``NeighborLoader`` where ``pyg-lib`` or ``torch-sparse`` is there,
and :class:`NeighbourLoader` elsewhere. Batches are the same: seeds first, ``batch_size``, ``n_id``, ``e_id``,
``input_id``, edges from sampled neighbours to the nodes they were sampled for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from microtome.errors import UsageError


class CSR:
    """In-neighbours of every node: ``sources[start[v] : start[v + 1]]``, with the edges' own positions.

    Args:
        edge_index: [2, m], from row 0 to row 1.
        nodes: how many.
    """

    def __init__(self, edge_index: Tensor, nodes: int) -> None:
        source, target = edge_index.numpy()
        order = np.argsort(target, kind="stable")
        self.sources = source[order]
        self.edges = order
        self.start = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=nodes))])

    def sample(self, nodes: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Up to ``count`` different in-neighbours of each node, uniformly; all with a negative ``count``.

        What is drawn depends on the edge and ``seed`` alone: the same in every batch.

        Returns:
            Positions in ``nodes`` [s], sources [s] and edges [s], in the order of the nodes.
        """
        first, degree = self.start[nodes], self.start[nodes + 1] - self.start[nodes]
        owner = np.repeat(np.arange(len(nodes)), degree)
        place = (
            np.arange(len(owner)) - np.repeat(np.cumsum(degree) - degree, degree) + np.repeat(first, degree)
        )
        if count >= 0 and (degree > count).any():
            crowded = degree[owner] > count
            key = _draw(self.edges[place[crowded]], seed)
            order = np.lexsort((key, owner[crowded]))
            # Ranks of the draws within each crowded node; the lowest are taken.
            sizes = degree[degree > count]
            rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            kept = np.ones(len(owner), dtype=bool)
            inside = np.flatnonzero(crowded)
            kept[inside[order[rank >= count]]] = False
            owner, place = owner[kept], place[kept]
        return owner, self.sources[place], self.edges[place]


def _draw(edges: np.ndarray, seed: int) -> np.ndarray:
    """Uniform numbers for each edge, by splitmix64."""
    with np.errstate(over="ignore"):
        z = (edges.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = z + np.uint64(seed % (1 << 63)) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class NeighbourLoader(DataLoader):
    """Batches of sampled neighbourhoods of a graph, as PyTorch Geometric's ``NeighborLoader`` gives them.

    Args:
        data: ``Data`` with ``edge_index``; every tensor with a row a node or an edge is cut along.
        num_neighbors: how many in-neighbours to draw at each hop, -1 for all; one entry a hop.
        input_nodes: a mask or positions of the nodes to answer for; all by default.
        seed: of the draws.
        resample: draw anew in every epoch; by default as ``shuffle`` says, so that an unshuffled loader gives the same
            batches every time and can be examined.
        **kwargs: of ``torch.utils.data.DataLoader`` (``batch_size``, ``shuffle``, ``num_workers``, ...).

    Raises:
        UsageError: MT450 without an edge_index or without hops.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Sequence[int],
        input_nodes: Tensor | None = None,
        *,
        seed: int = 0,
        resample: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if getattr(data, "edge_index", None) is None or not len(num_neighbors):
            raise UsageError(
                "MT450", "sampling needs data with an edge_index and one number of neighbours a hop"
            )
        self.data, self.num_neighbors, self.seed = data, list(num_neighbors), seed
        self.resample = bool(kwargs.get("shuffle", False)) if resample is None else resample
        self.epoch = 0
        self.csr = CSR(data.edge_index, data.num_nodes)
        nodes = torch.arange(data.num_nodes) if input_nodes is None else torch.as_tensor(input_nodes)
        self.input_nodes = nodes.nonzero()[:, 0] if nodes.dtype == torch.bool else nodes.long()
        self._place = np.full(data.num_nodes, -1, dtype=np.int64)
        kwargs.pop("collate_fn", None)
        super().__init__(range(len(self.input_nodes)), collate_fn=self.collate, **kwargs)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.resample:
            self.epoch += 1
        return super().__iter__()

    def collate(self, positions: Sequence[int]) -> Any:
        """The sampled subgraph of some of ``input_nodes``."""
        chosen = torch.as_tensor(list(positions))
        seeds = self.input_nodes[chosen].numpy()
        place, found, total = self._place, [seeds], len(seeds)
        place[seeds] = np.arange(total)
        rows, columns, edges = [], [], []
        frontier, base = seeds, 0
        for hop, count in enumerate(self.num_neighbors):
            owner, source, edge = self.csr.sample(frontier, count, self.seed + 1_000_003 * self.epoch + hop)
            new = np.unique(source[place[source] < 0])
            place[new] = np.arange(total, total + len(new))
            rows.append(place[source])
            columns.append(owner + base)
            edges.append(edge)
            base, frontier = total, new
            total += len(new)
            found.append(new)
        nodes = np.concatenate(found)
        place[nodes] = -1
        return self._cut(
            nodes, np.stack([np.concatenate(rows), np.concatenate(columns)]), np.concatenate(edges), chosen
        )

    def _cut(self, nodes: np.ndarray, edge_index: np.ndarray, edges: np.ndarray, chosen: Tensor) -> Any:
        from torch_geometric.data import Data

        kept, along = torch.from_numpy(nodes), torch.from_numpy(edges)
        made = Data(edge_index=torch.from_numpy(edge_index), num_nodes=len(nodes))
        for key, value in self.data.to_dict().items():
            if key in ("edge_index", "num_nodes"):
                continue
            if isinstance(value, Tensor) and self.data.is_node_attr(key):
                made[key] = value[kept]
            elif isinstance(value, Tensor) and self.data.is_edge_attr(key):
                made[key] = value[along]
            else:
                made[key] = value
        made.n_id, made.e_id, made.input_id, made.batch_size = kept, along, chosen, len(chosen)
        return made


def neighbor_loader(
    data: Any, num_neighbors: Sequence[int], input_nodes: Tensor | None = None, **kwargs: Any
) -> Any:
    """PyTorch Geometric's ``NeighborLoader`` where its compiled sampler is installed, else :class:`NeighbourLoader`."""
    from torch_geometric import typing

    if typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE:
        from torch_geometric.loader import NeighborLoader

        return NeighborLoader(data, list(num_neighbors), input_nodes=input_nodes, **kwargs)
    return NeighbourLoader(data, num_neighbors, input_nodes, **kwargs)


__all__ = ["CSR", "NeighbourLoader", "neighbor_loader"]
