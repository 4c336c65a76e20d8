"""Does a GCN need neighbours of its own class, or only neighbourhoods that differ between classes?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch_geometric.nn import GCNConv, SAGEConv

from microtome.data.graph_generators import add_edges_by_pattern, stochastic_blocks
from microtome.figures import line
from microtome.graphs.homophily import class_edges, edge_homophily, profile_similarity
from microtome.learn.graph_training import fit_nodes
from microtome.statistics import spearman
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

RECOVERS, ALIKE = 0.1, 0.5


def _fit(build: partial[Any], graph: object, seed: int, epochs: int) -> float:
    return fit_nodes(n.seeded(build, seed), graph, epochs=epochs, rate=0.02)[0]


def measure(smoke: bool, seed: int = 0) -> Measured:
    """A homophilous block model with edges added by a fixed pattern, clean or noisy, up to low homophily."""
    seeds, nodes, epochs = (2, 200, 8) if smoke else (5, 400, 60)
    added, noises = ((0, 2, 12), (0.0, 1.0)) if smoke else ((0, 1, 2, 4, 8, 16, 32), (0.0, 0.5, 1.0))
    k, d = 4, 16
    widths = [d, 32, k]
    builds: dict[str, partial[Any]] = {
        "GCN": partial(n.NodeNetwork, GCNConv, widths),
        "SAGE": partial(n.NodeNetwork, SAGEConv, widths),
        "MLP": partial(n.NodeNetwork, n.Own, widths),
    }
    found: dict[tuple[str, float, int], list[float]] = {}
    homophily: dict[tuple[float, int], float] = {}
    gaps: list[tuple[float, float]] = []
    for s in range(seed, seed + seeds):
        graph = stochastic_blocks(
            nodes, k, degree=4, homophily=0.9, signal=0.8, features=d, shares=(0.3, 0.3), seed=s
        )
        mlp = _fit(builds["MLP"], graph, s, epochs)
        found.setdefault(("MLP", 0.0, 0), []).append(mlp)
        for noise in noises:
            for times in added:
                changed = add_edges_by_pattern(graph, times * nodes, noise=noise, seed=s)
                counts = class_edges(changed.edge_index, changed.y, k)
                homophily[noise, times] = edge_homophily(counts)
                for name in ("GCN", "SAGE"):
                    found.setdefault((name, noise, times), []).append(_fit(builds[name], changed, s, epochs))
                profiles = counts / counts.sum(1, keepdim=True)
                gaps.append((profile_similarity(profiles)[1], found["GCN", noise, times][-1] - mlp))
    numbers: dict[str, float] = {}
    for (name, noise, times), values in found.items():
        place = "" if name == "MLP" else f", noise {noise:g}, homophily {homophily[noise, times]:.2f}"
        numbers |= n.summary(f"accuracy, {name}{place}", values)
    last = added[-1]
    lowest = min(added, key=lambda t: sum(found["GCN", 0.0, t]))
    numbers["homophily at the lowest clean accuracy"] = homophily[0.0, lowest]
    numbers["homophily at the clean end"] = homophily[0.0, last]
    rise = [b - a for a, b in zip(found["GCN", 0.0, lowest], found["GCN", 0.0, last], strict=True)]
    numbers |= n.summary("rise from the lowest to the least homophilous, clean", rise)
    end = [b - a for a, b in zip(found["GCN", 1.0, last], found["GCN", 0.0, last], strict=True)]
    numbers |= n.summary("clean less noisy at the end", end)
    gap, gain = np.array(gaps).T
    numbers["rank correlation of profile distance and gain over the MLP"] = spearman(gap, gain) or 0.0
    rises = numbers["rise from the lowest to the least homophilous, clean, low"]
    noisy = numbers["clean less noisy at the end, low"]
    alike = numbers["rank correlation of profile distance and gain over the MLP"]
    holds = (rises > RECOVERS, noisy > RECOVERS, alike > ALIKE)
    verdict = "reproduced" if all(holds) else "partly" if holds[0] or holds[2] else "not reproduced"
    points = [
        {
            "homophily": homophily[noise, t],
            "noise": f"noise {noise:g}",
            "accuracy": float(np.mean(found["GCN", noise, t])),
        }
        for noise in noises
        for t in added
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"with edges of a clean pattern the GCN's accuracy rises again by at least {rises:.3f} from its "
        f"lowest "
        f"(homophily {homophily[0.0, lowest]:.2f}) to homophily {homophily[0.0, last]:.2f} (threshold {RECOVERS}); "
        f"there "
        f"it exceeds that with random ends by at least {noisy:.3f} (threshold {RECOVERS}); its gain over the MLP "
        f"follows "
        f"the distance of the classes' neighbour profiles, rank correlation {alike:.2f} (threshold {ALIKE})",
        figure=line(
            "Accuracy of a GCN as heterophilous edges are added", points, x="homophily", y="accuracy", series="noise",
            rules={"MLP": float(np.mean(found["MLP", 0.0, 0]))},
        ),
        conditions=(
            f"A contextual block model of {nodes} nodes instead of citation graphs; edges are added to the next "
            f"class of a "
            "ring; no heterophily-specific network but SAGE, which keeps a node apart from its neighbours.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="is-homophily-necessary-for-gnns",
    claim="As edges of a fixed class-to-class pattern are added a GCN's accuracy falls and then rises again by "
    "more than "
    "0.1 though homophily keeps falling; with random ends it does not; its gain over a network without edges "
    "follows the "
    "distance between the classes' neighbour-label profiles (rank correlation above 0.5).",
    null="Accuracy falls with homophily whatever the pattern.",
    control="The same number of edges with ends of random class (noise 1), an MLP, equal widths and splits.",
    threshold="Lower ends of the intervals of the rise and of clean less noisy above 0.1; rank correlation above 0.5.",
    measure=measure,
    uses=(
        "microtome.graphs.homophily.label_informativeness",
        "microtome.data.graph_generators.add_edges_by_pattern",
        "microtome.instruments.graphs.homophily.Homophily",
    ),
    example="from microtome.data.graph_generators import add_edges_by_pattern, stochastic_blocks\n"
    "from microtome.graphs.homophily import class_edges, profile_similarity\n"
    "graph = add_edges_by_pattern(stochastic_blocks(600, 4), 9600)\n"
    "counts = class_edges(graph.edge_index, graph.y, 4)\n"
    "print(profile_similarity(counts / counts.sum(1, keepdim=True)))",
    relates={"heterophily-benchmark-audit": "both find ordinary networks do well on heterophilous graphs"},
)
