"""A signal of graphs: by which edges and features each example is answered as it is, and what it loses without them.

Explanations are made and judged on what an example depends on alone (its graph, or the subgraph its node can hear), so
they are the same however the data is cut. The network itself is not touched: a copy is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from microtome.batches import Batch, is_graph
from microtome.errors import Refusal
from microtome.signals.expression import Signal
from microtome.signals.noise import row_uniform
from microtome.signals.reinitialise import Reinitialised
from microtome.structure import GRAPH_NODES, Structure

if TYPE_CHECKING:
    from microtome.subject import Subject

METHODS = ("GOAt", "gradient x input", "occlusion")
SHARES = (0.1, 0.25, 0.5)
"""Of an example's edges, the most important ones, that are silenced and that are left alone."""
SHOWN = 48
"""Edges an example that are told by name."""
COPIES = 16
"""Of the examples' graphs that are answered at once, unless they have more than ``ROWS`` rows together."""
ROWS, MOST = 1 << 18, 300_000_000
"""Nodes answered at once, and in all while edges are silenced one by one."""
_HEAD, _JUDGED = 4, 2 * len(METHODS) + 1


def edge_explanations(seed: int = 0) -> Signal:
    """[n, ...] packed; read by :func:`unpacked`. The class in question is the one that is answered.

    Both directions of an edge are one. For each of ``METHODS``, of the network and of an untrained one, and for a
    random order: the probability without the most important edges, and with these alone. Messages are silenced, degrees
    stay as they are.
    """
    return Signal(kind="edge_explanations", arguments=(seed,), name="edge_explanations")


@dataclass(frozen=True, eq=False)
class EdgeExplanations:
    """Of n examples.

    Attributes:
        label, probability, pairs: [n] the class, its probability, how many edges the answer can depend on.
        explained: [n] the part of the logit that GOAt's shares add up to, 1 where the network is a sum of products.
        judged: [n, 2 methods + 1, shares, 2] probability without and with the first edges alone; the network's methods,
            an untrained network's, and a random order.
        edges: [n, methods, SHOWN, 3] ends and score of the first edges; ends are -1 beyond the last.
        features: [n, 2, d] GOAt's share and gradient x input of each feature, summed over nodes.
    """

    label: Tensor
    probability: Tensor
    pairs: Tensor
    explained: Tensor
    judged: Tensor
    edges: Tensor
    features: Tensor


def unpacked(found: Tensor) -> EdgeExplanations:
    """What ``edge_explanations`` holds."""
    sizes = [_HEAD, _JUDGED * len(SHARES) * 2, len(METHODS) * SHOWN * 3]
    head, judged, edges, features = found.split([*sizes, found.shape[1] - sum(sizes)], 1)
    n = len(found)
    return EdgeExplanations(
        head[:, 0], head[:, 1], head[:, 2], head[:, 3], judged.reshape(n, _JUDGED, len(SHARES), 2),
        edges.reshape(n, len(METHODS), SHOWN, 3), features.reshape(n, 2, -1),
    )  # fmt: skip


class _Named(nn.Module):
    """A network as explainers call it, whether it takes tensors or a data object."""

    def __init__(self, model: nn.Module, tensors: bool) -> None:
        super().__init__()
        self.inner, self.tensors = model, tensors

    def forward(self, x: Tensor, edge_index: Tensor, **kwargs: Any) -> Tensor:
        """[nodes, d] -> one row an answer."""
        if self.tensors:
            found: Tensor = self.inner(x=x, edge_index=edge_index, **kwargs)
            return found
        from torch_geometric.data import Data

        answered: Tensor = self.inner(Data(x=x, edge_index=edge_index, **kwargs))
        return answered


@dataclass(frozen=True, eq=False)
class _Question:
    """Examples side by side, none of which reaches another: rows, edges, whose they are, and how to ask."""

    x: Tensor
    edges: Tensor
    group: Tensor
    ids: Tensor
    kwargs: Mapping[str, Any]
    index: Tensor | None
    heard: Tensor
    """[edges] whether a message along it can reach the answer."""

    def of(self, model: nn.Module) -> nn.Module:
        """The network with one answer an example."""
        from microtome.graphs.edge_occlusion import AnswersAt

        return model if self.index is None else AnswersAt(model, self.index, len(self.x))


def explained(
    subject: Subject, batch: Batch, changed: Mapping[str, Tensor], site: Tensor | None, seed: int
) -> Tensor:
    """The signal's value on one slice.

    Raises:
        Refusal: for data that is no graph with real features, and networks that cannot be copied, have no convolution,
            or answer a node from farther than their convolutions reach.
    """
    structure = batch.structure
    if structure is None or site is None or site.dim() != 2 or len(site) != structure.nodes:
        raise Refusal("nodes have no real-valued features beside the edges")
    network, untrained = _copies(subject, changed, seed)
    names, given = _arguments(batch, structure)
    with torch.no_grad():
        question = _graphs(site, structure, given) if structure.per_graph else _nodes(
            _Named(network, bool(names)), site, structure, given
        )  # fmt: skip
        models = [question.of(_Named(m, bool(names))) for m in (network, untrained)]
        answers = models[0](question.x, question.edges, **question.kwargs)
        if (
            answers.dim() != 2
            or len(answers) != len(structure.examples)
            or not bool(torch.isfinite(answers).all())
        ):
            raise Refusal("the network does not give a finite row of scores an example")
        label = answers.argmax(1)
        return _judge(models, question, answers, label, batch.rows, seed)


def _copies(subject: Subject, changed: Mapping[str, Tensor], seed: int) -> tuple[nn.Module, nn.Module]:
    try:
        pair = [copy.deepcopy(subject.model).eval().requires_grad_(False) for _ in range(2)]
    except Exception as error:
        raise Refusal(f"the network cannot be copied: {type(error).__name__}") from error
    own = {n: changed.get(n, p) for n, p in subject.parameters.items()}
    for model, values in zip(
        pair, (changed, {**changed, **Reinitialised(seed).change(subject, own)}), strict=True
    ):
        table = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, value in values.items():
                table[name].copy_(value)
    return pair[0], pair[1]


def _arguments(batch: Batch, structure: Structure) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names the network is called by, and what it is given beside x and edges."""
    if structure.names:
        if not {"x", "edge_index"} <= set(structure.names):
            raise Refusal("the network is not called with x and edge_index")
        given = dict(zip(structure.names, batch.leaves(), strict=False))
    else:
        data = next(leaf for leaf in batch.leaves() if is_graph(leaf))
        given = {k: data[k] for k in data.edge_attrs()} | {"batch": structure.graph}
    return structure.names, {k: v for k, v in given.items() if k not in ("x", "edge_index")}


def _graphs(x: Tensor, structure: Structure, given: Mapping[str, Any]) -> _Question:
    place = torch.full((structure.graphs,), -1)
    place[structure.examples] = torch.arange(len(structure.examples))
    group = place[structure.graph]
    rows = (group >= 0).nonzero()[:, 0]
    kept = (group[structure.edge_index[0]] >= 0).nonzero()[:, 0]
    moved = torch.full((structure.nodes,), -1)
    moved[rows] = torch.arange(len(rows))
    kwargs = {
        key: group[rows] if key == "batch"
        else value[kept] if isinstance(value, Tensor) and key.startswith("edge")
        else value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == structure.nodes
        else value
        for key, value in given.items()
    }  # fmt: skip
    edges = moved[structure.edge_index[:, kept]]
    ids = structure.node_ids[rows] % GRAPH_NODES
    return _Question(x[rows], edges, group[rows], ids, kwargs, None, torch.ones(len(kept), dtype=torch.bool))


def _nodes(model: nn.Module, x: Tensor, structure: Structure, given: Mapping[str, Any]) -> _Question:
    from torch_geometric.nn import MessagePassing

    from microtome.graphs.blocks import computational_blocks

    hops = sum(isinstance(m, MessagePassing) for m in model.modules())
    if not hops:
        raise Refusal("no module of the network passes messages in PyTorch Geometric's way")
    asked, edges = structure.examples, structure.edge_index
    whole = model(x, edges, **given)[asked]
    for factor in (1, 2, 4):  # a module may be called more than once
        blocks = computational_blocks(edges, structure.nodes, list(asked.split(1)), factor * hops)
        kwargs = blocks.arguments(given, structure.nodes, edges.shape[1])
        part = model(blocks.rows(x), blocks.edge_index, **kwargs)[blocks.index]
        if torch.allclose(whole, part, rtol=1e-4, atol=1e-4 * float(whole.abs().max())):
            break
    else:
        raise Refusal("the network answers otherwise on a node's subgraph than on the whole graph")
    near = torch.zeros(len(blocks.nodes), dtype=torch.bool)
    near[blocks.index] = True
    source, target = blocks.edge_index
    for _ in range(factor * hops - 1):
        near = near.index_fill(0, source[near[target]], True)
    return _Question(
        blocks.rows(x), blocks.edge_index, blocks.node_block, structure.node_ids[blocks.nodes], kwargs,
        blocks.index, near[target],
    )  # fmt: skip


def _scores(
    model: nn.Module, q: _Question, label: Tensor, copies: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Edge scores [edges] by method, feature scores [n, 2, d], and GOAt's explained part [n]."""
    from torch_geometric.explain import Explainer

    from microtome.graphs.edge_gradient import EdgeGradient
    from microtome.graphs.edge_occlusion import occlusion_losses
    from microtome.graphs.goat import GOAt

    n = len(label)
    config = {"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"}
    edges: dict[str, Tensor] = {}
    features = torch.zeros(n, 2, q.x.shape[1], dtype=torch.double)
    explained = torch.zeros(n, dtype=torch.double)
    algorithms: tuple[Any, ...] = (GOAt(), EdgeGradient())
    for i, algorithm in enumerate(algorithms):
        Explainer(
            model,
            algorithm,
            "model",
            model_config=config,
            node_mask_type="attributes",
            edge_mask_type="object",
        )
        made = algorithm(model, q.x, q.edges, target=label, **q.kwargs)
        edges[METHODS[i]] = made.edge_mask
        features[:, i].index_add_(0, q.group, made.node_mask.double())
        if i == 0:
            owner = q.group[q.edges[0]]
            shared = features[:, 0].sum(1).index_add(0, owner, made.edge_mask.double())
            size = torch.zeros(n, dtype=torch.double).index_add_(0, owner, made.edge_mask.double().abs())
            rest = (made.logits - made.baselines).double()
            explained = 1 - (rest - shared).abs() / torch.maximum(size, rest.abs()).clamp_min(1e-12)
    edges[METHODS[2]] = occlusion_losses(model, q.x, q.edges, label, q.group, q.kwargs, copies)
    return edges, features, explained


def _judge(
    models: list[nn.Module], q: _Question, answers: Tensor, label: Tensor, rows: Tensor, seed: int
) -> Tensor:
    from microtome.graphs.edge_occlusion import silenced_answers

    n, size = len(label), len(q.x)
    low, high = q.edges.amin(0), q.edges.amax(0)
    # A pair is judged if a message in either direction is heard; all of its edges go together.
    every, place = (low * size + high).unique(return_inverse=True)
    audible = torch.zeros(len(every), dtype=torch.bool).index_fill(0, place[q.heard], True)
    judged = audible[place].nonzero()[:, 0]
    keys, pair = every[audible], (audible.long().cumsum(0) - 1)[place[judged]]
    ends = torch.stack([q.ids[keys // size], q.ids[keys % size]]).sort(0).values
    own = q.group[keys // size]
    count = torch.bincount(own, minlength=n)
    if int(count.max() if n else 0) * size > MOST:
        raise Refusal(
            f"an answer can depend on {int(count.max())} edges, too many to silence one by one: name others"
        )
    copies = max(min(COPIES, ROWS // max(size, 1)), 1)
    edges, features, explained = _scores(models[0], q, label, copies)
    blind = _scores(models[1], q, label, copies)[0]
    draw = row_uniform(ends[0] * 0x9E3779B1 + ends[1] + rows[own] * 0x85EBCA6B, seed + 29)
    nothing = torch.zeros(len(keys), dtype=torch.double)
    tables = [*edges.values(), *blind.values()]
    scores = [nothing.index_add(0, pair, s[judged].double()) for s in tables]
    eps = float(torch.finfo(q.x.dtype).eps)
    ranks = [_ranks(s, own, count, draw, eps) for s in [*scores, nothing]]
    masks = torch.ones(len(ranks) * len(SHARES), 2, q.edges.shape[1], dtype=q.x.dtype)
    for i, rank in enumerate(ranks):
        for j, share in enumerate(SHARES):
            first = (rank < (share * count).ceil()[own])[pair].to(q.x.dtype)
            masks[i * len(SHARES) + j, 0, judged] = 1 - first
            masks[i * len(SHARES) + j, 1, judged] = first
    chance = torch.cat(
        [
            silenced_answers(models[0], q.x, q.edges, some, q.kwargs).softmax(2)[:, torch.arange(n), label]
            for some in masks.flatten(0, 1).split(copies)
        ]
    )
    named = torch.full((n, len(METHODS), SHOWN, 3), -1.0, dtype=torch.double)
    for i in range(len(METHODS)):
        told = (ranks[i] < SHOWN).nonzero()[:, 0]
        row = torch.stack([ends[0, told].double(), ends[1, told].double(), scores[i][told]], 1)
        named[own[told], i, ranks[i][told]] = row
    full = answers.softmax(1)[torch.arange(n), label].double()
    head = torch.stack([label.double(), full, count.double(), explained], 1)
    return torch.cat([head, chance.T.double(), named.flatten(1), features.flatten(1)], 1)


def _ranks(scores: Tensor, own: Tensor, count: Tensor, draw: Tensor, eps: float) -> Tensor:
    """[pairs] int64 place within the example, 0 for the highest; what rounding alone parts is in order of the draw."""
    largest = torch.zeros(len(count), dtype=torch.double).scatter_reduce(0, own, scores.abs(), "amax")
    step = 256 * eps * largest.clamp_min(1e-300)[own]
    order = draw.argsort(stable=True)
    order = order[(scores / step).round()[order].argsort(descending=True, stable=True)]
    order = order[own[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (count.cumsum(0) - count)[own[order]]
    return rank


__all__ = ["METHODS", "SHARES", "EdgeExplanations", "edge_explanations", "explained", "unpacked"]
