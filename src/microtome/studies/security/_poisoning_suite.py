"""What the studies of poisoned graphs share: the graph, attacks at budgets, ordinary defences, and bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import LargestConnectedComponents

from microtome.data import graphs
from microtome.data.graph_generators import stochastic_blocks
from microtome.graphs.poisoning import (
    DICE,
    GradientFlips,
    InsertBetweenClasses,
    Poison,
    Suspicion,
    flipped,
    reduced,
)
from microtome.graphs.purification import DropUnlike, LowRank, LowRankGCN
from microtome.graphs.resistance import undirected
from microtome.learn.graph_training import fit_nodes
from microtome.statistics import student
from microtome.studies.graphs._networks import NodeNetwork, Own, seeded

BUDGETS = (0.05, 0.15, 0.25)
HIDDEN = 32


@dataclass
class Trial:
    """One seed: a graph with a random split (10 % train, 10 % validation), and the rows that networks are given.

    ``graph.x`` are the features as published, by which defences judge; ``rows`` [n, 64] their leading directions, on
    which a GCN is as accurate and three times as fast.
    """

    graph: Any
    rows: Tensor
    seed: int
    epochs: int
    note: str

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.graph.y.max()) + 1

    def fitted(
        self, build: Callable[[], nn.Module], graph: Any, rows: Tensor | None = None
    ) -> tuple[float, float, nn.Module]:
        """Test and validation accuracy of a network trained on a graph, and the network."""
        shown = graph.clone()
        shown.x = self.rows if rows is None else rows
        network: nn.Module = seeded(build, self.seed)
        return (*fit_nodes(network, shown, epochs=self.epochs), network)

    def gcn(self, width: int | None = None) -> Callable[[], nn.Module]:
        """A GCN of two layers for rows of ``width``."""
        return lambda: NodeNetwork(GCNConv, [width or self.rows.shape[1], HIDDEN, self.classes])

    def ordinary(
        self, graph: Any, thresholds: tuple[float, ...] = (0.01, 0.05), ranks: tuple[int, ...] = (30,)
    ) -> dict[str, float]:
        """Test accuracy of the plain GCN and of plain defences, each of the setting best on validation nodes."""
        jaccard = [self.fitted(self.gcn(), DropUnlike(t)(graph)) for t in thresholds]
        most = min(max(ranks), graph.num_nodes // 4)
        lows = [LowRank(graph.edge_index, graph.num_nodes, min(r, most)) for r in ranks]
        width = self.rows.shape[1]
        low = [self.fitted(partial(LowRankGCN, m, width, HIDDEN, self.classes), graph) for m in lows]
        return {
            "GCN": self.fitted(self.gcn(), graph)[0],
            "Jaccard": max(jaccard, key=lambda f: f[1])[0],
            "low rank": max(low, key=lambda f: f[1])[0],
        }

    def edgeless(self) -> float:
        """Test accuracy without any edge: what a defence has to keep above."""
        return self.fitted(lambda: NodeNetwork(Own, [self.rows.shape[1], HIDDEN, self.classes]), self.graph)[
            0
        ]

    def poisoned(self, attack: Poison, budgets: Iterable[float]) -> Iterator[tuple[float, Any]]:
        """The graph at each budget, of one search at the largest."""
        budgets = sorted(budgets)
        attack.share = budgets[-1]
        flips = attack.flips(self.graph)
        edges = undirected(self.graph.edge_index, self.graph.num_nodes).shape[1]
        for share in budgets:
            yield share, flipped(self.graph, flips[:, : round(share * edges)])


def trials(smoke: bool, seeds: Iterable[int], words: int = 300) -> Iterator[Trial]:
    """One a seed: Cora's largest component where it is at hand, else a block model with topics for words."""
    real = not smoke and graphs.available("cora")
    cora = LargestConnectedComponents()(graphs.load("cora")) if real else None
    for seed in seeds:
        if cora is not None:
            graph = cora.clone()
            note = f"Cora's largest component ({graph.num_nodes} nodes), random splits of 10/10/80 %"
        else:
            graph = topics(150 if smoke else 1500, words=words, seed=seed)
            note = f"a block model of {graph.num_nodes} nodes with words by topic, for Cora is not at hand"
        order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(seed))
        ends = (0, round(0.1 * len(order)), round(0.2 * len(order)), len(order))
        for name, first, last in zip(("train", "val", "test"), ends, ends[1:], strict=False):
            mask = torch.zeros(len(order), dtype=torch.bool)
            mask[order[first:last]] = True
            graph[f"{name}_mask"] = mask
        rows = reduced(graph.x, 64)
        yield Trial(graph, rows / rows.norm(dim=1).mean(), seed, 10 if smoke else 80, note)


def topics(nodes: int, classes: int = 5, *, words: int = 300, seed: int = 0) -> Any:
    """A block model of degree 4, homophily 0.8; x [n, words] are words, those of the class three times as likely."""
    graph = stochastic_blocks(nodes, classes, degree=4, homophily=0.8, features=classes, seed=seed)
    own = torch.arange(words) % classes == graph.y[:, None]
    draw = torch.rand(nodes, words, generator=torch.Generator().manual_seed(seed))
    graph.x = (draw < torch.where(own, 0.09, 0.03)).float()
    return graph


def attacks(seed: int) -> dict[str, Poison]:
    """The attacks that know of no defence, by name."""
    return {
        "random": InsertBetweenClasses(seed=seed),
        "DICE": DICE(seed=seed),
        "gradient": GradientFlips(seed=seed),
    }


class Alike:
    """Suspicion of an attacker who knows that rows [n, d] are compared: less their cosine, looked up."""

    def __init__(self, rows: Tensor) -> None:
        unit = torch.nn.functional.normalize(rows.float(), dim=1)
        self.cosine = unit @ unit.T

    def __call__(self, graph: Any, pairs: Tensor) -> Tensor:
        """[p]."""
        return -self.cosine[pairs[0], pairs[1]]


def adaptive(seed: int, suspicion: Suspicion, tolerated: float) -> GradientFlips:
    """The gradient attack of someone who knows the defence's score of edges and stays at or below ``tolerated``."""
    return GradientFlips(
        seed=seed, rounds=10, breadth=256, suspicion=suspicion, tolerated=tolerated, delete=False
    )


class Numbers:
    """Values by name over seeds, and their means with Student's intervals."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, value: float | None) -> None:
        """One seed's value."""
        if value is not None:
            self.values.setdefault(name, []).append(float(value))

    def less(self, name: str, others: Iterable[str]) -> list[float]:
        """By seed, the value less that of whichever of ``others`` is best on average."""
        best = max((self.values[o] for o in others), key=lambda v: sum(v) / len(v))
        return [a - b for a, b in zip(self.values[name], best, strict=True)]

    def mean(self, name: str) -> float:
        """Over seeds."""
        return student(self.values[name])[0]

    def all(self) -> Mapping[str, float]:
        """Mean, low and high of each."""
        found: dict[str, float] = {}
        for name, values in self.values.items():
            found[name], found[f"{name}, low"], found[f"{name}, high"] = student(values)
        return found


def points(
    numbers: Numbers, attack: str, names: Iterable[str], budgets: Iterable[float]
) -> list[dict[str, Any]]:
    """Rows for a figure of accuracy by budget."""
    return [
        {
            "share": s,
            "defence": name,
            "accuracy": numbers.mean(
                f"accuracy, {name}, {attack} {s:.0%}" if s else f"accuracy, {name}, clean"
            ),
        }
        for name in names
        for s in (0.0, *budgets)
    ]
