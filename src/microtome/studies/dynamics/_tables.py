"""Networks and boosted trees on tables: their errors, and their kernels, at regular and at irregular inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from microtome.learn.boosted_kernels import leaf_kernels
from microtome.learn.squared_error import half_squared_error
from microtome.population import Moment, Population, Recipe, geometric, train
from microtome.population.tangent_kernel import jacobians

NEAREST, IRREGULAR, TRAINED, KEPT = 10, 0.2, 0.45, 0.15
"""Neighbours whose mean distance says how irregular an example is; the shares of all that are irregular, trained on,
and held out to choose when to stop. What remains, a fifth, are the regular examples of the test."""


def tables(smoke: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs [n, d] and targets [n] of four tables that come with scikit-learn, or are drawn by it."""
    from sklearn import datasets

    drawn = {
        "friedman 1": datasets.make_friedman1(500, noise=1.0, random_state=0),
        "friedman 2": datasets.make_friedman2(500, noise=125.0, random_state=0),
    }
    kept = {
        "diabetes": datasets.load_diabetes(return_X_y=True),
        "breast cancer": datasets.load_breast_cancer(return_X_y=True),
    }
    found = {
        name: (torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32))
        for name, (x, y) in (kept | drawn).items()
    }
    return dict(list(found.items())[:1]) if smoke else found


def compared(x: Tensor, y: Tensor, seeds: range, steps: int, trees: int) -> dict[str, np.ndarray]:
    """By name [seeds]: "network, regular", ... squared error over the variance; "network, kernel", "trees, kernel".

    A kernel's number is the mean length of its rows k(x, .) at irregular inputs over that at regular ones, averaged
    over steps. Irregular examples are those farthest from their nearest; nothing is trained on them. Both learners stop
    where they are best on held-out regular examples.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    x = (x - x.mean(0)) / x.std(0)
    far = torch.cdist(x, x).topk(NEAREST + 1, largest=False).values[:, 1:].mean(1)
    odd = far.topk(round(IRREGULAR * len(x))).indices
    usual = torch.ones(len(x), dtype=torch.bool).index_fill_(0, odd, False).nonzero()[:, 0]
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = torch.stack([usual[torch.randperm(len(usual), generator=draw)] for draw in draws])
    n, kept = round(TRAINED * len(x)), round(KEPT * len(x))
    index = {
        "train": order[:, :n],
        "held out": order[:, n : n + kept],
        "regular": order[:, n + kept :],
        "irregular": odd.expand(len(draws), -1),
    }
    part = {name: x[rows] for name, rows in index.items()}
    mean, spread = y[index["train"]].mean(1, keepdim=True), y[index["train"]].std(1, keepdim=True)
    truth = {name: (y[rows] - mean) / spread for name, rows in index.items()}
    build = lambda: nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))  # noqa: E731
    population = Population.of(build, seeds)
    errors: dict[str, list[Tensor]] = {name: [] for name in index}
    lengths: list[Tensor] = []

    def look(moment: Moment) -> None:
        for name in index:
            answers = moment.population.predict(part[name], private=True)[..., 0]
            errors[name].append((answers - truth[name]).square().mean(1))
        lengths.append(
            torch.stack([_lengths(moment.population.copy([i]), part, i) for i in range(len(seeds))])
        )

    recipe = Recipe(rate=0.05, steps=steps, loss=half_squared_error)
    seen = geometric(steps, 30)
    train(
        population,
        part["train"],
        truth["train"][..., None],
        recipe,
        private=(True, True),
        observers=[(look, seen)],
    )
    curve = {name: torch.stack(each) for name, each in errors.items()}  # [t, seeds]
    best = curve["held out"].argmin(0)
    member = torch.arange(len(seeds))
    found = {f"network, {kind}": curve[kind][best, member] for kind in ("regular", "irregular")}
    rows = torch.stack(lengths)  # [t, seeds, 2]
    ratio = rows[..., 1] / rows[..., 0]
    found["network, kernel"] = torch.stack([ratio[: b + 1, i].mean() for i, b in enumerate(best.tolist())])

    boosted: dict[str, list[float]] = {"trees, regular": [], "trees, irregular": [], "trees, kernel": []}
    for i, seed in enumerate(seeds):
        own = {name: part[name][i] for name in index}
        model = GradientBoostingRegressor(n_estimators=trees, random_state=seed)
        model.fit(own["train"].numpy(), truth["train"][i].numpy())
        staged = {
            name: np.square(
                np.stack(list(model.staged_predict(own[name].numpy()))) - truth[name][i].numpy()
            ).mean(1)
            for name in ("held out", "regular", "irregular")
        }
        stop = int(staged["held out"].argmin())
        for kind in ("regular", "irregular"):
            boosted[f"trees, {kind}"].append(staged[kind][stop])
        both = torch.cat([own["regular"], own["irregular"]])
        kernels = list(leaf_kernels(model, own["train"], both))[: stop + 1]
        length = torch.stack([k.norm(dim=1) for k in kernels])
        cut = len(own["regular"])
        boosted["trees, kernel"].append(float((length[:, cut:].mean(1) / length[:, :cut].mean(1)).mean()))
    return {name: np.asarray(value, dtype=float) for name, value in (found | boosted).items()}


def _lengths(one: Population, part: dict[str, Tensor], i: int) -> Tensor:
    """[2] mean length of the tangent kernel's rows at regular and at irregular inputs, of a population of one."""
    inputs = [part[name][i] for name in ("train", "regular", "irregular")]
    (flat,) = (j[:, 0] for j in jacobians(one, torch.cat(inputs)))
    own, regular, irregular = flat.split([len(each) for each in inputs])
    return torch.stack([(rows @ own.T).norm(dim=1).mean() for rows in (regular, irregular)])


__all__ = ["compared", "tables"]
