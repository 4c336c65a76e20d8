"""Is a graph cleaned by its p-Laplacian, cheaply, a better one to train on than a cut or a low-rank one?"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from microtome.figures import line
from microtome.graphs.plapgnn import PLaplacianCleaning, WeightedGCN, distances
from microtome.graphs.poisoning import injected
from microtome.graphs.purification import LowRank, injected_auroc, similarity
from microtome.statistics import student
from microtome.studies.security import _poisoning_suite as suite
from microtome.study import Measured, Outcome, Study

GAIN, CHEAPER = 0.01, 1.0
OUTCOMES: tuple[Outcome, ...] = ("not reproduced", "partly", "reproduced")
POWERS = {2.0: (1.0, 3.0, 6.0), 8.0: (0.25, 0.6, 1.2)}
"""Powers of the distance, and the weights of the energy to choose from."""


def _cleaned(trial: suite.Trial, graph: Any, pairs: Any) -> dict[float, tuple[float, float, Any, float]]:
    """By power, at the best weight of the energy: validation and test accuracy, edge weights, seconds of cleaning."""
    found = {}
    for p, smooths in POWERS.items():
        tried = []
        for smooth in smooths:
            clean = PLaplacianCleaning(p=p, smooth=smooth)
            began = time.process_time()
            weight = clean.weigh(pairs, graph.x)
            seconds = time.process_time() - began
            changed = clean.with_weight(graph, weight)
            build = partial(
                WeightedGCN, changed.edge_weight, trial.rows.shape[1], suite.HIDDEN, trial.classes
            )
            test, validation, _ = trial.fitted(build, changed)
            tried.append((validation, test, weight, seconds))
        found[p] = max(tried, key=lambda t: t[0])
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Accuracy, edge weights and seconds on Cora under random, DICE, gradient and adaptive flips."""
    budgets = (0.25,) if smoke else suite.BUDGETS
    worst, note, ordinary = budgets[-1], "", ("GCN", "Jaccard", "low rank")
    found = suite.Numbers()
    for trial in suite.trials(smoke, range(seed + 1, seed + (2 if smoke else 6))):
        note = trial.note
        known = suite.Alike(trial.graph.x)
        edges = injected(trial.graph)[0]
        around = suite.adaptive(trial.seed, known, float(known(None, edges).median()))
        worlds = [("clean", trial.graph)]
        for attack, how in {**suite.attacks(trial.seed), "adaptive": around}.items():
            shares = budgets if attack == "gradient" else (worst,)
            worlds += [(f"{attack} {s:.0%}", g) for s, g in trial.poisoned(how, shares)]
        found.add("accuracy, no edges", trial.edgeless())
        for at, graph in worlds:
            pairs, marks = injected(graph)
            by_power = _cleaned(trial, graph, pairs)
            best = max(by_power.values(), key=lambda t: t[0])
            found.add(f"accuracy, pLapGNN, {at}", best[1])
            for p, (_, test, weight, _) in by_power.items():
                found.add(f"accuracy, p = {p:.0f}, {at}", test)
                found.add(f"AUC, weights of p = {p:.0f}, {at}", injected_auroc(weight, marks))
            for name, value in trial.ordinary(graph, (0.01, 0.03, 0.05, 0.1), (15, 50)).items():
                found.add(f"accuracy, {name}, {at}", value)
            began = time.process_time()
            low = LowRank(graph.edge_index, graph.num_nodes, min(50, graph.num_nodes // 4))
            seconds = time.process_time() - began
            found.add(f"AUC, low rank, {at}", injected_auroc(low.score(pairs), marks))
            found.add(f"AUC, distance of features, {at}", injected_auroc(-distances(graph.x, pairs), marks))
            found.add(f"AUC, Jaccard, {at}", injected_auroc(similarity(graph.x, pairs, "jaccard"), marks))
            if at == f"gradient {worst:.0%}":
                found.add("seconds, cleaning", best[3])
                found.add("seconds, eigenpairs of the low rank", seconds)
                found.add("seconds, cleaning over low rank", best[3] / max(seconds, 1e-3))
    at = f"gradient {worst:.0%}"
    gain = student(found.less(f"accuracy, pLapGNN, {at}", [f"accuracy, {o}, {at}" for o in ordinary]))
    lost = student(found.less("accuracy, pLapGNN, clean", ["accuracy, GCN, clean"]))
    ratio = student(found.values["seconds, cleaning over low rank"])
    numbers = dict(found.all())
    for label, values in (
        (f"pLapGNN less the best other, {at}", gain),
        ("pLapGNN less the GCN, clean", lost),
    ):
        numbers |= dict(zip((label, f"{label}, low", f"{label}, high"), values, strict=True))
    mean, evaded = found.mean, f"adaptive {worst:.0%}"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else OUTCOMES[(gain[1] > GAIN) + (ratio[2] < CHEAPER)],
        decided_by=f"with {worst:.0%} of the edges flipped by gradient pLapGNN is {gain[0]:.3f} more accurate "
        f"than the best plain defence (at least {gain[1]:.3f}, threshold {GAIN}; "
        f"{mean(f'accuracy, pLapGNN, {at}'):.3f}, without edges {mean('accuracy, no edges'):.3f}) and its "
        f"cleaning takes {ratio[0]:.2f} of the low rank's seconds (at most {ratio[2]:.2f}, threshold "
        f"{CHEAPER:.0f}); its weights find injected edges with an AUC of "
        f"{mean(f'AUC, weights of p = 8, {at}'):.3f}, the distances they are made of with "
        f"{mean(f'AUC, distance of features, {at}'):.3f}; on the clean graph it loses {-lost[0]:.3f}; an "
        f"attacker who adds alike pairs only leaves it {mean(f'accuracy, pLapGNN, {evaded}'):.3f}",
        figure=line(
            "Accuracy under gradient poisoning", suite.points(found, "gradient", ("pLapGNN", *ordinary), budgets),
            x="share", y="accuracy", series="defence", rules={"no edges": mean("accuracy, no edges")},
        ),
        conditions=(
            f"{note}; networks see 64 leading directions of the features.",
            "Power (2 or 8) and weight of the energy (three each) are chosen on validation nodes, as are four "
            "Jaccard thresholds and two ranks; the grid was laid out on the split of seed 0, the run has the "
            "seeds 1 to 5.",
            "The closeness is a difference of Laplacians over the given edges; the paper's abstract leaves it "
            "open. Powers below 2, or a power of the weights below 1, did worse on seed 0.",
            "The adaptive attacker adds only pairs whose features are as alike as the median true edge's. "
            "Random, DICE and adaptive flips at the largest budget alone.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="plapgnn",
    claim="Weights that trade nearness to the given graph against the energy of its weighted p-Laplacian "
    "leave a GCN more than 0.01 more accurate at 25 % flips chosen by gradient than the plain GCN, Jaccard "
    "cutting and low rank, for less time of cleaning than the low rank's eigenpairs.",
    null="The distances of features that the energy is made of, used as a threshold, do as well.",
    control="Jaccard cutting (the same features, no Laplacian), low rank, the plain GCN, no edges; the clean "
    "graph; the AUC of the bare distances; an attacker who adds alike pairs only.",
    threshold="Lower end of the difference to the best other on average above 0.01, upper end of the ratio of "
    "processor seconds below 1, over seeds.",
    measure=measure,
    uses=(
        "microtome.graphs.plapgnn.PLaplacianCleaning",
        "microtome.graphs.plapgnn.WeightedGCN",
        "microtome.graphs.poisoning.GradientFlips",
    ),
    example="from microtome.data.graph_generators import stochastic_blocks\nfrom microtome.graphs.plapgnn "
    "import PLaplacianCleaning\nfrom microtome.graphs.poisoning import GradientFlips\ngraph = "
    "stochastic_blocks(300, features=8)\nprint(PLaplacianCleaning(p=8, "
    "smooth=0.5)(GradientFlips(share=0.2)(graph)))",
    relates={
        "stable": "both clean a poisoned graph once before training; under the same 25 % flips by gradient of "
        "Cora STABLE keeps 0.739 of accuracy and pLapGNN 0.711, but STABLE trains an encoder and loses 0.03 "
        "on the clean graph, pLapGNN nothing"
    },
)
