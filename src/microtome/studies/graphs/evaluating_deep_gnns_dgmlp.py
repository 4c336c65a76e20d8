"""Which of a deep graph network's two depths costs accuracy, and when is far propagation worth it?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN2Conv

from microtome.data.graph_generators import stochastic_blocks
from microtome.figures import line
from microtome.learn.graph_training import fit_nodes
from microtome.nn.dgmlp import AdaptivePropagation, ResidualMLP, propagated
from microtome.population import Population, Recipe, train
from microtome.statistics import spearman, student
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

DEPTHS = (1, 2, 4, 8, 16, 32)
COST, SAVED, RISES, BETTER = 0.1, 0.5, 0.5, 0.0
WIDTH, FEATURES, CLASSES = 32, 32, 4


def _graph(seed: int, nodes: int, *, degree: float = 4.0, labels: float = 0.1, signal: float = 1.2) -> Any:
    return stochastic_blocks(
        nodes,
        CLASSES,
        degree=degree,
        homophily=0.8,
        signal=signal,
        features=FEATURES,
        shares=(labels, 0.2),
        seed=seed,
    )


def _accuracies(
    graphs: list[Any], hops: tuple[int, ...], depth: int, steps: int, *, residual: bool, teleport: float = 0.0
) -> np.ndarray:
    """[graphs, hops] test accuracy of perceptrons of this depth on propagated features, all trained at once.

    The epoch is not chosen: every network takes the same number of full-batch steps.
    """
    features = [propagated(g.x, g.edge_index, max(hops), teleport=teleport)[list(hops)] for g in graphs]
    inputs = torch.cat([f[:, g.train_mask] for f, g in zip(features, graphs, strict=True)])
    targets = torch.stack([g.y[g.train_mask] for g in graphs]).repeat_interleave(len(hops), 0)
    population = Population.of(
        partial(ResidualMLP, FEATURES, WIDTH, CLASSES, depth, residual=residual), range(len(inputs))
    )
    recipe = Recipe(optimizer="adam", rate=0.005, options={"weight_decay": 5e-4}, steps=steps)
    train(population, inputs, targets, recipe, private=(True, True))
    held = torch.cat([f[:, g.test_mask] for f, g in zip(features, graphs, strict=True)])
    truth = torch.stack([g.y[g.test_mask] for g in graphs]).repeat_interleave(len(hops), 0)
    right = (population.predict(held, private=True).argmax(-1) == truth).double().mean(1)
    return right.view(len(graphs), len(hops)).numpy()


class _Appnp(nn.Module):
    def __init__(self, hops: int) -> None:
        super().__init__()
        self.mlp, self.propagate = ResidualMLP(FEATURES, WIDTH, CLASSES, 2), APPNP(hops, 0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(self.mlp(x), edge_index)


class _Gcn2(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.convs = nn.ModuleList(GCN2Conv(WIDTH, 0.1, 0.5, i + 1) for i in range(depth))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        start = h = self.first(x).relu()
        for conv in self.convs:
            h = conv(h, start, edge_index).relu()
        return self.last(h)


def _sgc(graph: Any, hops: int) -> Any:
    made = graph.clone()
    made.x = propagated(graph.x, graph.edge_index, hops)[-1]
    return made


def _rivals(seed: int, nodes: int, epochs: int, hops: tuple[int, ...]) -> dict[str, float]:
    """Test accuracy of each method at the hops its validation accuracy chooses, as many settings for all."""
    graph, found = _graph(seed, nodes), {}
    makes = {
        "DGMLP": lambda k: (ResidualMLP(FEATURES, WIDTH, CLASSES, 2), AdaptivePropagation(k)(graph.clone())),
        "SGC": lambda k: (ResidualMLP(FEATURES, WIDTH, CLASSES, 1), _sgc(graph, k)),
        "APPNP": lambda k: (_Appnp(k), graph),
        "GCNII": lambda k: (_Gcn2(k), graph),
    }
    for name, make in makes.items():
        tried = []
        for k in hops:
            torch.manual_seed(seed)
            test, validation = fit_nodes(*make(k), epochs=epochs)
            tried.append((validation, test))
        found[name] = max(tried)[1]
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """A grid of the two depths with and without residuals; sparse graphs; DGMLP and its rivals."""
    seeds, nodes, steps, depths = (2, 160, 10, (1, 2, 8)) if smoke else (10, 800, 150, DEPTHS)
    start = 100 * seed
    graphs = [_graph(start + s, nodes) for s in range(seeds)]
    grids = {
        residual: np.stack([_accuracies(graphs, depths, t, steps, residual=residual) for t in depths], 1)
        for residual in (False, True)
    }  # [seeds, transformations, propagations]
    numbers: dict[str, float] = {}
    two, last = depths.index(2), depths[-1]

    def lost(along: np.ndarray) -> np.ndarray:
        """[seeds] what the deepest loses against the depth that is best on average."""
        return along[:, along.mean(0).argmax()] - along[:, -1]

    losses = {
        "transformation": lost(grids[False][:, :, two]),
        "propagation": lost(grids[False][:, two]),
        "transformation, residual": lost(grids[True][:, :, two]),
    }
    teleported = _accuracies(graphs, depths, 2, steps, residual=False, teleport=0.1)
    losses["propagation, residual"] = lost(teleported)
    for name, values in losses.items():
        numbers |= n.summary(f"accuracy lost at depth {last}, {name}", list(values))
    more = student(losses["transformation"] - losses["propagation"])
    saved = float(1 - losses["transformation, residual"].mean() / max(losses["transformation"].mean(), 1e-9))
    numbers["share of the transformation's loss that residuals save"] = saved
    corner = grids[False][:, two, -1] - grids[False][:, -1, two]
    numbers |= n.summary(f"accuracy, {last} hops and 2 maps less 2 hops and {last} maps", list(corner))
    mean = grids[False].mean(0)
    centred = mean - mean.mean()
    total = float((centred**2).sum())
    numbers["share of variance by transformation depth"] = (
        float((centred.mean(1) ** 2).sum() * len(depths)) / total
    )
    numbers["share of variance by propagation depth"] = (
        float((centred.mean(0) ** 2).sum() * len(depths)) / total
    )

    dials: dict[str, tuple[float, ...]] = {
        "degree": (2, 4, 8, 16),
        "labels": (0.02, 0.05, 0.1, 0.3),
        "signal": (0.6, 0.9, 1.2, 2.0),
    }
    follows = []
    for dial, levels in dials.items():
        best, gain = [], []
        for level in levels[:2] if smoke else levels:
            made = [_graph(start + s, nodes, **{dial: level}) for s in range(seeds)]
            found = _accuracies(made, depths, 2, steps, residual=True)
            best.append(float(np.log2(depths)[found.argmax(1)].mean()))
            gain.append(float((found.max(1) - found[:, two]).mean()))
            numbers[f"{dial} {level:g}: best hops"] = 2 ** best[-1]
            numbers[f"{dial} {level:g}: gain of the best over 2 hops"] = gain[-1]
        follows.append(-(spearman(np.array(levels[: len(best)]), np.array(best)) or 0.0))
        numbers[f"{dial}: rank correlation of sparsity with best hops"] = follows[-1]

    rivals = [
        _rivals(start + s, nodes, 10 if smoke else 80, (2, 8) if smoke else (4, 10, 20))
        for s in range(2 if smoke else 6)
    ]
    for name in rivals[0]:
        numbers |= n.summary(f"accuracy, {name}", [r[name] for r in rivals])
    ahead = [r["DGMLP"] - max(v for k, v in r.items() if k != "DGMLP") for r in rivals]
    numbers |= n.summary("DGMLP less the best of the others", ahead)
    low = numbers["DGMLP less the best of the others, low"]
    holds = {
        "transformation costs more": numbers[f"accuracy lost at depth {last}, transformation, low"] > COST
        and more[1] > 0,
        "residuals save it": saved >= SAVED,
        "sparse graphs want more hops": min(follows) >= RISES,
        "DGMLP is ahead": low > BETTER,
    }
    core = holds["transformation costs more"] and holds["residuals save it"]
    verdict = "reproduced" if all(holds.values()) else "partly" if core else "not reproduced"
    points = [
        {"depth": d, "accuracy": float(values[i]), "deepened": name}
        for name, values in (
            ("maps (2 hops)", grids[False][:, :, two].mean(0)),
            ("maps, residual (2 hops)", grids[True][:, :, two].mean(0)),
            ("hops (2 maps)", grids[False][:, two].mean(0)),
            ("hops, residual (2 maps)", teleported.mean(0)),
        )
        for i, d in enumerate(depths)
    ]
    gone = {k: numbers[f"accuracy lost at depth {last}, {k}"] for k in ("transformation", "propagation")}
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"at depth {last} maps lose {gone['transformation']:.3f} (interval above {COST}), hops "
        f"{gone['propagation']:.3f}, the difference {more[0]:.3f} [{more[1]:.3f}, {more[2]:.3f}] (above 0); residuals "
        f"save {saved:.0%} of it (at least {SAVED:.0%}); best hops follow sparsity of edges, labels and features by "
        f"{', '.join(f'{f:.2f}' for f in follows)} (each at least {RISES}); DGMLP less the best of the others "
        f"{numbers['DGMLP less the best of the others']:+.3f} [{low:+.3f}, "
        f"{numbers['DGMLP less the best of the others, high']:+.3f}] (above 0): {sum(holds.values())} of 4 hold",
        figure=line(
            "Accuracy as one of the two depths grows",
            points,
            x="depth",
            y="accuracy",
            series="deepened",
            log_x=True,
        ),
        conditions=(
            f"Block models of {nodes} nodes, {seeds} seeds, {steps} full-batch steps of Adam, the last epoch, widths "
            f"{WIDTH}; the paper uses citation and larger graphs.",
            "A residual of propagation is a share of 0.1 of the features themselves at every hop.",
            "Rivals choose among three depths by validation accuracy, DGMLP too, with 2 maps, as its rule for small "
            "graphs says. A first run gave it 4, with which it was 0.103 [0.068, 0.138] behind the best of the others.",
        ),
    )


STUDY = Study(
    paper="evaluating-deep-gnns-dgmlp",
    claim="Deep graph networks lose accuracy by their many maps, not by many hops; residual connections between maps "
    "save most of it; many hops are worth more the sparser edges, labels or features are; and a network built by these "
    "rules, with hops weighted by each node's smoothness, is more accurate than SGC, APPNP and GCNII.",
    null="Hops cost as much as maps, residuals save nothing, best hops do not follow sparsity, DGMLP is no better.",
    control="Each depth is moved with the other held at 2, both with and without residuals; the same steps, widths, "
    "graphs; rivals get as many settings.",
    threshold=f"Loss by maps at depth 32 above {COST} with its interval, and above that by hops; residuals save at "
    f"least {SAVED:.0%}; rank correlation at least {RISES} for each dial; DGMLP's lead above 0 with its interval. All: "
    "reproduced; the first two: partly.",
    measure=measure,
    uses=(
        "microtome.nn.dgmlp.DGMLP",
        "microtome.nn.dgmlp.AdaptivePropagation",
        "microtome.nn.dgmlp.ResidualMLP",
    ),
    example="from microtome.data.graph_generators import stochastic_blocks\nfrom microtome.learn.graph_training import "
    "fit_nodes\nfrom microtome.nn.dgmlp import AdaptivePropagation, ResidualMLP\n"
    "graph = AdaptivePropagation(10)(stochastic_blocks(800, 4, features=32))\n"
    "print(fit_nodes(ResidualMLP(32, 32, 4, depth=4), graph))",
    relates={
        "dagnn": "both find that maps, not hops, make deep networks fail; DAGNN learns its weights of hops"
    },
)
