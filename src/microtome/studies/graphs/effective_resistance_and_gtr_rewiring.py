"""Does effective resistance say what is squashed, and does lowering its total let information through?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.nn import GCNConv

from microtome.data.graph_generators import barbell, ring_of_cliques, stochastic_blocks
from microtome.figures import line
from microtome.graphs import resistance as r
from microtome.learn.transfer_task import node_jacobians, train_transfer
from microtome.statistics import spearman
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

CORRELATION, GAIN, CLASSES = 0.5, 0.1, 4


def _absent(edge_index: Tensor, nodes: int) -> Tensor:
    """[2, p] pairs that no edge joins."""
    taken = torch.eye(nodes, dtype=torch.bool)
    taken[edge_index[0], edge_index[1]] = True
    return (~taken).triu().nonzero().T


def _random(edge_index: Tensor, nodes: int, count: int, seed: int) -> Tensor:
    pairs = _absent(edge_index, nodes)
    return pairs[:, torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(seed))[:count]]


def _spectral(edge_index: Tensor, nodes: int, count: int, seed: int) -> Tensor:
    """One after another the absent pair that the second eigenvector of the Laplacian parts most."""
    edges, chosen = edge_index, []
    for _ in range(count):
        vector = torch.linalg.eigh(r.laplacian(edges, nodes))[1][:, 1]
        pairs = _absent(edges, nodes)
        best = pairs[:, int((vector[pairs[0]] - vector[pairs[1]]).abs().argmax())]
        chosen.append(best)
        edges = torch.cat([edges, best[:, None], best.flip(0)[:, None]], 1)
    return torch.stack(chosen, 1)


def _gtr(edge_index: Tensor, nodes: int, count: int, seed: int) -> Tensor:
    return r.best_edges(edge_index, nodes, count)[0]


RULES = {"total resistance": _gtr, "random": _random, "spectral gap": _spectral}


def _with(edge_index: Tensor, more: Tensor) -> Tensor:
    return torch.cat([edge_index, more, more.flip(0)], 1)


def rank_one_error(graph: Any, count: int) -> float:
    """Largest difference of the predicted and the recomputed decrease, over ``count`` greedy edges."""
    edges, nodes, worst = graph.edge_index, graph.num_nodes, 0.0
    chosen, gains = r.best_edges(edges, nodes, count)
    for edge, gain in zip(chosen.T, gains, strict=True):
        before = r.total_resistance(r.pseudoinverse(edges, nodes))
        edges = _with(edges, edge[:, None])
        worst = max(worst, abs(before - r.total_resistance(r.pseudoinverse(edges, nodes)) - float(gain)))
    return worst


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Exactness, correlation with Jacobians of untrained networks, and a transfer across a ring of cliques."""
    seeds, steps, counts = (2, 8, (1,)) if smoke else (5, 120, (1, 4))
    graphs = {
        "barbell": barbell(6, 2), "ring of cliques": ring_of_cliques(6, 4),
        "blocks": stochastic_blocks(40, 2, degree=4, homophily=0.97, features=2, seed=seed),
    }  # fmt: skip
    numbers: dict[str, float] = {
        "largest error of the predicted decrease": max(
            rank_one_error(g, 4) for g in list(graphs.values())[:2]
        )
    }
    lowest = []
    for name, graph in graphs.items():
        nodes = graph.num_nodes
        pairs = torch.combinations(torch.arange(nodes)).T
        apart = r.resistances(graph.edge_index, nodes, pairs)
        found = []
        for s in range(100 + seed, 100 + seed + seeds):
            network = n.seeded(partial(n.NodeNetwork, GCNConv, [8] * 9), s).eval()
            norms = node_jacobians(network, torch.randn(nodes, 8), graph.edge_index)
            both = (norms[pairs[0], pairs[1]] + norms[pairs[1], pairs[0]]).double()
            kept = (both > 0) & torch.isfinite(apart)
            found.append(spearman(-both[kept].log().numpy(), apart[kept].numpy()) or 0.0)
        numbers |= n.summary(f"rank correlation of weakness and resistance, {name}", found)
        lowest.append(numbers[f"rank correlation of weakness and resistance, {name}, low"])
    ring = ring_of_cliques(10, 4)
    edges, nodes = ring.edge_index, ring.num_nodes
    source, target, depth = 2, 5 * 4 + 2, 5
    found_at: dict[tuple[str, int], list[float]] = {}
    widths = [CLASSES] + [16] * (depth - 1) + [CLASSES]

    def transfer(more: Tensor | None, s: int) -> float:
        network = n.seeded(partial(n.NodeNetwork, GCNConv, widths, residual=True, dropout=0.0), s)
        given = edges if more is None else _with(edges, more)
        return train_transfer(network, given, nodes, source, target, classes=CLASSES, steps=steps, seed=s)[0]

    for s in range(100 + seed, 100 + seed + seeds):
        plain = transfer(None, s)
        for rule, choose in RULES.items():
            found_at.setdefault((rule, 0), []).append(plain)
            for count in counts:
                found_at.setdefault((rule, count), []).append(transfer(choose(edges, nodes, count, s), s))
    for (rule, count), values in found_at.items():
        numbers |= n.summary(f"accuracy with {count} edges, {rule}", values)
    most = counts[-1]
    gains = [a - b for a, b in zip(found_at["total resistance", most], found_at["random", most], strict=True)]
    numbers |= n.summary(f"gain over random, {most} edges", gains)
    gain, least = numbers[f"gain over random, {most} edges, low"], min(lowest)
    exact = numbers["largest error of the predicted decrease"] < 1e-9
    holds = (exact and least > CORRELATION, gain > GAIN)
    verdict = "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"
    points = [
        {"edges": count, "rule": rule, "accuracy": float(np.mean(values))}
        for (rule, count), values in found_at.items()
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"the rank-one decrease is exact to {numbers['largest error of the predicted decrease']:.1e} "
        f"(1e-9); "
        f"weakness of the Jacobian and resistance correlate by at least {least:.2f} on every graph (threshold "
        f"{CORRELATION}); {most} edges by total resistance gain at least {gain:.3f} over random ones (threshold "
        f"{GAIN})",
        figure=line(
            "Transfer across a ring of ten cliques", points, x="edges", y="accuracy", series="rule",
            rules={"chance": 1 / CLASSES},
        ),
        conditions=(
            "The task is built so that the message must go half around the ring, farther than the network is deep.",
            "A first run trained the transfer with dropout, under which hardly a network learned it; there is "
            "none now, and the "
            "seeds are new.",
            "Jacobians are of untrained GCNs of depth 8 and width 8 with standard weights.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="effective-resistance-and-gtr-rewiring",
    claim="The decrease of total resistance by an edge is a closed form; weakness of the Jacobian between two "
    "nodes ranks "
    "with their resistance (correlation above 0.5 on each of three kinds of graph); four edges chosen by total "
    "resistance "
    "raise the accuracy of a transfer across a ring of cliques by more than 0.1 over four random ones.",
    null="Jacobians do not rank with resistance, or random edges do as well.",
    control="Random edges, edges by the spectral gap, no edges; equal networks, steps and seeds.",
    threshold="Exact to 1e-9; lower ends of the correlations above 0.5; lower end of the gain above 0.1.",
    measure=measure,
    uses=(
        "microtome.graphs.resistance.best_edges",
        "microtome.learn.transfer_task.train_transfer",
        "microtome.instruments.graphs.oversquashing.Oversquashing",
    ),
    example="from microtome.data.graph_generators import ring_of_cliques\n"
    "from microtome.graphs.resistance import LowerTotalResistance\n"
    "print(LowerTotalResistance(4)(ring_of_cliques(10, 4)).num_edges)",
    relates={"over-squashing-width-depth-topology": "that paper states the same in commute times"},
)
