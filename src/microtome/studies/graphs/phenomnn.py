"""Do embeddings that minimise an energy of a hypergraph gain where hyperedges are large, and are they exact?"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCNConv, HypergraphConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_dense_adj

from microtome.data.hypergraphs import clique_graph, planted_hypergraph
from microtome.figures import line
from microtome.learn.graph_training import fit_nodes
from microtome.nn.phenomnn import HypergraphDescent, PhenomNN
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

CLOSED, GAIN, STEPS, FAR = 1e-4, 0.01, 8, 32
RIVALS = ("clique GCN", "HGNN")
OURS, ALONE, NONE = "PhenomNN", "clique terms alone", "perceptron"
LONG, UNTUNED = f"PhenomNN of {FAR} steps", "PhenomNN, untuned"
MIXED = "mixed"
Setting = dict[str, Any]
TRAINING: dict[str, tuple[Any, ...]] = {"rate": (0.01, 0.03), "dropout": (0.0, 0.5), "hidden": (32, 64)}
RANGES: dict[str, dict[str, tuple[Any, ...]]] = {
    OURS: {
        "clique": (0.0, 1.0, 20.0), "star": (1.0, 20.0, 80.0), "steps": (2, 4, 8, 16), "step": (0.3, 1.0),
        "compatible": (False, True),
    },
    ALONE: {"clique": (1.0, 20.0, 80.0), "steps": (2, 4, 8, 16), "step": (0.3, 1.0)},
    "clique GCN": {"layers": (1, 2, 3)},
    "HGNN": {"layers": (1, 2, 3)},
    NONE: {"layers": (1, 2, 3)},
}  # fmt: skip
"""What may be chosen for each network, beside how it is trained, which is the same for all."""
FIRST: Setting = {
    "rate": 0.01, "dropout": 0.5, "hidden": 32, "clique": 1.0, "star": 10.0, "steps": STEPS, "compatible": True
}  # fmt: skip
"""What was measured before anything was tuned."""


class _Clique(nn.Module):
    """PyTorch Geometric's GCNConv on one graph, whose matrix is made once, and dense, as large cliques nearly are."""

    def __init__(self, near: Tensor, inputs: int, outputs: int) -> None:
        super().__init__()
        self.near, self.conv = near, GCNConv(inputs, outputs)

    def forward(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, k]."""
        found: Tensor = self.near @ self.conv.lin(x) + self.conv.bias
        return found


def _graph(size: int | str, nodes: int, seed: int) -> Any:
    """Three hyperedges a node at every size; of the mixed ones half of the pairs in hyperedges of 3, half of 20."""
    if size == MIXED:
        few, many = _graph(3, nodes, seed), _graph(20 if nodes > 200 else 10, nodes, seed)
        index, other = (g.edge_index[:, : g.edge_index.shape[1] // 2] for g in (few, many))
        few.edge_index = torch.cat([index, torch.stack([other[0], other[1] + int(index[1].max()) + 1])], 1)
        return few
    return planted_hypergraph(
        nodes,
        4,
        hyperedges=3 * nodes // int(size),
        size=int(size),
        purity=0.6,
        signal=0.8,
        features=16,
        seed=seed,
    )


def _build(name: str, graph: Any, setting: Setting) -> nn.Module:
    d, k, hidden = graph.num_features, int(graph.y.max()) + 1, setting["hidden"]
    if name in (OURS, ALONE):
        options = {key: value for key, value in setting.items() if key not in ("rate", "hidden")}
        return PhenomNN(d, hidden, k, **({"star": 0.0} | options))
    widths = [d] + [hidden] * (setting["layers"] - 1) + [k]
    build: Callable[[int, int], nn.Module] = HypergraphConv if name == "HGNN" else n.Own
    if name == "clique GCN":
        edges, weights = clique_graph(graph.edge_index, graph.num_nodes)
        edges, weights = gcn_norm(edges, weights, graph.num_nodes)
        near = to_dense_adj(edges, edge_attr=weights, max_num_nodes=graph.num_nodes)[0].T.contiguous()
        build = partial(_Clique, near)
    return n.NodeNetwork(build, widths, dropout=setting["dropout"])


def _fit(name: str, graph: Any, setting: Setting, seed: int, epochs: int) -> tuple[float, float]:
    """Accuracy on test and on validation nodes."""
    model = n.seeded(partial(_build, name, graph, setting), seed)
    return fit_nodes(model, graph, epochs=epochs, rate=setting["rate"])


def _tuned(name: str, make: Callable[[int], Any], seed: int, tries: int, epochs: int) -> Setting:
    """The best on validation nodes of ``tries`` settings: all on one graph, the best quarter on two more."""
    ranges = TRAINING | RANGES[name]
    every = [dict(zip(ranges, values, strict=True)) for values in itertools.product(*ranges.values())]

    def score(setting: Setting, s: int) -> float:
        return _fit(name, make(s), setting, s, epochs)[1]

    first = [(score(setting, seed), setting) for setting in random.Random(seed).sample(every, tries)]
    kept = sorted(first, key=lambda pair: -pair[0])[: tries // 4 or 1]
    return max(kept, key=lambda pair: pair[0] + score(pair[1], seed + 1) + score(pair[1], seed + 2))[1]


@torch.no_grad()
def exact(graph: Any, seed: int, steps: int) -> dict[str, float]:
    """Errors of the descent: against the solve, against APPNP, and the largest rise of the energy in a step."""
    f = torch.randn(graph.num_nodes, 8, generator=torch.Generator().manual_seed(seed)).double()
    index, found, rise = graph.edge_index, {}, 0.0
    for positive in (False, True):
        made = HypergraphDescent(8, steps, clique=1.0, star=10.0, positive=positive)
        trace = made.trace(f, index)
        rise = max(rise, float((trace.diff() / trace[0]).max()))
        if not positive:
            best = made.minimiser(f, index)
            found["error of many steps"] = float((made(f, index) - best).norm() / best.norm())
            short = HypergraphDescent(8, STEPS, clique=1.0, star=10.0, positive=False)
            found[f"error of {STEPS} steps"] = float((short(f, index) - best).norm() / best.norm())
    found["largest rise of the energy in a step"] = rise
    ours = HypergraphDescent(8, STEPS, clique=10.0, star=0.0, positive=False)(f, index)
    edges, weights = clique_graph(index, graph.num_nodes)
    theirs = APPNP(STEPS, 1 / 11.0)(f, edges, weights.double())
    found["distance from APPNP on the clique graph"] = float((ours - theirs).norm() / theirs.norm())
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Planted hypergraphs of hyperedges from small to large; five networks, tuned alike at either end."""
    seeds, sizes, nodes, epochs, tries, many = (
        (2, (3, 10), 80, 3, 2, 20) if smoke else (8, (3, 8, 20), 600, 120, 20, 150)
    )
    start, tuning = 10_000 + 100 * seed, 20_000 + 100 * seed
    largest = sizes[-1]
    chosen = {
        (name, size): _tuned(name, partial(_graph, size, nodes), tuning, tries, epochs)
        for name in RANGES
        for size in (sizes[0], largest)
    }
    told: dict[tuple[str, int | str], list[float]] = {}
    errors: dict[str, list[float]] = {}
    for s in range(start, start + seeds):
        for size in (*sizes, MIXED):
            graph, end = _graph(size, nodes, s), sizes[0] if size == sizes[0] else largest
            runs = {name: (name, chosen[name, end]) for name in RANGES}
            if size == largest:
                runs |= {LONG: (OURS, chosen[OURS, end] | {"steps": FAR}), UNTUNED: (OURS, FIRST)}
            for title, (name, setting) in runs.items():
                told.setdefault((title, size), []).append(_fit(name, graph, setting, s, epochs)[0])
            for title, value in exact(graph, s, many).items():
                errors.setdefault(title, []).append(value)
    numbers = {f"{name}, largest": max(values) for name, values in errors.items()}
    for (name, size), setting in chosen.items():
        numbers |= {f"chosen, {name}, hyperedges of {size}: {k}": float(v) for k, v in setting.items()}
    for (name, size), values in told.items():
        numbers |= n.summary(f"accuracy, {name}, hyperedges of {size}", values)
        if name != OURS:
            gaps = [a - b for a, b in zip(told[OURS, size], values, strict=True)]
            numbers |= n.summary(f"PhenomNN less {name}, hyperedges of {size}", gaps)
    gains = {name: f"PhenomNN less {name}, hyperedges of {largest}" for name in (*RIVALS, ALONE, LONG, NONE)}
    right = (
        numbers["error of many steps, largest"] < CLOSED
        and numbers["distance from APPNP on the clique graph, largest"] < 1e-10
        and numbers["largest rise of the energy in a step, largest"] < 1e-12
    )
    better = min(numbers[f"{gains[name]}, low"] for name in RIVALS) > GAIN
    verdict = "reproduced" if right and better else "partly" if right or better else "not reproduced"
    points = [
        {"size": float(size), "network": name, "accuracy": numbers[f"accuracy, {name}, hyperedges of {size}"]}
        for name, size in told
        if size != MIXED
    ]
    words = ", ".join(
        f"{numbers[g]:+.3f} [{numbers[f'{g}, low']:+.3f}, {numbers[f'{g}, high']:+.3f}] to {name}"
        for name, g in gains.items()
    )
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"{many} steps are {numbers['error of many steps, largest']:.1e} from the solve (threshold "
        f"{CLOSED:.0e}), the clique term alone {numbers['distance from APPNP on the clique graph, largest']:.1e} from "
        f"APPNP, and no step goes up by more than {numbers['largest rise of the energy in a step, largest']:.1e}; at "
        f"hyperedges of {largest} accuracy gains, all tuned alike, {words} (lower ends to both rivals above {GAIN})",
        figure=line(
            "Accuracy by size of hyperedges", points, x="size", y="accuracy", series="network", log_x=True
        ),
        conditions=(
            f"Planted hypergraphs of {nodes} nodes, three hyperedges a node at every size, a purity of 0.6 and 10 % "
            "labels instead of co-citation sets.",
            f"Every network has {tries} settings of its own range, chosen on the validation nodes of graphs that are "
            f"not tested on, at {sizes[0]} and at {largest}; sizes between, and mixed ones, take those of {largest}. "
            f"{epochs} epochs, the one that is best on validation nodes.",
            "A first run tuned nothing and did not rectify features before the descent: 0.41 below both rivals. Seeds "
            "are new, thresholds as they were.",
            "Hyperedges of one size and no compatibility make the star term a clique term; where half are of 3 and "
            "half of 20 they differ, which is measured and does not decide.",
            "Both terms are normalised by degree; the clique term counts each pair once, the paper's formula twice. "
            "Compatibilities that are not the identity have no guarantee of descent.",
        ),
    )


STUDY = Study(
    paper="phenomnn",
    claim="Steps down the energy never go up, reach its closed-form minimum, and with the star term off are APPNP on "
    "the clique graph; where hyperedges are large (20 nodes) a network trained through them is more accurate than a "
    "GCN on the clique graph and than HGNN by more than 0.01.",
    null="Accuracies are alike, or the descent misses the minimum.",
    control="The same network with the clique term alone, run on to the minimum, untuned, and a perceptron; as many "
    "settings tried for each network; equally many pairs of node and hyperedge at every size.",
    threshold="Errors below 1e-4 (solve) and 1e-10 (APPNP), no rise above 1e-12 of the first energy; lower ends of the "
    "paired intervals over seeds above 0.01 against both rivals.",
    measure=measure,
    uses=("microtome.nn.phenomnn.PhenomNN", "microtome.data.hypergraphs.planted_hypergraph"),
    example="import torch\nfrom microtome.data.hypergraphs import planted_hypergraph\n"
    "from microtome.nn.phenomnn import HypergraphDescent\ngraph = planted_hypergraph(200, 4, size=10)\n"
    "print(HypergraphDescent(16, steps=8).trace(graph.x, graph.edge_index))",
    relates={"dagnn": "its control APPNP is the case of the clique term alone, exactly"},
)
