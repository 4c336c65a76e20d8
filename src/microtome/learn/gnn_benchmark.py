"""A fair comparison of graph networks: one budget of parameters, the same splits and seeds (Dwivedi et al. 2023).

Every network is an embedding of the features, ``depth`` layers of one convolution, each with batch normalisation, ReLU
and a residual sum, and a perceptron, of the node or of the mean over the graph. Width is what the budget allows.
Laplacian positional encodings are the first eigenvectors of the normalised Laplacian, appended to the features; an
eigenvector's sign means nothing, so each is drawn anew in every batch of training.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric, load
from microtome.errors import UsageError, nearest
from microtome.learn.graph_training import KeepBest, fit_graphs
from microtome.nn.benchmark_networks import NETWORKS, Level, build_network


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def width_for(build: Callable[[int], nn.Module], budget: int, *, step: int = 1, most: int = 4096) -> int:
    """The largest width, a multiple of ``step``, whose network has at most ``budget`` parameters; by bisection.

    Args:
        build: width -> network; the number of parameters must grow with the width.
        budget: parameters.
        step: such as the number of heads, which has to divide the width.
        most: a width that is not exceeded.

    Raises:
        UsageError: MT451 when the narrowest network has more.
    """

    def fits(multiple: int) -> bool:
        return multiple * step <= most and parameters(build(multiple * step)) <= budget

    low, high = 0, 1
    while fits(high):  # doubling first, so that no network much above the budget is made
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise UsageError(
            "MT451",
            f"even at width {step} the network has more than {budget} parameters",
            fix="raise the budget",
        )
    return low * step


@dataclass(frozen=True)
class Task:
    """Graphs in three parts.

    Attributes:
        name: for people.
        level: whether nodes, graphs or edges are classified; y is [nodes], [1] or [edges] of a graph.
        train, validation, test: ``Data`` with x, edge_index, y.
    """

    name: str
    level: Level
    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + max(int(g.y.max()) for part in (self.train, self.validation, self.test) for g in part)

    def encoded(self, count: int, *, seed: int = 0) -> Task:
        """The same with ``pe`` [nodes, count], the eigenvectors of the ``count`` least eigenvalues but the first.

        Args:
            count: eigenvectors.
            seed: of their signs, which PyTorch Geometric draws at random.
        """
        geometric()
        from torch_geometric.transforms import AddLaplacianEigenvectorPE

        add = AddLaplacianEigenvectorPE(count, attr_name="pe", is_undirected=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [[add(g.clone()) for g in part] for part in (self.train, self.validation, self.test)]
        return Task(self.name, self.level, *parts)


def split_task(
    name: str,
    level: Level,
    graphs: Sequence[Any],
    *,
    shares: tuple[float, float] = (0.6, 0.2),
    seed: int = 0,
) -> Task:
    """A task of shuffled graphs; of graphs with labels every class is split in the same shares."""
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    label = [int(graphs[i].y) if level == "graph" else 0 for i in order]
    parts: list[list[Any]] = [[], [], []]
    for c in sorted(set(label)):
        own = [graphs[i] for i, y in zip(order, label, strict=True) if y == c]
        first, second = round(shares[0] * len(own)), round(sum(shares) * len(own))
        for part, some in zip(parts, (own[:first], own[first:second], own[second:]), strict=True):
            part += some
    return Task(name, level, *parts)


def published_task(name: str, root: str | os.PathLike[str] | None = None, *, seed: int = 0) -> Task:
    """A set of labelled graphs read by :func:`microtome.data.graphs.load`, split 60 / 20 / 20 by class.

    Raises:
        UsageError: MT451 for a set that is one graph; MT443, MT444 when it is absent or unknown.
    """
    from torch_geometric.data import Data

    found = load(name, root)
    if isinstance(found, Data):
        raise UsageError(
            "MT451", f"'{name}' is one graph", fix="train on it by microtome.learn.graph_training.fit_nodes"
        )
    return split_task(name, "graph", list(found), seed=seed)


@dataclass(frozen=True)
class Result:
    """One network, one seed.

    Attributes:
        network, task, seed: what was trained.
        width, parameters: of the network.
        test, validation: mean of the classes' accuracies (nodes), accuracy (graphs), F1 of class 1 (edges), 0..1.
        seconds: of training.
    """

    network: str
    task: str
    seed: int
    width: int
    parameters: int
    test: float
    validation: float
    seconds: float


def compare(
    task: Task,
    networks: Iterable[str] = (),
    *,
    budget: int = 20_000,
    seeds: Iterable[int] = range(4),
    epochs: int = 30,
    rate: float = 0.003,
    batch_size: int = 16,
    depth: int = 4,
    flips: bool = True,
) -> list[Result]:
    """Train every network from every seed.

    Args:
        task: with ``pe`` (:meth:`Task.encoded`) positional encodings are read too.
        networks: of :data:`microtome.nn.benchmark_networks.NETWORKS`; all of them by default.
        budget: parameters, not exceeded by any.
        seeds: of weights and order.
        epochs, rate, batch_size: of Adam; the epoch with the best validation score counts.
        depth: layers.
        flips: whether the signs of the encodings are drawn anew in every batch of training.

    Raises:
        UsageError: MT451 for an unknown network, or one that cannot be as small as the budget.
    """
    names = tuple(networks) or tuple(NETWORKS)
    for name in names:
        if name not in NETWORKS:
            raise UsageError(
                "MT451", f"no network is called '{name}'", fix=nearest(name, NETWORKS) or ", ".join(NETWORKS)
            )
    return [
        _one(task, name, int(seed), budget, epochs, rate, batch_size, depth, flips)
        for name in names
        for seed in seeds
    ]


def _one(
    task: Task,
    name: str,
    seed: int,
    budget: int,
    epochs: int,
    rate: float,
    batch_size: int,
    depth: int,
    flips: bool,
) -> Result:
    from torch_geometric.data import Batch

    first = task.train[0]
    inputs = first.x.shape[1] + (first.pe.shape[1] if "pe" in first else 0)
    build = partial(build_network, name, inputs, task.classes, task.train, depth=depth, level=task.level)
    width = width_for(build, budget, step=NETWORKS[name])
    torch.manual_seed(seed)
    model = build(width)
    parts = {
        k: Batch.from_data_list(list(v)) for k, v in (("validation", task.validation), ("test", task.test))
    }
    best = KeepBest(model, lambda: -score(model, parts["validation"], task))
    signs = torch.Generator().manual_seed(seed)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        given = network(features(batch, signs if flips else None), batch.edge_index, batch.batch)
        return F.cross_entropy(given, batch.y, weight=_weights(batch.y, task))

    began = time.perf_counter()
    fit_graphs(
        model,
        task.train,
        epochs=epochs,
        rate=rate,
        batch_size=batch_size,
        seed=seed,
        loss=loss,
        after_epoch=best,
    )
    seconds = time.perf_counter() - began
    best.restore()
    return Result(
        name,
        task.name,
        seed,
        width,
        parameters(model),
        score(model, parts["test"], task),
        -best.best,
        seconds,
    )


def _weights(y: Tensor, task: Task) -> Tensor | None:
    """Of the classes, so that each counts alike in a batch of nodes or edges; none for graphs."""
    if task.level == "graph":
        return None
    count = torch.bincount(y, minlength=task.classes).float()
    return torch.where(count > 0, len(y) / count.clamp_min(1), torch.zeros_like(count))


def features(batch: Any, signs: torch.Generator | None = None) -> Tensor:
    """[nodes, d] x and, if there is one, the encoding; with ``signs`` each graph's eigenvectors get random ones."""
    if "pe" not in batch:
        x: Tensor = batch.x
        return x
    encoding = batch.pe
    if signs is not None:
        drawn = torch.randint(0, 2, (batch.num_graphs, encoding.shape[1]), generator=signs) * 2 - 1
        encoding = encoding * drawn[batch.batch]
    return torch.cat([batch.x, encoding], 1)


def score(model: nn.Module, batch: Any, task: Task) -> float:
    """Accuracy of graphs; of nodes the mean of the classes' accuracies; of edges :func:`f1`."""
    model.eval()
    with torch.no_grad():
        told = model(features(batch), batch.edge_index, batch.batch).argmax(1)
    if task.level == "edge":
        return f1(told, batch.y)
    right = (told == batch.y).double()
    if task.level == "graph":
        return float(right.mean())
    count = torch.bincount(batch.y, minlength=task.classes)
    hits = torch.bincount(batch.y, right, minlength=task.classes)
    return float((hits / count.clamp_min(1))[count > 0].mean())


def f1(told: Tensor, y: Tensor) -> float:
    """Of class 1: 2 hits / (told + there are); 0 where there is none of either."""
    hits, both = ((told == 1) & (y == 1)).sum(), (told == 1).sum() + (y == 1).sum()
    return float(2 * hits / both) if both else 0.0


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings: 1 for the same order, -1 for the opposite; 0 where one is constant."""
    p, q = (np.sign(np.subtract.outer(v, v)) for v in (np.asarray(a), np.asarray(b)))
    scale = float(np.sqrt((p**2).sum() * (q**2).sum()))
    return float((p * q).sum()) / scale if scale else 0.0


def rank_stability(results: Sequence[Result]) -> float:
    """Mean of :func:`kendall` over pairs of seeds, each seed ranking the networks by test score.

    Raises:
        UsageError: MT451 for fewer than two seeds or networks.
    """
    seeds, names = sorted({r.seed for r in results}), sorted({r.network for r in results})
    if len(seeds) < 2 or len(names) < 2:
        raise UsageError("MT451", f"{len(seeds)} seeds of {len(names)} networks have no order to compare")
    held = {(r.network, r.seed): r.test for r in results}
    rows = [[held[name, s] for name in names] for s in seeds]
    return float(np.mean([kendall(a, b) for i, a in enumerate(rows) for b in rows[:i]]))


__all__ = [
    "Result", "Task", "compare", "f1", "features", "kendall", "parameters", "published_task", "rank_stability", "score",
    "split_task", "width_for",
]  # fmt: skip
