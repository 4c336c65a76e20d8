"""Homophily of the graph in all its measures, and accuracy by how alike a node's neighbours are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import heatmap, line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sum
from microtome.graphs import homophily as measure
from microtome.instrument import Asking, HasClasses, HasGraph, HasTargets, Instrument, NodeTask
from microtome.instruments.graphs import _labels
from microtome.signals import correct, rows
from microtome.statistics import wilson
from microtome.subject import Subject

BINS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, kw_only=True)
class Homophily(Instrument):
    """Do neighbours share a label, and does the network need them to?

    On all nodes and edges (each direction counted, loops left out): edge homophily, the share of edges within a class;
    node homophily, its mean over nodes (Pei et al. 2020); class homophily (Lim et al. 2021); adjusted homophily and
    label informativeness (Platonov et al. 2023); the profile of each class, the distribution of its neighbours' labels
    [k, k], and the least total variation distance between two classes' profiles: a convolution can tell classes apart
    by their neighbours alone if that is large, homophilous or not (Ma et al. 2022). On the examples: accuracy by local
    homophily, five bins, Wilson intervals. Exact counts; one pass and one forward.
    Misleads: labels of all nodes are read, test nodes included; with sampled neighbours only sampled edges count.
    """

    papers = ("is-homophily-necessary-for-gnns", "heterophily-benchmark-audit")
    needs = HasGraph & NodeTask & HasTargets & HasClasses
    how_to_read = (
        "Edge homophily is inflated by unequal classes: adjusted homophily is 0 where labels say nothing of edges. Low "
        "homophily is harmless when label informativeness or the distance between profiles is high. A network that is "
        "right only where its neighbours agree shows it in the accuracy by local homophily."
    )

    def examine(self, subject: Subject) -> Asking:
        k = subject.classes or 0
        counts, sizes, nodewise, (_, local, right) = yield [
            Sum(signals=(_labels.counts(),)),
            Sum(signals=(_labels.sizes(),)),
            Sum(signals=(_labels.nodewise(),)),
            Collect(signals=(rows, _labels.local_homophily(), correct)),
        ]
        if float(counts.sum()) < 0.5:
            raise Refusal("no edge joins two labelled nodes")
        edge = measure.edge_homophily(counts)
        profiles = counts / counts.sum(1, keepdim=True).clamp_min(1e-300)
        present = counts.sum(1) > 0
        cosine, gap = measure.profile_similarity(profiles[present])
        values = {
            "edge homophily": edge,
            "node homophily": float(nodewise[0] / nodewise[1].clamp_min(1e-300)),
            "class homophily": measure.class_homophily(counts, sizes),
            "adjusted homophily": measure.adjusted_homophily(counts),
            "label informativeness": measure.label_informativeness(counts),
            "similarity of profiles": cosine,
            "distance of profiles": gap,
        }
        quantities = {name: Quantity(value=v) for name, v in values.items() if v is not None}
        bins, spread = _by_bin(local, right)
        if spread is not None:
            unit = "share of right answers"
            quantities["accuracy, homophilous less heterophilous nodes"] = Quantity(value=spread, unit=unit)
        figures = {}
        if k <= 50:
            names = [str(c) for c in range(k)]
            figures["profiles"] = heatmap(
                "Labels of the neighbours, by class", profiles.numpy(), row_names=names, column_names=names,
                row_title="class", column_title="neighbour's class", limits=(0, 1), value_title="share",
            )  # fmt: skip
        drawn = [{"local homophily": r[0], "accuracy": r[2], "low": r[3], "high": r[4]} for r in bins]
        if len(drawn) > 1:
            figures["accuracy"] = line(
                "Accuracy by the share of neighbours of the same class", drawn, x="local homophily", y="accuracy",
                band=("low", "high"),
            )  # fmt: skip
        chance = values["adjusted homophily"]
        words = f"{edge:.1%} of edges join nodes of one class"
        words += f" (adjusted for the classes' degrees {chance:.2f})" if chance is not None else ""
        if spread is not None:
            words += f"; accuracy differs by {spread:+.1%} between nodes among their like and among others"
        return Finding(
            headline="edge homophily",
            summary=words + ".",
            quantities=quantities,
            tables={
                "accuracy by local homophily": Table(
                    columns=("local homophily", "examples", "accuracy", "low", "high"), rows=bins,
                    caption="Middle of each bin; Wilson intervals; examples without neighbours are left out",
                ),
            },
            figures=figures,
            arrays={"class edges": counts.numpy(), "profiles": profiles.numpy()},
            caveats=("neighbours are sampled: only edges that were drawn are counted",) if _sampled(subject) else (),
        )  # fmt: skip


def _sampled(subject: Subject) -> bool:
    return "sampled" in subject.layout.statement


def _by_bin(
    local: Tensor, right: Tensor
) -> tuple[tuple[tuple[float, int, float, float, float], ...], float | None]:
    """Rows (middle, examples, accuracy, low, high), and the accuracy above 1/2 less that up to 1/2."""
    found = []
    place = torch.bucketize(local, torch.tensor(BINS, dtype=local.dtype), right=True)
    for i in range(len(BINS) + 1):
        inside = (place == i) & (local >= 0)
        total, hits = int(inside.sum()), round(float(right[inside].sum()))
        if total:
            found.append((0.1 + 0.2 * i, total, hits / total, *wilson(hits, total)))
    among, apart = local > 0.5, (local >= 0) & (local <= 0.5)
    if not bool(among.any()) or not bool(apart.any()):
        return tuple(found), None
    return tuple(found), float(right[among].mean() - right[apart].mean())
