"""Does a kernel equal a graph network under one protocol, and what does its best epoch on test graphs flatter by?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Batch

from microtome.data.graphs import load
from microtome.data.molecules import molecules
from microtome.figures import bars
from microtome.graphs.kernels import cosine, shortest_path_kernel, subtree_kernels
from microtome.learn.graph_protocol import Evaluation, evaluate_kernels, evaluate_network, repeated_folds
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

FLATTERS = 0.02
SETS = {"mutag": "MUTAG", "proteins": "PROTEINS"}
COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)


def generated(count: int, seed: int) -> list[Any]:
    """Molecules, two classes: whether the noisy weighted count of their groups is above the median."""
    graphs = molecules(count, noise=0.7, seed=seed)
    middle = torch.stack([g.y[0] for g in graphs]).median()
    for graph in graphs:
        graph.y = (graph.y > middle).long()
    return graphs


def sets(smoke: bool, seed: int) -> dict[str, tuple[list[Any], int, int]]:
    """Graphs, repetitions and epochs by name; published ones where they are."""
    found = {
        "molecules": (generated(40 if smoke else 200, 500 + seed), 1 if smoke else 2, 3 if smoke else 60)
    }
    root = os.environ.get("MICROTOME_GRAPHS", "")
    for key, folder in SETS.items():
        if not smoke and root and (Path(root) / "tudataset" / folder).exists():
            repeats, epochs = (2, 60) if key == "mutag" else (1, 30)
            found[folder] = (list(load(key)), repeats, epochs)
    return found


def shuffled(graphs: Sequence[Any], seed: int) -> list[Any]:
    """The same graphs with each other's labels."""
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    found = [g.clone() for g in graphs]
    for graph, other in zip(found, order, strict=True):
        graph.y = graphs[other].y.clone()
    return found


def said(name: str, found: Evaluation) -> dict[str, float]:
    """Accuracy with both deviations."""
    return {
        f"{name}, accuracy": found.mean,
        f"{name}, deviation of repetitions": found.deviation,
        f"{name}, deviation of folds": found.deviation_of_folds,
    }


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Two kernels and a GIN on each set, the same folds; the GIN also with labels that mean nothing."""
    count = 3 if smoke else 10
    numbers: dict[str, float] = {}
    drawn, equal, flattered = [], [], {}
    for name, (graphs, repeats, epochs) in sets(smoke, seed).items():
        batch = Batch.from_data_list(graphs)
        splits = repeated_folds(batch.y, folds=count, repetitions=repeats, seed=seed)
        build = partial(n.GraphNetwork, n.isomorphism, batch.x.shape[1], 32, int(batch.y.max()) + 1, 3)
        where: dict[str, Any] = {"x": batch.x}
        trees = cosine(subtree_kernels(batch.edge_index, batch.batch, len(graphs), rounds=5, **where))
        paths = cosine(shortest_path_kernel(batch.edge_index, batch.batch, len(graphs), **where))
        size = 32 if len(graphs) < 500 else 128
        told = {
            "subtree": evaluate_kernels(dict(enumerate(trees)), batch.y, splits, costs=COSTS),
            "shortest path": evaluate_kernels({0: paths}, batch.y, splits, costs=COSTS),
            "GIN": evaluate_network(build, graphs, splits, epochs=epochs, batch_size=size, seed=seed),
        }
        network = told["GIN"]
        for way, found in told.items():
            numbers |= said(f"{name}, {way}", found)
            drawn.append(_bar(name, way, found.mean, found.deviation_of_folds))
        best = network.best_of_each_fold
        drawn.append(_bar(name, "GIN, best epoch on test", float(best.mean()), network.deviation_of_folds))
        own = network.test.gather(2, network.chosen[..., None])[..., 0]
        gap = (network.test.amax(2) - own).mean(0)
        numbers |= n.summary(f"{name}, flattered by the best epoch on test", gap.tolist())
        numbers[f"{name}, flattered by the best mean epoch"] = (
            float(network.best_of_all_folds.mean()) - network.mean
        )
        numbers[f"{name}, GIN, best epoch on test, accuracy"] = float(best.mean())
        flattered[name] = numbers[f"{name}, flattered by the best epoch on test, low"]
        equal.append(told["subtree"].mean >= network.mean - network.deviation_of_folds)
        if name == "molecules":
            blind = evaluate_network(build, shuffled(graphs, seed), splits[:1], epochs=epochs, seed=seed)
            numbers |= said("molecules of shuffled labels, GIN", blind)
            numbers["molecules of shuffled labels, GIN, best epoch on test, accuracy"] = float(
                blind.best_of_each_fold.mean()
            )
    all_equal, all_flatter = all(equal), all(low > FLATTERS for low in flattered.values())
    verdict = (
        "reproduced"
        if all_equal and all_flatter
        else "partly"
        if all_equal or all_flatter
        else "not reproduced"
    )
    text = "; ".join(
        f"{name}: subtree {numbers[f'{name}, subtree, accuracy']:.3f}, GIN {numbers[f'{name}, GIN, accuracy']:.3f} "
        f"(deviation of folds {numbers[f'{name}, GIN, deviation of folds']:.3f}), flattered by "
        f"{numbers[f'{name}, flattered by the best epoch on test']:.3f} (at least {low:.3f})"
        for name, low in flattered.items()
    )
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"{text}; with labels shuffled the best epoch reads "
        f"{numbers['molecules of shuffled labels, GIN, best epoch on test, accuracy']:.3f} where 0.5 is true",
        figure=bars(
            "One protocol: accuracy and deviation of folds", drawn, category="set", value="accuracy", series="method",
            band=("low", "high"), horizontal=False,
        ),
        conditions=(
            "Two repetitions of ten folds (one for PROTEINS) instead of ten, 60 epochs (30) and a GIN of three "
            "layers of width 32 and sums of all layers; MUTAG and PROTEINS where MICROTOME_GRAPHS has them, generated "
            "molecules always.",
            "The interval of what is flattered is over folds, each averaged over repetitions; training sets overlap, "
            "so it is narrower than independent sets would give.",
        ),
    )  # fmt: skip


def _bar(name: str, way: str, mean: float, deviation: float) -> dict[str, Any]:
    return {"set": name, "method": way, "accuracy": mean, "low": mean - deviation, "high": mean + deviation}


STUDY = Study(
    paper="tudataset",
    claim="Under one protocol (ten folds, inner selection) a support vector machine on the subtree kernel is no worse "
    "than a GIN by more than its deviation over folds on every set, and reporting a GIN at its best epoch on the test "
    "fold flatters it by more than 0.02.",
    null="The network is better by more than a deviation on some set, or the best epoch on test graphs is no better.",
    control="The same folds for all; shuffled labels; the shortest-path kernel.",
    threshold="Accuracy of the kernel at least the GIN's less its deviation of folds, on each set; lower end of what "
    "is flattered above 0.02, on each set; one of the two is 'partly'.",
    measure=measure,
    uses=(
        "microtome.learn.graph_protocol.evaluate_kernels",
        "microtome.learn.graph_protocol.evaluate_network",
        "microtome.graphs.kernels.subtree_kernels",
    ),
    example="from torch_geometric.data import Batch\nfrom microtome.data.graph_generators import two_motifs\n"
    "from microtome.graphs.kernels import cosine, subtree_kernels\n"
    "from microtome.learn.graph_protocol import evaluate_kernels, repeated_folds\n"
    "some = Batch.from_data_list(two_motifs(60))\nkernels = cosine(subtree_kernels(some.edge_index, some.batch, 60))\n"
    "print(evaluate_kernels({5: kernels[5]}, some.y, repeated_folds(some.y, repetitions=1)).mean)",
    relates={
        "benchmarking-gnns": "both hold the protocol equal before networks are compared",
        "1-wl-is-all-you-need": "the subtree kernel counts the colours that bound message passing",
    },
)
