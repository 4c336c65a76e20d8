"""What stops information between far nodes: width, depth or topology?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from microtome.data.graph_generators import barbell, ring_of_cliques, stochastic_blocks
from microtome.figures import line
from microtome.graphs.resistance import adjacency, resistances, undirected
from microtome.learn.transfer_task import node_jacobians, train_transfer
from microtome.statistics import spearman
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

PARTIAL, GAIN, CLASSES = 0.2, 0.1, 4


def ring(nodes: int, crossed: bool = False) -> Tensor:
    """[2, m] a ring; crossed, each of its pairs of rungs is joined too, which shortens no path to the far side."""
    i = torch.arange(nodes)
    pairs = [torch.stack([i, (i + 1) % nodes])]
    if crossed:
        half = torch.arange(1, nodes // 2 - 1)
        pairs += [torch.stack([half, nodes - half - 1]), torch.stack([half + 1, nodes - half])]
    both = torch.cat(pairs, 1)
    return torch.cat([both, both.flip(0)], 1).unique(dim=1)


def _partial(weak: np.ndarray, commute: np.ndarray, hops: np.ndarray) -> tuple[float, float]:
    a, b, c = spearman(weak, commute) or 0.0, spearman(weak, hops) or 0.0, spearman(commute, hops) or 0.0
    return a, (a - b * c) / max(((1 - b * b) * (1 - c * c)) ** 0.5, 1e-9)


def _pairs(graph: Any, depth: int, seed: int) -> tuple[float, float, int]:
    """Rank correlation, partial rank correlation, and violations of the bound, on all pairs of a random GCN."""
    from scipy.sparse.csgraph import dijkstra

    nodes, edges = graph.num_nodes, graph.edge_index
    network = n.seeded(partial(n.NodeNetwork, GCNConv, [8] * (depth + 1)), seed).eval()
    norms = node_jacobians(network, torch.randn(nodes, 8), edges).double()
    at, weight = gcn_norm(edges, None, nodes)
    step = torch.zeros(nodes, nodes, dtype=torch.double).index_put(
        (at[1], at[0]), weight.double(), accumulate=True
    )
    # |J|_F <= sqrt(width) * product of spectral norms * (A^depth)_vu, for ReLU does not lengthen anything.
    size = float(
        torch.stack(
            [torch.linalg.matrix_norm(c.lin.weight.detach().double(), 2) for c in network.convs]
        ).prod()
    )
    bound = 8**0.5 * size * torch.linalg.matrix_power(step, depth)
    violated = int((norms > bound * (1 + 1e-5) + 1e-12).sum())
    hops = dijkstra(adjacency(edges, nodes), unweighted=True)
    pairs = torch.combinations(torch.arange(nodes)).T
    commute = 2 * undirected(edges, nodes).shape[1] * resistances(edges, nodes, pairs).numpy()
    weak = (norms[pairs[0], pairs[1]] + norms[pairs[1], pairs[0]]).numpy()
    far = hops[pairs[0], pairs[1]]
    kept = (weak > 0) & np.isfinite(commute)
    return *_partial(-np.log(weak[kept]), commute[kept], far[kept]), violated


def _radius(
    width: int, depth: int, edges: Tensor, nodes: int, distance: int, seed: int, steps: int
) -> tuple[float, float]:
    widths = [CLASSES] + [width] * (depth - 1) + [CLASSES]
    network = n.seeded(partial(n.NodeNetwork, GCNConv, widths, dropout=0.0), seed)
    return train_transfer(network, edges, nodes, 0, distance, classes=CLASSES, steps=steps, seed=seed)


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Bounds and commute times on random networks; transfer by width, by depth and after rewiring."""
    seeds, steps = (2, 6) if smoke else (5, 200)
    graphs = {
        "barbell": barbell(6, 2), "ring of cliques": ring_of_cliques(6, 4),
        "blocks": stochastic_blocks(40, 2, degree=4, homophily=0.97, features=2, seed=seed),
    }  # fmt: skip
    numbers: dict[str, float] = {"violations of the bound": 0.0}
    partials = []
    for name, graph in graphs.items():
        found = [_pairs(graph, 6, s) for s in range(100 + seed, 100 + seed + seeds)]
        numbers |= n.summary(f"rank correlation with commute time, {name}", [f[0] for f in found])
        numbers |= n.summary(f"the same, distance taken out, {name}", [f[1] for f in found])
        numbers["violations of the bound"] += sum(f[2] for f in found)
        partials.append(numbers[f"the same, distance taken out, {name}, low"])
    distance, nodes = 4, 16
    points = []
    sweeps: dict[str, dict[int, list[float]]] = {"width": {}, "depth": {}}
    slopes: dict[int, list[float]] = {}
    for s in range(100 + seed, 100 + seed + seeds):
        for width in (4, 16, 64):
            sweeps["width"].setdefault(width, []).append(
                _radius(width, distance, ring(nodes), nodes, distance, s, steps)[0]
            )
        for depth in (4, 8, 16):
            accuracy, slope = _radius(16, depth, ring(nodes), nodes, distance, s, steps)
            sweeps["depth"].setdefault(depth, []).append(accuracy)
            slopes.setdefault(depth, []).append(slope)
    shapes: dict[str, list[float]] = {"ring": [], "crossed ring": [], "two shortcuts": []}
    shortcut = torch.tensor([[0, 1], [nodes // 2, nodes // 2 - 1]])
    shortened = torch.cat([ring(nodes), shortcut, shortcut.flip(0)], 1)
    for s in range(100 + seed, 100 + seed + seeds):
        for name, edges in (
            ("ring", ring(nodes)),
            ("crossed ring", ring(nodes, True)),
            ("two shortcuts", shortened),
        ):
            shapes[name].append(_radius(16, nodes // 2, edges, nodes, nodes // 2, s, steps)[0])
    for kind, sweep in sweeps.items():
        for value, accuracies in sweep.items():
            numbers |= n.summary(f"accuracy, {kind} {value}", accuracies)
            points.append(
                {
                    "times the least": value / min(sweep),
                    "changed": kind,
                    "accuracy": float(np.mean(accuracies)),
                }
            )
    for depth, values in slopes.items():
        numbers |= n.summary(f"first gradient, depth {depth}", values)
    for name, values in shapes.items():
        numbers |= n.summary(f"accuracy across, {name}", values)
    wide = [b - a for a, b in zip(sweeps["width"][4], sweeps["width"][64], strict=True)]
    deep = [a - b for a, b in zip(sweeps["depth"][4], sweeps["depth"][16], strict=True)]
    rewired = [b - a for a, b in zip(shapes["ring"], shapes["two shortcuts"], strict=True)]
    numbers |= (
        n.summary("gain by width 64", wide)
        | n.summary("loss by depth 16", deep)
        | n.summary("gain by shortcuts", rewired)
    )
    gains = [numbers[f"{key}, low"] for key in ("gain by width 64", "loss by depth 16", "gain by shortcuts")]
    least = min(partials)
    holds = [numbers["violations of the bound"] == 0 and least > PARTIAL, *(g > GAIN for g in gains)]
    verdict = "reproduced" if all(holds) else "partly" if sum(holds) >= 2 else "not reproduced"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"{numbers['violations of the bound']:.0f} violations of the bound; weakness of the Jacobian "
        f"follows the "
        f"commute time beyond distance by at least {least:.2f} on every graph (threshold {PARTIAL}); width 64 "
        f"gains at least "
        f"{gains[0]:.3f}, depth 16 loses at least {gains[1]:.3f}, two shortcuts gain at least {gains[2]:.3f} "
        f"(thresholds {GAIN})",
        figure=line(
            "Transfer over four hops by width and depth", points, x="times the least", y="accuracy", series="changed",
            log_x=True, rules={"chance": 1 / CLASSES},
        ),
        conditions=(
            f"A GCN on a ring of {nodes} nodes, four classes, {steps} steps; width from 4 at depth 4, depth from 4 "
            f"at width 16.",
            "A first run trained with dropout, and no network of depth 4 learned the task at all, so neither "
            "width nor depth "
            "could be told; there is none now, and the seeds are new.",
            "Shortcuts join the two sides of the ring directly; the distance falls with the commute time there.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="over-squashing-width-depth-topology",
    claim="Sensitivity is bounded by weights times powers of the adjacency (no violation) and follows commute "
    "time beyond "
    "hop distance (partial rank correlation above 0.2); width raises the accuracy of a transfer by more than 0.1, "
    "depth "
    "beyond the distance lowers it by more than 0.1, and edges that cut the commute time raise it by more than 0.1.",
    null="Weakness depends on distance alone; width and topology change nothing, depth helps.",
    control="Hop distance taken out; depth equal to the distance; a crossed ring as topology that shortens no "
    "path across.",
    threshold="0 violations; lower ends of the intervals above 0.2 (correlation) and 0.1 (accuracies).",
    measure=measure,
    uses=(
        "microtome.learn.transfer_task.train_transfer",
        "microtome.graphs.resistance.resistances",
        "microtome.instruments.graphs.oversquashing.Oversquashing",
    ),
    example="from microtome.learn.transfer_task import node_jacobians\n"
    "from microtome.data.graph_generators import barbell\nfrom torch_geometric.nn import GCN\nimport torch\n"
    "graph = barbell(6, 2)\nprint(node_jacobians(GCN(8, 8, 4).eval(), torch.randn(14, 8), graph.edge_index)[0])",
    relates={"effective-resistance-and-gtr-rewiring": "commute time is resistance times twice the edges"},
)
