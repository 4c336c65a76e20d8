"""What is known of a batch's graph beside the network's inputs: its edges, whose nodes they are, its labels."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

GRAPH_NODES = 1 << 24
"""Node ids of graph data sets are ``graph id * GRAPH_NODES + place in the graph``."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The graph of one batch (several graphs side by side where examples are graphs).

    Attributes:
        edge_index: [2, edges] int64, from row 0 to row 1, positions in this batch.
        graph: [nodes] int64, which graph of the batch a node belongs to.
        graphs: how many.
        node_ids: [nodes] int64, the same for a node however the data is cut.
        labels: [nodes] int64 or None, where labels belong to nodes.
        train: [nodes] bool or None, nodes the network was trained on, where the data says it.
        x: [nodes, d] or None, the real-valued features.
        names: the model's argument names, where it is called with tensors, else ().
        per_graph: whether an example is a graph.
        total: examples of the whole batch.
        sampled: whether neighbours were sampled, so that only some edges are there.
        examples: [n] int64, nodes (or graphs) that the slice's examples are.
    """

    edge_index: Tensor
    graph: Tensor
    graphs: int
    node_ids: Tensor
    labels: Tensor | None
    train: Tensor | None
    x: Tensor | None
    names: tuple[str, ...]
    per_graph: bool
    total: int
    sampled: bool
    examples: Tensor

    @property
    def nodes(self) -> int:
        """Nodes of the batch."""
        return len(self.graph)

    @property
    def share(self) -> float:
        """The slice's part of the batch: what belongs to the whole batch is shared out among its examples."""
        return len(self.examples) / max(self.total, 1)

    def to(self, device: torch.device) -> Structure:
        """The same on another device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def read_structure(
    raw: Any, *, names: tuple[str, ...], target: str | None, per_graph: bool, pick: Tensor | None, start: int
) -> Structure | None:
    """The structure of PyTorch Geometric data; None without an ``edge_index`` of the ordinary form.

    Args:
        raw: ``Data`` or ``Batch``.
        names: the model's argument names where it is called with tensors.
        target: the attribute that holds labels.
        per_graph: whether an example is a graph.
        pick: [n] nodes that are examples, None for all.
        start: id of the first example.
    """
    edges = getattr(raw, "edge_index", None)
    if not isinstance(edges, Tensor) or edges.dim() != 2 or edges.shape[0] != 2 or edges.is_floating_point():
        return None
    nodes = int(raw.num_nodes)
    graph = getattr(raw, "batch", None)
    if not isinstance(graph, Tensor) or len(graph) != nodes:
        graph = torch.zeros(nodes, dtype=torch.long)
    graphs = int(getattr(raw, "num_graphs", 1) or 1) if per_graph else int(graph.max()) + 1 if nodes else 1
    known = getattr(raw, "n_id", None)
    if isinstance(known, Tensor) and len(known) == nodes:
        ids = known.long()
    elif per_graph:
        counts = torch.bincount(graph, minlength=graphs)
        place = torch.arange(nodes) - (counts.cumsum(0) - counts)[graph]
        ids = (start + graph) * GRAPH_NODES + place
    else:
        # Graphs one after another: the first example's id tells them apart.
        ids = torch.arange(nodes) + start * GRAPH_NODES
    labels = getattr(raw, target) if target and not per_graph else None
    whole_numbers = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    x = getattr(raw, "x", None)
    train = getattr(raw, "train_mask", None)
    count = graphs if per_graph else nodes
    examples = torch.arange(count) if pick is None else pick
    return Structure(
        edge_index=edges,
        graph=graph.long(),
        graphs=graphs,
        node_ids=ids,
        labels=labels.long() if whole_numbers and isinstance(labels, Tensor) else None,
        train=train if isinstance(train, Tensor) and train.dim() == 1 and len(train) == nodes else None,
        x=x if isinstance(x, Tensor) and x.dim() == 2 else None,
        names=names,
        per_graph=per_graph,
        total=len(examples),
        sampled=isinstance(known, Tensor),
        examples=examples,
    )


__all__ = ["GRAPH_NODES", "Structure", "read_structure"]
