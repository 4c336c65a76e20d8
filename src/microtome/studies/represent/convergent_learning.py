"""Convergent learning: do different neural networks learn the same representations? (Li, Yosinski et al. 2016)."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from microtome import figures
from microtome.data.digits import tensors
from microtome.population import Population, Recipe, train
from microtome.population.matching import (
    bipartite_matching,
    semi_matching,
    sparse_prediction,
    spectral_clusters,
    subspace_overlap,
    unit_correlation,
)
from microtome.population.slices import cut, rows
from microtome.statistics import student
from microtome.study import Measured, Study

RECURS, NULL, BASIS, FEW = 0.7, 0.01, 0.2, 0.5
PREDICTORS = (1, 2, 5)
POSITIONS = 4000
Sides = tuple[Tensor, Tensor]
"""Activations [N, rows, units] of one layer on the examples that maps are fitted on, and on those they are read on."""


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10)
    )


def _cnn() -> nn.Module:
    first = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 10))


LAYERS = {
    "MLP, first": (_mlp, 3),
    "MLP, second": (_mlp, 5),
    "CNN, first": (_cnn, 2),
    "CNN, second": (_cnn, 5),
}


def _activations(population: Population, depth: int, parts: tuple[Tensor, Tensor]) -> Sides:
    """After ``depth`` layers; of convolutions every position counts, and at most some thousand are kept."""
    found = [rows(cut(population, 0, depth).predict(part)) for part in parts]
    draw = torch.Generator().manual_seed(0)
    kept = [torch.randperm(f.shape[1], generator=draw)[:POSITIONS] for f in found]
    one, two = (f[:, k] for f, k in zip(found, kept, strict=True))
    return one, two


def _dimensions(a: Tensor) -> int:
    """Principal directions that hold 90% of the variance."""
    share = torch.linalg.svdvals(a.double() - a.double().mean(0)).square()
    return int((share.cumsum(0) / share.sum() < 0.9).sum()) + 1


def _mixed(a: Tensor, b: Tensor, seed: int) -> float:
    """Share of clusters of 2 or more units, of both networks together, that hold units of both."""
    both = torch.cat([a, b], 1)
    similarity = unit_correlation(both, both).clamp(min=0)
    count = max(both.shape[1] // 4, 2)
    cluster = spectral_clusters(similarity, count, seed=seed)
    sizes = [torch.bincount(part, minlength=count) for part in cluster.split([a.shape[1], b.shape[1]])]
    real = (sizes[0] + sizes[1]) >= 2
    return float(((sizes[0] > 0) & (sizes[1] > 0))[real].double().mean())


def _pair(one: Sides, i: int, j: int, seed: int) -> tuple[dict[str, float], Tensor]:
    """What two networks have in common; and how well each living unit of the first is matched one-to-one."""
    (fit, test) = one
    a, b = fit[i], fit[j]
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    alive = b.std(0) > 0
    correlation = unit_correlation(test[i], test[j])
    r2 = sparse_prediction(a, b, [*PREDICTORS, a.shape[1]], held_out=(test[i], test[j]))[:, alive]
    null = sparse_prediction(a[order], b, [a.shape[1]], held_out=(test[i], test[j]))[:, alive]
    one_r2, all_r2 = float(r2[0].mean()), float(r2[-1].mean())
    k = min(_dimensions(a), _dimensions(b))
    _, matched = bipartite_matching(correlation)
    _, best = semi_matching(correlation)
    living = test[i].std(0) > 0
    shuffled = bipartite_matching(unit_correlation(a[order], b))[1][living]
    found = {
        "matched one-to-one, correlation": float(matched[living].mean()),
        "best match, correlation": float(best[living].mean()),
        "matched one-to-one, shuffled examples": float(shuffled.mean()),
        "subspace overlap": subspace_overlap(test[i], test[j], k),
        "subspace dimensions": float(k),
        "R2 of all units less R2 of one": all_r2 - one_r2,
        "R2 of all units, shuffled examples": float(null.mean()),
        "share of that gained by five": (float(r2[2].mean()) - one_r2) / max(all_r2 - one_r2, 1e-9),
        "clusters with units of both networks": _mixed(test[i], test[j], seed),
        "clusters with units of both, shuffled examples": _mixed(a[order], b, seed),
    } | {
        f"R2 from {count}": float(value.mean())
        for count, value in zip((*map(str, PREDICTORS), "all"), r2, strict=True)
    }
    return found, matched


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Every pair of networks at four layers: units, groups of units, subspaces; with known copies and nulls."""
    members, epochs = (2, 2) if smoke else (8, 30)
    seeds = range(1000 * seed, 1000 * seed + members)
    few = 150 if smoke else None
    x, y, test, truth = (part[:few] for part in (*tensors("train"), *tensors("test")))
    numbers: dict[str, float] = {"networks": float(members)}
    shown: list[dict[str, object]] = []
    trained: dict[object, Population] = {}
    for build in (_mlp, _cnn):
        population = Population.of(build, seeds)
        recipe = Recipe(optimizer="adam", rate=0.003, epochs=epochs, batch_size=32)
        train(population, x, y, recipe)
        numbers[f"{build.__name__[1:].upper()}, accuracy"] = float(
            (population.predict(test).argmax(-1) == truth).double().mean()
        )
        trained[build] = population
    held: dict[str, tuple[bool, bool, bool]] = {}
    for name, (build, depth) in LAYERS.items():
        sides = _activations(trained[build], depth, (x, test))
        fresh = _activations(Population.of(build, seeds), depth, (x, test))
        pairs = list(permutations(range(members), 2))[: 1 if smoke else None]
        matched: dict[int, list[Tensor]] = {}
        every: dict[str, list[list[float]]] = {}
        for i, j in pairs:
            found, match = _pair(sides, i, j, seed)
            matched.setdefault(i, []).append(match)
            untrained = bipartite_matching(unit_correlation(fresh[1][i], fresh[1][j]))[1]
            found["matched one-to-one, untrained networks"] = float(untrained.mean())
            for key, value in found.items():
                every.setdefault(key, [[] for _ in range(members)])[i].append(value)
        summary = {}
        for key, groups in every.items():  # pairs of one network are not independent: one value a network
            summary[key] = student([float(np.mean(g)) for g in groups if g])
            numbers[f"{name}, {key}"] = summary[key][0]
            if key in (
                "R2 of all units less R2 of one",
                "subspace overlap",
                "matched one-to-one, correlation",
            ):
                numbers |= {f"{name}, {key}, low": summary[key][1], f"{name}, {key}, high": summary[key][2]}
        # A unit recurs when it has its like in every other network.
        worst = torch.cat([torch.stack(m).amin(0) for m in matched.values()])
        alive = torch.cat([sides[1][i].std(0) > 0 for i in matched])
        worst = worst[alive].sort(descending=True).values
        recurring = float((worst >= RECURS).double().mean())
        numbers[f"{name}, share of units that recur in all networks"] = recurring
        order = torch.randperm(sides[1].shape[1], generator=torch.Generator().manual_seed(seed))
        null = bipartite_matching(unit_correlation(sides[1][0][order], sides[1][1]))[1]
        numbers[f"{name}, share of units matched so well in shuffled examples"] = float(
            (null >= RECURS).double().mean()
        )
        for place in np.linspace(0, len(worst) - 1, 25).round().astype(int):
            shown.append(
                {
                    "units, best first": float(place / max(len(worst) - 1, 1)),
                    "correlation": float(worst[place]),
                    "layer": name,
                }
            )
        features = sides[1][0]
        turn = torch.linalg.qr(
            torch.randn(features.shape[1], features.shape[1], generator=torch.Generator().manual_seed(seed))
        )[0]
        k = _dimensions(features)
        mixed = features @ turn
        numbers[f"{name}, own rotated copy, subspace overlap"] = subspace_overlap(features, mixed, k)
        numbers[f"{name}, own rotated copy, matched"] = float(
            bipartite_matching(unit_correlation(features, mixed))[1].mean()
        )
        living = features[:, features.std(0) > 0]
        back = living[:, torch.randperm(living.shape[1], generator=torch.Generator().manual_seed(seed))]
        numbers[f"{name}, own permuted copy, matched"] = float(
            bipartite_matching(unit_correlation(living, back))[1].mean()
        )
        some = 0.05 <= recurring <= 0.95 and (
            numbers[f"{name}, share of units matched so well in shuffled examples"] <= NULL
        )
        basis = summary["R2 of all units less R2 of one"]
        five = summary["share of that gained by five"][0]
        held[name] = (some, basis[0] >= BASIS and basis[1] > 0, five >= FEW)
    known = all(
        abs(v - 1) < 1e-3
        for k, v in numbers.items()
        if k.endswith(("copy, subspace overlap", "permuted copy, matched"))
    )
    counts = [sum(layer[part] for layer in held.values()) for part in range(3)]
    enough = [count >= 3 for count in counts]
    if not known:
        verdict = "inconclusive"
    else:
        verdict = "reproduced" if all(enough) else "partly" if any(enough) else "not reproduced"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"of 4 layers, some units recur in all networks and others do not (between 5% and 95% of them, "
        f"correlation "
        f"at least {RECURS}) in {counts[0]}; all units together explain at least {BASIS} of the variance more than "
        f"the best "
        f"one in {counts[1]}; five of them bring at least {FEW:.0%} of that in {counts[2]} (each must in 3); R2 "
        f"gained: "
        + ", ".join(f"{numbers[f'{n}, R2 of all units less R2 of one']:.2f} ({n})" for n in LAYERS),
        figure=figures.line(
            "Some units have their like in every network, others in none",
            shown,
            x="units, best first",
            y="correlation",
            series="layer",
            rules={"recurs": RECURS},
            points=False,
            caption="Correlation of a unit with its one-to-one match, in the network where it is matched worst.",
        ),
        conditions=(
            "A network with two hidden layers of 40 and one with two convolutions, on digits of 8 x 8 pixels, "
            "instead of "
            "AlexNet on ImageNet; of convolutions each position is an example.",
            "Prediction is by orthogonal matching pursuit instead of the lasso, so that the number of predictors is "
            "given, "
            "and is read on examples that it was not fitted on. Units that never change are left out.",
            "That bases differ is read as: one unit predicts another network's unit much worse than all units "
            "together do.",
        ),
    )


STUDY = Study(
    paper="convergent-learning",
    claim="Networks from different seeds share some single units in all of them but not others; they span a common "
    "subspace "
    "in different bases, so a unit is predicted far better by all units of another network than by its best one; and a "
    "few units suffice for most of that.",
    null="Units match no better than on shuffled examples; or the best single unit predicts as well as all, so that "
    "bases are "
    "the same; or no few units do, so that the code is spread over all of them.",
    control="Shuffled examples, untrained networks, a network's own permuted and rotated copy, whose answers are "
    "known.",
    threshold=f"In 3 of 4 layers each: 5% to 95% of units have one-to-one matches of correlation {RECURS} in all "
    f"other networks "
    f"(at most {NULL:.0%} in shuffled examples); R2 from all units at least {BASIS} above R2 from one, interval "
    f"above 0; five "
    f"units bring at least {FEW:.0%} of that. Copies must be read within 0.001, or it is inconclusive.",
    measure=measure,
    uses=(
        "microtome.population.matching:bipartite_matching",
        "microtome.population.matching:sparse_prediction",
        "microtome.population.matching:subspace_overlap",
        "microtome.population.matching:spectral_clusters",
        "microtome.population.slices:cut",
    ),
    example="a, b = cut(population, 0, 3).predict(x)[:2]  # two networks after three layers\n"
    "bipartite_matching(unit_correlation(a, b))\n"
    "sparse_prediction(a, b, [1, 2, 5])\n"
    "subspace_overlap(a, b, 10)",
)
