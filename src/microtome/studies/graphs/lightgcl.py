"""Does a contrast with the truncated SVD of the interactions make recommendation by propagation better?"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Literal

from torch import Tensor

from microtome.data.graphs import folder
from microtome.data.interactions import Interactions, lastfm, planted
from microtome.errors import UsageError
from microtome.figures import bars
from microtome.learn.graph_training import KeepBest
from microtome.learn.link_training import fit_facts
from microtome.learn.recommendation import Recommended, recommended
from microtome.nn.lightgcl import LightGCL, normalised_svd
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

BETTER = 0.01
PLAIN, EDGES, SVD, SCORES = "LightGCN", "edges left out", "SVD contrast", "SVD alone"
VIEWS: dict[str, Literal["svd", "edges"]] = {EDGES: "edges", SVD: "svd"}
RANKS = (3, 6, 12, 24, 48, 96)


def _truncated(data: Interactions, rank: int) -> Any:
    left, s, right = normalised_svd(data.train, data.users, data.items, rank)
    return lambda users: (left[users] * s) @ right.T


def _recall(scores: Any, data: Interactions) -> float:
    return float(recommended(scores, data).recall.mean())


def _svd(data: Interactions, chosen: Interactions) -> Recommended:
    """Scores of the truncated SVD of the pairs that the others learn from, of the rank that is best on the rest."""
    ranks = [r for r in RANKS if r < min(data.users, data.items)]
    rank = max(ranks, key=lambda r: _recall(_truncated(chosen, r), chosen))
    return recommended(_truncated(chosen, rank), data)


def _loss(model: Any, user: Tensor, _: Tensor, item: Tensor, weight: float) -> Tensor:
    return model.ranking_loss(user, item, weight=weight)


def _fit(
    data: Interactions, chosen: Interactions, name: str, weight: float, seed: int, options: dict[str, Any]
) -> tuple[float, Recommended, float]:
    """Recall on held-out training pairs at the best epoch, what it answers then, seconds an epoch."""
    build = partial(LightGCL, data.users, data.items, chosen.train, view=VIEWS.get(name, "svd"))
    model = n.seeded(build, seed)
    keep = KeepBest(model, lambda: -_recall(model.scores, chosen), every=5)
    start = time.process_time()
    fit_facts(
        model, chosen.facts(), loss=partial(_loss, weight=weight), seed=seed, after_epoch=keep, **options
    )
    seconds = (time.process_time() - start) / options["epochs"]
    keep.restore()
    return -keep.best, recommended(model.scores, data), seconds


def _arms(
    data: Interactions, weights: tuple[float, ...], seed: int, options: dict[str, Any]
) -> dict[str, tuple[Recommended, float, float]]:
    """By name: answers, weight of the contrast, seconds an epoch."""
    chosen = data.validation(seed=seed)
    _, answers, seconds = _fit(data, chosen, PLAIN, 0.0, seed, options)
    found = {PLAIN: (answers, 0.0, seconds)}
    for name in VIEWS:
        runs = [(*_fit(data, chosen, name, w, seed, options), w) for w in weights]
        _, answers, seconds, weight = max(runs, key=lambda run: run[0])
        found[name] = (answers, weight, seconds)
    found[SCORES] = (_svd(data, chosen), 0.0, 0.0)
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Planted tastes with popularity and noise; LastFM where it is there."""
    seeds, epochs, sizes = (2, 5, (60, 60)) if smoke else (5, 50, (600, 400))
    weights = (0.01,) if smoke else (0.001, 0.01, 0.05)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 2048, "rate": 0.005}
    overall: dict[str, list[float]] = {}
    sparse: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    for s in range(seed, seed + seeds):
        data = planted(*sizes, activity=(4, 12 if smoke else 40), seed=s)
        rank = data.activity().argsort().argsort()  # 0 for the user with the fewest items
        for name, (answers, weight, took) in _arms(data, weights, s, options).items():
            few = rank[answers.users] < data.users // 5
            overall.setdefault(name, []).append(float(answers.recall.mean()))
            sparse.setdefault(name, []).append(float(answers.recall[few].mean()))
            seconds.setdefault(name, []).append(took)
            used.setdefault(name, []).append(weight)
    numbers: dict[str, float] = {}
    for name in overall:
        numbers |= n.summary(f"recall at 20, planted, {name}", overall[name])
        numbers |= n.summary(f"recall at 20, planted, sparsest fifth of users, {name}", sparse[name])
        if name in VIEWS:
            numbers |= n.summary(f"weight of the contrast chosen, {name}", used[name])
        if name != SCORES:
            numbers |= n.summary(f"seconds an epoch, planted, {name}", seconds[name])
    for other in (PLAIN, EDGES, SCORES):
        for which, found in (("planted", overall), ("planted, sparsest fifth of users", sparse)):
            lead = [a - b for a, b in zip(found[SVD], found[other], strict=True)]
            numbers |= n.summary(f"SVD contrast above {other}, {which}", lead)
    read = not smoke and _there()
    if read:
        options = {"epochs": 40, "batch_size": 8192, "rate": 0.01}
        for name, (answers, _, _) in _arms(lastfm(), (0.01,), seed, options).items():
            numbers[f"recall at 20, LastFM, {name}"] = float(answers.recall.mean())
            numbers[f"gain at 20, LastFM, {name}"] = float(answers.gain.mean())
    leads = {o: numbers[f"SVD contrast above {o}, planted, low"] for o in (PLAIN, EDGES, SCORES)}
    means = {o: numbers[f"SVD contrast above {o}, planted"] for o in leads}
    poor = numbers[f"SVD contrast above {PLAIN}, planted, sparsest fifth of users, low"]
    better = leads[PLAIN] > BETTER
    verdict = (
        "reproduced"
        if better and leads[EDGES] > 0 and leads[SCORES] > 0 and poor > BETTER
        else "partly"
        if better or poor > BETTER
        else "not reproduced"
    )
    rows = [
        {"method": name, "users": which, "recall": sum(found[name]) / len(found[name])}
        for which, found in (("all", overall), ("sparsest fifth", sparse))
        for name in overall
    ]
    listened = ", ".join(f"{name} {numbers[f'recall at 20, LastFM, {name}']:.3f}" for name in overall if read)
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"with the SVD contrast recall at 20 is {means[PLAIN]:+.4f} against LightGCN (at least "
        f"{leads[PLAIN]:+.4f}, threshold {BETTER}), {means[EDGES]:+.4f} against the contrast with edges left out (at "
        f"least {leads[EDGES]:+.4f}), {means[SCORES]:+.4f} against the truncated SVD alone (at least "
        f"{leads[SCORES]:+.4f}), and for the sparsest fifth of users at least {poor:+.4f} against LightGCN"
        + (f"; on LastFM, one run: {listened}" if read else ""),
        figure=bars(
            "Recall at 20 on planted tastes", rows, category="method", value="recall", series="users"
        ),
        conditions=(
            "Planted tastes of 6 dimensions, items of unequal popularity, 10 % of the training pairs false; held-out "
            "items are drawn from the same law without noise.",
            f"A tenth of the training pairs chooses the epoch, the weight of the contrast (of {weights}) and the rank "
            f"of the SVD alone; the second view has rank 5, temperature 0.2, width 32, two layers, {epochs} epochs.",
            f"LastFM: {'one run of 40 epochs each, weight 0.01' if read else 'not there'}; it does not decide. A first "
            "run gave the contrasts 15 epochs and LightGCN 60, too few for them.",
            "Popularity bias itself is not measured.",
        ),
    )


def _there() -> bool:
    try:
        return (folder() / "lastfm" / "data1.txt").is_file()
    except UsageError:
        return False


STUDY = Study(
    paper="lightgcl",
    claim="LightGCN with a contrast between its own view and one through a truncated SVD recalls at least 0.01 more of "
    "the held-out items, also for the users with fewest items, more than with a contrast of left-out edges, and more "
    "than the truncated SVD by itself.",
    null="The contrast adds nothing, or what it adds the truncated SVD gives by itself.",
    control="LightGCN with the same loss, the same contrast with random edges left out, and scores of the truncated "
    "SVD; epoch, weight and rank chosen on held-out training pairs for each.",
    threshold="Lower ends over seeds: above 0.01 over LightGCN for all users and for the sparsest fifth, above 0 over "
    "left-out edges and over the SVD.",
    measure=measure,
    uses=(
        "microtome.nn.lightgcl.LightGCL",
        "microtome.data.interactions.planted",
        "microtome.learn.recommendation.recommended",
    ),
    example="from microtome.data.interactions import planted\nfrom microtome.learn.link_training import fit_facts\n"
    "from microtome.learn.recommendation import recommended\nfrom microtome.nn.lightgcl import LightGCL\n"
    "data = planted()\nmodel = LightGCL(data.users, data.items, data.train)\n"
    "fit_facts(model, data.facts(), loss=lambda m, user, _, item: m.ranking_loss(user, item, weight=0.001), epochs=9)\n"
    "print(recommended(model.scores, data).recall.mean())",
    relates={
        "gte-topological-closeness": "says that scores without learning compete; the truncated SVD alone recalls 0.033 "
        "less than LightGCN with a contrast",
        "sgc": "LightGCN is its propagation without nonlinearities, over users and items",
        "local-augmentation": "another view of the same graph; a view through the SVD gains 0.001 of recall over none, "
        "edges left out 0.003",
    },
)
