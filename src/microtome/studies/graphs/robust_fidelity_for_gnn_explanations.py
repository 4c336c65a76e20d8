"""Does fidelity agree better with the truth about an explanation when only a part is taken away?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.explain import Explainer, Explanation

from microtome.data.graph_generators import two_motifs
from microtome.figures import line
from microtome.graphs.fidelity import fidelity_gaps
from microtome.graphs.goat import GOAt
from microtome.graphs.motif_recovery import graph_recovery
from microtome.learn.graph_training import fit_graphs, graph_accuracy
from microtome.statistics import spearman
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

BETTER = 0.05
LADDER = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the motif's edges that are exchanged for others of the graph."""
SETTINGS = {"Fid": (1.0, 0.0), "RFid 0.1": (0.1, 0.9), "RFid 0.3": (0.3, 0.7), "RFid 0.5": (0.5, 0.5)}
CONFIG = {"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"}


def degraded(batch: Any, share: float, seed: int) -> Tensor:
    """[edges] the motif's edges of every graph, a share of them exchanged for as many others of the same graph."""
    generator = torch.Generator().manual_seed(seed)
    owner = batch.batch[batch.edge_index[0]]
    mask = batch.edge_truth.clone()
    for g in range(batch.num_graphs):
        motif = ((owner == g) & (batch.edge_truth > 0)).nonzero()[:, 0]
        other = ((owner == g) & (batch.edge_truth == 0)).nonzero()[:, 0]
        count = min(round(share * len(motif)), len(other))
        mask[motif[torch.randperm(len(motif), generator=generator)[:count]]] = 0
        mask[other[torch.randperm(len(other), generator=generator)[:count]]] = 1
    return mask


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Houses and rings on trees, a trained GIN, and a ladder of explanations of known quality."""
    seeds, count, epochs, samples = (2, 40, 3, 2) if smoke else (5, 400, 200, 20)
    scores: dict[str, list[float]] = {}
    levels: dict[tuple[str, float], list[float]] = {}
    accuracies: list[float] = []
    recovered: list[float] = []
    entropies: dict[str, list[float]] = {"whole graphs": [], "motif removed": [], "a tenth of it removed": []}
    for s in range(100 + seed, 100 + seed + seeds):
        graphs = two_motifs(count, seed=s)
        half = count // 2
        model = fit_graphs(
            n.seeded(partial(n.GraphNetwork, n.isomorphism, 10, 16, 2, 3), s),
            graphs[:half],
            epochs=epochs,
            seed=s,
        )
        accuracies.append(graph_accuracy(model, graphs[half:]))
        batch = Batch.from_data_list(graphs[half:])
        explainer = Explainer(model, GOAt(), "model", model_config=CONFIG, edge_mask_type="object")
        recovered.append(graph_recovery(explainer, graphs[half:], together=True).mean)
        target = explainer.get_target(explainer.get_prediction(batch.x, batch.edge_index, batch=batch.batch))
        found: dict[str, list[Tensor]] = {}
        for level in LADDER:
            explanation = Explanation(
                x=batch.x,
                edge_index=batch.edge_index,
                batch=batch.batch,
                target=target,
                edge_mask=degraded(batch, level, s),
            )
            explanation._model_args = ["batch"]
            for name, (one, two) in SETTINGS.items():
                plus, minus = fidelity_gaps(
                    explainer, explanation, alpha1=one, alpha2=two, samples=samples, soft=True, seed=s
                )
                found.setdefault(name, []).append(plus - minus)
                levels.setdefault((name, level), []).append(float((plus - minus).mean()))
        quality = 1 - np.array(LADDER)
        for name, steps in found.items():
            table = torch.stack(steps, 1).double().numpy()
            each = [spearman(row, quality) for row in table]
            scores.setdefault(name, []).append(float(np.mean([v if v is not None else 0.0 for v in each])))
        generator = torch.Generator().manual_seed(s)
        for name, share in (("whole graphs", 0.0), ("motif removed", 1.0), ("a tenth of it removed", 0.1)):
            dropped = (torch.rand(batch.num_edges, generator=generator) < share) & (batch.edge_truth > 0)
            answer = explainer.get_masked_prediction(
                batch.x, batch.edge_index, None, (~dropped).float(), batch=batch.batch
            ).softmax(1)
            entropies[name].append(float(-(answer * answer.clamp_min(1e-30).log()).sum(1).mean()))
    numbers = n.summary("accuracy", accuracies) | n.summary("motif-edge AUC of GOAt's edges", recovered)
    for name, values in scores.items():
        numbers |= n.summary(f"rank correlation with quality, {name}", values)
        gaps = [a - b for a, b in zip(values, scores["Fid"], strict=True)]
        numbers |= n.summary(f"{name} less Fid", gaps) if name != "Fid" else {}
    for name, values in entropies.items():
        numbers |= n.summary(f"entropy of answers, {name} (nat)", values)
    gains = {name: numbers[f"{name} less Fid, low"] for name in SETTINGS if name != "Fid"}
    better = sum(g > BETTER for g in gains.values())
    verdict = "reproduced" if better == len(gains) else "partly" if better else "not reproduced"
    best = max(gains, key=lambda name: gains[name])
    trained = numbers["accuracy"] > 0.9
    points = [
        {"motif edges kept": 1 - level, "measure": name, "score": float(np.mean(v))}
        for (name, level), v in levels.items()
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke or not trained else verdict,  # type: ignore[arg-type]
        decided_by=f"over explanations of one graph the rank correlation with the share of motif edges kept is "
        f"{numbers['rank correlation with quality, Fid']:.3f} for Fid+ less Fid-; the robust form's exceeds it "
        f"with its whole "
        f"interval by more than {BETTER} at {better} of {len(gains)} strengths (best {best}, at least "
        f"{gains[best]:+.3f}); "
        f"accuracy {numbers['accuracy']:.3f} (0.9 needed)",
        figure=line("Fidelity by quality of explanations", points, x="motif edges kept", y="score", series="measure"),
        conditions=(
            "BA-2Motifs generated here, a GIN of three layers with sum readouts; probabilities instead of changed "
            "answers.",
            "A first run of 60 epochs on 150 graphs left the networks at an accuracy of 0.859, below what was "
            "asked: they are "
            "trained longer on more graphs now, with new seeds.",
            "Quality is the share of the planted motif's edges that an explanation of fixed size holds.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="robust-fidelity-for-gnn-explanations",
    claim="Over explanations of a graph whose quality is known, fidelity that takes away a random part ranks them "
    "better "
    "than fidelity that takes away all: rank correlation higher by more than 0.05 at each of three strengths.",
    null="Taking away all ranks explanations as well.",
    control="The classic measure on the same explanations, networks and graphs; entropy of answers on changed graphs.",
    threshold="Lower ends of the intervals of the differences above 0.05; accuracy of the networks above 0.9.",
    measure=measure,
    uses=(
        "microtome.graphs.fidelity.robust_fidelity",
        "microtome.graphs.goat.GOAt",
        "microtome.graphs.motif_recovery.graph_recovery",
        "microtome.data.graph_generators.two_motifs",
    ),
    example="from microtome.graphs.fidelity import robust_fidelity\n"
    "plus, minus = robust_fidelity(explainer, explanation, alpha1=0.1, alpha2=0.9)",
)
