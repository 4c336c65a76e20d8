"""Do representations learned without labels find and survive poisoned edges better than features or a trained GCN?"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.figures import line
from microtome.graphs.poisoning import injected
from microtome.graphs.purification import LowRank, injected_auroc, similarity
from microtome.graphs.stable import STABLE, DegreeGCN
from microtome.statistics import student
from microtome.studies.security import _poisoning_suite as suite
from microtome.study import Measured, Outcome, Study

GAIN, FINDS = 0.02, 0.02
CUT = 0.2
OUTCOMES: tuple[Outcome, ...] = ("not reproduced", "partly", "reproduced")


def _encoder(seed: int, epochs: int, *, rough: float = 0.05, recover: float = 0.2) -> STABLE:
    return STABLE(rough=rough, recover=recover, cut=CUT, epochs=epochs, seed=seed)


def _unlike(rows: Tensor, graph: Any, pairs: Tensor) -> Tensor:
    return -similarity(rows, pairs)


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Edge scores and accuracy under random, DICE, gradient and adaptive poisoning of Cora."""
    budgets = (0.25,) if smoke else suite.BUDGETS
    worst = budgets[-1]
    found = suite.Numbers()
    note = ""
    for trial in suite.trials(smoke, range(seed + 1, seed + (2 if smoke else 6))):
        note = trial.note
        epochs = 10 if smoke else 100

        def defended(graph: Any, trial: suite.Trial = trial, epochs: int = epochs) -> tuple[float, Tensor]:
            rows = _encoder(trial.seed, epochs).represent(graph)
            refined = _encoder(trial.seed, epochs).refine(graph, rows)
            return trial.fitted(
                partial(DegreeGCN, rows.shape[1], suite.HIDDEN, trial.classes), refined, rows
            )[0], rows

        clean, known = defended(trial.graph)
        found.add("accuracy, STABLE, clean", clean)
        for name, value in trial.ordinary(trial.graph).items():
            found.add(f"accuracy, {name}, clean", value)
        found.add("accuracy, no edges", trial.edgeless())
        around = suite.adaptive(trial.seed, partial(_unlike, known), -CUT - 0.1)
        for attack, how in {**suite.attacks(trial.seed), "adaptive": around}.items():
            for share, graph in trial.poisoned(how, budgets if attack == "gradient" else (worst,)):
                at = f"{attack} {share:.0%}"
                accuracy, rows = defended(graph)
                found.add(f"accuracy, STABLE, {at}", accuracy)
                for name, value in trial.ordinary(graph).items():
                    found.add(f"accuracy, {name}, {at}", value)
                pairs, marks = injected(graph)
                for name, trust in _trusts(trial, graph, rows, pairs).items():
                    found.add(f"AUC, {name}, {at}", injected_auroc(trust, marks))
                if attack == "gradient" and share == worst:
                    without = {
                        "nothing recovered": _encoder(trial.seed, epochs, recover=0.0),
                        "no rough cleaning": _encoder(trial.seed, epochs, rough=-1.0),
                    }
                    for name, other in without.items():
                        auc = injected_auroc(similarity(other.represent(graph), pairs), marks)
                        found.add(f"AUC, STABLE with {name}, {at}", auc)
    at = f"gradient {worst:.0%}"
    ordinary = ("GCN", "Jaccard", "low rank")
    gain = student(found.less(f"accuracy, STABLE, {at}", [f"accuracy, {o}, {at}" for o in ordinary]))
    scores = ("features, Jaccard", "features, cosine", "supervised GCN", "low rank")
    finds = student(found.less(f"AUC, STABLE, {at}", [f"AUC, {s}, {at}" for s in scores]))
    evaded = f"adaptive {worst:.0%}"
    numbers = dict(found.all())
    for name, values in (("accuracy", gain), ("AUC", finds)):
        label = f"{name} of STABLE less the best other, {at}"
        numbers |= dict(zip((label, f"{label}, low", f"{label}, high"), values, strict=True))
    holds = (gain[1] > GAIN) + (finds[1] > FINDS)
    mean = found.mean
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else OUTCOMES[holds],
        decided_by=f"with {worst:.0%} of the edges flipped by gradient STABLE is {gain[0]:.3f} more accurate "
        f"than the best plain defence (at least {gain[1]:.3f}, threshold {GAIN}; "
        f"{mean(f'accuracy, STABLE, {at}'):.3f} against {mean(f'accuracy, GCN, {at}'):.3f} of the GCN and "
        f"{mean('accuracy, no edges'):.3f} without edges), and its rows find injected edges with an AUC "
        f"{finds[0]:.3f} above the best other score (at least {finds[1]:.3f}, threshold {FINDS}); an attacker "
        f"who keeps to edges it trusts leaves it {mean(f'accuracy, STABLE, {evaded}'):.3f} and an AUC of "
        f"{mean(f'AUC, STABLE, {evaded}'):.3f}",
        figure=line(
            "Accuracy under gradient poisoning", suite.points(found, "gradient", ("STABLE", *ordinary), budgets),
            x="share", y="accuracy", series="defence", rules={"no edges": mean("accuracy, no edges")},
        ),
        conditions=(
            f"{note}; networks see 64 leading directions of the features.",
            "The gradient attack is Metattack with an exact meta-gradient through a ridge regression on a "
            "linearised GCN, 20 gradients for all flips; features are not attacked.",
            "One setting for all budgets (rough 0.05, cut 0.2, five neighbours, power 0.6) where the paper "
            "tunes each; it was chosen on the split of seed 0; the run has the seeds 1 to 5. The plain "
            "defences choose a threshold on validation nodes.",
            "The adaptive attacker knows an encoder trained on the clean graph and adds only pairs whose rows "
            "it finds alike by 0.1 more than the cut.",
            "Random, DICE and adaptive flips at the largest budget alone.",
        ),
    )  # fmt: skip


def _trusts(trial: suite.Trial, graph: Any, rows: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """Each defence's trust in the edges."""
    network: Any = trial.fitted(trial.gcn(), graph)[2]
    with torch.no_grad():
        hidden = F.relu(network.convs[0](trial.rows, graph.edge_index))
    return {
        "STABLE": similarity(rows, pairs),
        "features, Jaccard": similarity(graph.x, pairs, "jaccard"),
        "features, cosine": similarity(graph.x, pairs),
        "supervised GCN": similarity(hidden, pairs),
        "low rank": LowRank(graph.edge_index, graph.num_nodes, 30).score(pairs),
    }


STUDY = Study(
    paper="stable",
    claim="Rows learned by contrast between views that differ in doubtful edges only score edges better than "
    "features or a GCN trained on the poisoned graph (AUC for injected edges more than 0.02 higher), and the "
    "graph refined by them leaves a classifier more than 0.02 more accurate than plain defences at 25 % flips "
    "chosen by gradient.",
    null="The rows score edges no better than the features they are made of, and cutting by features does as "
    "well.",
    control="The plain GCN, Jaccard cutting, low rank, a network without edges; the encoder without recovery "
    "and without rough cleaning; the clean graph; an attacker who knows the encoder.",
    threshold="Lower ends of both differences, over seeds, above 0.02, each to the best other on average.",
    measure=measure,
    uses=(
        "microtome.graphs.stable.STABLE",
        "microtome.graphs.stable.DegreeGCN",
        "microtome.graphs.poisoning.GradientFlips",
        "microtome.graphs.purification.DropUnlike",
    ),
    example="from microtome.data.graph_generators import stochastic_blocks\nfrom microtome.graphs.poisoning "
    "import GradientFlips\nfrom microtome.graphs.stable import STABLE\npoisoned = "
    "GradientFlips(share=0.2)(stochastic_blocks(300, features=8))\nprint(STABLE(metric='cosine', rough=0.1, "
    "epochs=50)(poisoned))",
    relates={
        "plapgnn": "the same attack and splits: 0.711 for pLapGNN at 25 % flips by gradient, 0.739 for STABLE",
        "edog": "the same kind of score: EDoG's AUC for edges by gradient at 5 % is 0.74, STABLE's 0.78",
    },
)
