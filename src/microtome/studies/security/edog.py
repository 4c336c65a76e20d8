"""Does a model of how the graph goes on find added edges, whatever the attack, and can it be evaded?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from microtome.figures import line
from microtome.graphs.edog import EDoG, LinkGenerator, edge_outliers
from microtome.graphs.poisoning import GradientFlips, InsertBetweenClasses, TargetedInsertions, injected
from microtome.graphs.purification import LowRank, injected_auroc, similarity
from microtome.statistics import student
from microtome.studies.security import _poisoning_suite as suite
from microtome.study import Measured, Outcome, Study

HIGH, BETTER, HALF = 0.8, 0.02, 0.5
BUDGETS = (0.01, 0.05, 0.1)
OUTCOMES: tuple[Outcome, ...] = ("not reproduced", "partly", "partly", "reproduced")
OTHERS = ("Jaccard", "cosine", "low rank", "link prediction", "outliers")


def _attacks(seed: int) -> dict[str, Any]:
    return {
        "random": InsertBetweenClasses(seed=seed),
        "gradient": GradientFlips(seed=seed, delete=False),
        "fixed weights": GradientFlips(seed=seed, delete=False, through_training=False),
        "targeted": TargetedInsertions(seed=seed),
    }


class _Known:
    """Suspicion of an attacker who holds a detector trained on the clean graph."""

    def __init__(self, detector: EDoG, graph: Any) -> None:
        self.detector, self.graph = detector, graph
        self.model: LinkGenerator = detector.fit(graph)

    def __call__(self, graph: Any, pairs: Tensor | None) -> Tensor:
        """[p] minus the log-odds."""
        return -self.detector.trust(self.graph, pairs, self.model)


def _trusts(graph: Any, pairs: Tensor, seed: int, steps: int) -> dict[str, Tensor]:
    low = LowRank(graph.edge_index, graph.num_nodes, min(30, graph.num_nodes // 4))
    return {
        "EDoG": EDoG(seed=seed, steps=steps).trust(graph),
        "Jaccard": similarity(graph.x, pairs, "jaccard"),
        "cosine": similarity(graph.x, pairs),
        "low rank": low.score(pairs),
        "link prediction": EDoG(seed=seed, steps=steps, whole=True).trust(graph),
        "outliers": -edge_outliers(graph, pairs),
    }


def measure(smoke: bool, seed: int = 0) -> Measured:
    """AUC for injected edges of Cora under four attacks at three budgets, and one that knows the detector."""
    budgets = (0.1,) if smoke else BUDGETS
    middle, most, note = budgets[len(budgets) // 2], budgets[-1], ""
    steps = 10 if smoke else 60
    found = suite.Numbers()
    for trial in suite.trials(smoke, range(seed + 1, seed + (2 if smoke else 6))):
        note = trial.note
        plain = trial.fitted(trial.gcn(), trial.graph)[0]
        found.add("accuracy, GCN, clean", plain)
        over: dict[str, list[float]] = {}
        for attack, how in _attacks(trial.seed).items():
            for share, graph in trial.poisoned(how, budgets):
                pairs, marks = injected(graph)
                for name, trust in _trusts(graph, pairs, trial.seed, steps).items():
                    auc = injected_auroc(trust, marks)
                    found.add(f"AUC, {name}, {attack} {share:.0%}", auc)
                    if share == middle and auc is not None:
                        over.setdefault(name, []).append(auc)
            found.add(f"accuracy, GCN, {attack} {most:.0%}", trial.fitted(trial.gcn(), graph)[0])
            filtered = EDoG(steps=steps, seed=trial.seed, filtered=0.1).trust(graph)
            found.add(f"AUC, EDoG with filter, {attack} {most:.0%}", injected_auroc(filtered, marks))
        for name, values in over.items():
            found.add(f"AUC, {name}, mean of four attacks {middle:.0%}", sum(values) / len(values))
        known = _Known(EDoG(steps=steps, seed=trial.seed + 100, samples=4), trial.graph)
        around = suite.adaptive(trial.seed, known, float(known(trial.graph, None).median()))
        around.breadth = 128
        ((_, graph),) = trial.poisoned(around, (most,))
        pairs, marks = injected(graph)
        at = f"adaptive {most:.0%}"
        found.add(f"AUC, EDoG, {at}", injected_auroc(EDoG(steps=steps, seed=trial.seed).trust(graph), marks))
        found.add(f"AUC, cosine, {at}", injected_auroc(similarity(graph.x, pairs), marks))
        found.add(f"flips made, {at}", float(marks.sum()))
        evaded = trial.fitted(trial.gcn(), graph)[0]
        found.add(f"accuracy, GCN, {at}", evaded)
        gradient = found.values[f"accuracy, GCN, gradient {most:.0%}"][-1]
        found.add("accuracy lost, adaptive less half of gradient", plain - evaded - HALF * (plain - gradient))
    four, mean = tuple(_attacks(0)), found.mean
    numbers = dict(found.all())
    weakest = min(four, key=lambda a: mean(f"AUC, EDoG, {a} {middle:.0%}"))
    lowest = [numbers[f"AUC, EDoG, {weakest} {middle:.0%}{end}"] for end in ("", ", low")]
    label = f"mean of four attacks {middle:.0%}"
    better = student(found.less(f"AUC, EDoG, {label}", [f"AUC, {o}, {label}" for o in OTHERS]))
    numbers |= dict(zip(("AUC of EDoG less the best other", "AUC of EDoG less the best other, low",
                         "AUC of EDoG less the best other, high"), better, strict=True))  # fmt: skip
    hard = numbers["accuracy lost, adaptive less half of gradient, high"] < 0
    holds = (lowest[1] > HIGH) + (better[1] > BETTER) + hard
    points = [
        {"share": s, "score": name, "AUC": sum(mean(f"AUC, {name}, {a} {s:.0%}") for a in four) / 4}
        for name in ("EDoG", *OTHERS)
        for s in budgets
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else OUTCOMES[holds],
        decided_by=f"at {middle:.0%} EDoG's AUC is {mean(f'AUC, EDoG, {label}'):.3f} over four attacks, lowest "
        f"{lowest[0]:.3f} ({weakest}; at least {lowest[1]:.3f}, threshold {HIGH}), {better[0]:+.3f} from the "
        f"best other score (at least {better[1]:+.3f}, threshold {BETTER}); an attacker who adds {most:.0%} of "
        f"edges it trusts brings the AUC to {mean(f'AUC, EDoG, adaptive {most:.0%}'):.3f} and the GCN to "
        f"{mean(f'accuracy, GCN, adaptive {most:.0%}'):.3f}, the plain gradient attack to "
        f"{mean(f'accuracy, GCN, gradient {most:.0%}'):.3f} of {mean('accuracy, GCN, clean'):.3f} "
        f"({'less' if hard else 'not surely less'} than half the loss)",
        figure=line(
            "AUC for injected edges, mean of four "
            "attacks", points, x="share", y="AUC", series="score", log_x=True,
            rules={"claimed": HIGH},
        ),
        conditions=(
            f"{note}. All attacks add edges only.",
            "Sub-graphs are random halves of the edges, continued in one step by a small graph auto-encoder "
            "of node features and edges; the paper grows them node by node. Width, steps and share were "
            "chosen on the split of seed 0; the run has the seeds 1 to 5.",
            "No filter, except where named: the paper means it for heavy attacks.",
            "The adaptive attacker holds a detector trained on the clean graph with another seed, and adds "
            "only pairs that it trusts at least as the median true edge.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="edog",
    claim="Edges that a model trained to continue sub-graphs finds unlikely are the injected ones with an AUC "
    "above 0.8 for each of four attacks unknown to it at 5 % of the edges, more than 0.02 above other scores "
    "on average, and an attacker who keeps to edges it trusts does less than half the harm.",
    null="Likeness of features, low rank or plain link prediction find them as well.",
    control="Jaccard, cosine, low rank, the same model with the whole graph in sight (plain link prediction), "
    "outlier features; the detector with its filter; an adaptive attacker.",
    threshold="Lower end above 0.8 for the worst of four attacks; lower end of the mean difference to the "
    "best other above 0.02; upper end of the adaptive loss less half the gradient attack's below 0.",
    measure=measure,
    uses=(
        "microtome.graphs.edog.EDoG",
        "microtome.graphs.edog.edge_outliers",
        "microtome.graphs.poisoning.GradientFlips",
    ),
    example="from microtome.data.graph_generators import stochastic_blocks\nfrom microtome.graphs import "
    "edog, poisoning, purification\ngraph = stochastic_blocks(300, features=8, signal=2.0)\nattacked = "
    "poisoning.InsertBetweenClasses(share=0.1)(graph)\nprint(purification.injected_auroc(edog.EDoG().trust(attacked), "
    "poisoning.injected(attacked)[1]))",
    relates={
        "stable": "both score edges by rows learned without labels: at 5 % flips by gradient, on the same splits "
        "of Cora, STABLE's rows have an AUC of 0.78, EDoG's links 0.74, bare features 0.79"
    },
)
