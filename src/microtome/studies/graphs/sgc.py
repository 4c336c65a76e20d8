"""Is a linear classifier on smoothed features as good as a GCN, and much faster?"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv, SGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from microtome.data.graph_generators import stochastic_blocks
from microtome.figures import bars
from microtome.learn.graph_training import fit_nodes
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

CLOSE, FASTER, HOPS = 0.01, 3.0, 2
DECAYS = (5e-5, 5e-4, 5e-3, 5e-2)


def smoothed(graph: Any, hops: int) -> Tensor:
    """[nodes, d] the features after ``hops`` steps of PyTorch Geometric's SGConv, computed once."""
    conv = SGConv(graph.x.shape[1], graph.x.shape[1], K=hops, bias=False)
    with torch.no_grad():
        conv.lin.weight.copy_(torch.eye(graph.x.shape[1]))
        return conv(graph.x, graph.edge_index)


def _dense(edge_index: Tensor, nodes: int) -> Tensor:
    edges, weight = gcn_norm(edge_index, None, nodes, dtype=torch.double)
    return torch.zeros(nodes, nodes, dtype=torch.double).index_put(
        (edges[1], edges[0]), weight, accumulate=True
    )


def filter_error(graph: Any, hops: int) -> float:
    """Largest |measured - (1 - lambda)^hops| of the gains on all eigenvectors of the Laplacian with loops."""
    nodes = graph.num_nodes
    values, vectors = torch.linalg.eigh(torch.eye(nodes) - _dense(graph.edge_index, nodes))
    conv = SGConv(nodes, nodes, K=hops, bias=False).double()
    with torch.no_grad():
        conv.lin.weight.copy_(torch.eye(nodes))
        gains = (vectors * conv(vectors, graph.edge_index)).sum(0)
    return float((gains - (1 - values) ** hops).abs().max())


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Homophilous block models for the claim, a heterophilous one where the low-pass filter must hurt."""
    seeds, nodes, epochs = (2, 200, 8) if smoke else (6, 1500, 80)
    d, k = 64, 5
    kinds = {"homophilous": 0.8, "heterophilous": 0.05}
    found: dict[tuple[str, str], list[float]] = {}
    seconds: dict[str, list[float]] = {"GCN": [], "SGC": [], "logistic": []}
    for kind, homophily in kinds.items():
        for s in range(100 + seed, 100 + seed + seeds):
            graph = stochastic_blocks(
                nodes, k, degree=5, homophily=homophily, signal=1.2, features=d, shares=(0.1, 0.2), seed=s
            )
            for name in seconds:
                began = time.perf_counter()
                data = graph
                if name == "SGC":
                    data = graph.clone()
                    data.x = smoothed(graph, HOPS)
                spent = time.perf_counter() - began
                build: partial[Any] = (
                    partial(n.NodeNetwork, GCNConv, [d, 32, k]) if name == "GCN" else partial(n.Own, d, k)
                )
                rate = 0.01 if name == "GCN" else 0.05
                # Weight decay decides for a linear map; each network gets the one its validation nodes prefer.
                tried = []
                for decay in DECAYS:
                    began = time.perf_counter() - spent
                    test, valid = fit_nodes(n.seeded(build, s), data, epochs=epochs, rate=rate, decay=decay)
                    tried.append((valid, test, time.perf_counter() - began))
                found.setdefault((kind, name), []).append(max(tried, key=lambda t: t[0])[1])
                seconds[name].append(min(t[2] for t in tried))
    numbers: dict[str, float] = {}
    for (kind, name), values in found.items():
        numbers |= n.summary(f"accuracy, {kind}, {name}", values)
    gaps = {
        kind: [a - b for a, b in zip(found[kind, "SGC"], found[kind, "GCN"], strict=True)] for kind in kinds
    }
    for kind, values in gaps.items():
        numbers |= n.summary(f"SGC less GCN, {kind}", values)
    hurt = [
        a - b for a, b in zip(found["heterophilous", "SGC"], found["heterophilous", "logistic"], strict=True)
    ]
    numbers |= n.summary("SGC less logistic regression, heterophilous", hurt)
    ratios = [a / b for a, b in zip(seconds["GCN"], seconds["SGC"], strict=True)]
    numbers |= n.summary("seconds of GCN by seconds of SGC", ratios)
    small = stochastic_blocks(60, 3, degree=4, features=3, seed=seed)
    numbers["largest error of the filter's gain"] = filter_error(small, HOPS)
    low, high = (numbers[f"SGC less GCN, homophilous, {end}"] for end in ("low", "high"))
    mean, faster = numbers["SGC less GCN, homophilous"], numbers["seconds of GCN by seconds of SGC, low"]
    exact = numbers["largest error of the filter's gain"] < 1e-6
    as_good = mean >= -CLOSE
    verdict = (
        "reproduced" if as_good and faster > FASTER and exact else "partly" if as_good else "not reproduced"
    )
    shown = [
        {"network": name, "graph": kind, "accuracy": numbers[f"accuracy, {kind}, {name}"]}
        for kind, name in found
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"on homophilous graphs SGC less GCN is {mean:+.3f} [{low:+.3f}, {high:+.3f}] (at least -{CLOSE}), "
        f"trained at least {faster:.1f} times as fast (threshold {FASTER:g}); the filter's gain is (1 - "
        f"lambda)^{HOPS} to "
        f"{numbers['largest error of the filter' + chr(39) + 's gain']:.1e} (threshold 1e-6)",
        figure=bars("Accuracy", shown, category="network", value="accuracy", series="graph"),
        conditions=(
            "Contextual block models instead of citation graphs; speed against a GCN of two layers and width 32 "
            "on the same "
            "full graph, not against FastGCN, so the paper's factor is not what is tested.",
            "A first run gave every network one weight decay, which the paper tunes: now each takes the best of "
            "four on its "
            "validation nodes, and the seeds are new.",
        ),
    )


STUDY = Study(
    paper="sgc",
    claim="On homophilous graphs a linear classifier on twice smoothed features is at most 0.01 less accurate than a "
    "two-layer GCN and trains more than 3 times as fast; the smoothing is the low-pass filter (1 - lambda)^2.",
    null="Without the nonlinearity accuracy is lost, or no time is gained.",
    control="Logistic regression on the raw features; a heterophilous graph, where a low-pass filter should not help.",
    threshold="Mean difference of accuracy at least -0.01; lower end of the ratio of times above 3; filter exact "
    "to 1e-6.",
    measure=measure,
    uses=("torch_geometric.nn.SGConv", "microtome.data.graph_generators.stochastic_blocks"),
    example="from torch_geometric.nn import SGConv\nfrom microtome.data.graph_generators import stochastic_blocks\n"
    "graph = stochastic_blocks(1500, 5, features=64)\nprint(SGConv(64, 5, K=2)(graph.x, graph.edge_index).shape)",
)
