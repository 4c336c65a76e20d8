"""Which edges and features an answer rests on, and whether the explanation is any good."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microtome.errors import Refusal
from microtome.figures import bars, line
from microtome.finding import Figure, Finding, Quantity, Table, Threshold
from microtome.folds import Collect, Rows, Sample
from microtome.instrument import Asking, HasClasses, HasGraph, Instrument
from microtome.signals import rows
from microtome.signals.edge_explanations import METHODS, SHARES, EdgeExplanations, edge_explanations, unpacked
from microtome.statistics import student
from microtome.subject import Subject

EVIDENCE = "better than an untrained network's explanation by"
SANITY = (
    "Adebayo et al. 2018: an explanation must lose by randomising the weights; one-sided 5 % test, either way"
)
_Line = tuple[int | float | str, ...]
_Lines = tuple[_Line, ...]
TOP = 5
COMPLETE = 0.999


@dataclass(frozen=True, kw_only=True)
class EdgeAttribution(Instrument):
    """Which edges and features does an answer rest on, and is the explanation any good?

    Of the class that is answered, for ``examples`` (or a sample of ``count``), three scores of each edge: GOAt's exact
    share of the logit (Lu et al. 2024; networks of sums or means with ReLU), gradient times input, and occlusion,
    the logit lost when it carries no message. Each is judged by fidelity: the class's probability with the first 10, 25
    and 50 % of the edges alone less that without them, averaged (Zheng et al. 2024: parts, not all, are taken away),
    beside a random order and the same method on an untrained network. Features have GOAt's share and gradient times
    input, summed over nodes. Cost an example: a forward an edge, 42 more, some backwards, on its subgraph or graph.
    Misleads: silenced messages are no graph the network was trained on; degrees stay as they are.
    """

    papers = ("goat", "robust-fidelity-for-gnn-explanations")
    needs = HasGraph & HasClasses
    how_to_read = (
        "A share is what an edge adds to the logit of the class; negative ones speak against it. Trust a method's "
        "edges only if its fidelity exceeds both the random order's and the untrained network's."
    )

    examples: tuple[int, ...] = ()
    count: int = 12
    method: str = "GOAt"
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if self.method not in METHODS:
            raise Refusal(f"method '{self.method}' is none of {', '.join(METHODS)}")
        over = Rows(self.examples) if self.examples else Sample(self.count, self.seed)
        ids, packed = yield Collect(signals=(rows, edge_explanations(self.seed)), over=over)
        found = unpacked(packed)
        if not len(ids) or int(found.pairs.max()) == 0:
            raise Refusal("no edge reaches any of the examples")
        kept = (found.pairs > 0).numpy()
        told = float(np.median(found.explained.numpy()[kept]))
        method, caveats = self.method, []
        if told < COMPLETE:
            caveats.append(
                f"GOAt's shares add up to {told:.1%} of the logit: the network is no sum of products with ReLU"
            )
            method = METHODS[1] if method == METHODS[0] else method
        fidelity = (found.judged[..., 1] - found.judged[..., 0]).mean(2).numpy()[kept]  # [n, 2 methods + 1]
        table: list[_Line] = []
        quantities: dict[str, Quantity] = {}
        for i, name in enumerate(METHODS):
            own, blind, chance = (fidelity[:, j] for j in (i, len(METHODS) + i, 2 * len(METHODS)))
            quantities[f"fidelity, {name}"] = _mean(own)
            quantities[f"gain over random, {name}"] = _mean(own - chance)
            table.append((name, *(float(v.mean()) for v in (own, chance, blind, own - chance, own - blind))))
        at = METHODS.index(method)
        quantities |= {"gain over random": quantities[f"gain over random, {method}"]}
        quantities["logit that GOAt explains"] = Quantity(value=told)
        gap = fidelity[:, at] - fidelity[:, len(METHODS) + at]
        spread = float(gap.std(ddof=1)) / len(gap) ** 0.5 if len(gap) > 1 else 0.0
        threshold = None
        if spread > 1e-12:
            quantities[EVIDENCE] = Quantity(
                value=float(gap.mean()) / spread, unit="standard errors", better="higher"
            )
            threshold = Threshold(quantity=EVIDENCE, watch=1.645, alarm=-1.645, worse="below", source=SANITY)
        edges, features, figures = _shown(ids.tolist(), found, at)
        gain = quantities["gain over random"].value
        best = max(METHODS, key=lambda m: quantities[f"fidelity, {m}"].value)
        return Finding(
            headline="gain over random",
            summary=f"By {method} the first edges hold {gain:.2f} more of the class's probability than random ones, "
            f"those of an untrained network {float(-gap.mean() + gain):.2f} more; those by {best} hold most "
            f"({quantities[f'fidelity, {best}'].value:.2f} beyond what the rest holds).",
            quantities=quantities,
            tables={
                "methods": Table(
                    columns=("method", "fidelity", "random order", "untrained network", "gain over random",
                             "gain over untrained"), rows=tuple(table)),
                f"edges by {method}": Table(
                    columns=("example", "class", "probability", "rank", "one end", "other end", "score"), rows=edges),
                "features": Table(columns=("example", "class", "feature", "score"), rows=features),
            },
            figures=figures | {"judged": _curves(found, kept)},
            arrays={"rows": ids.numpy()[kept], "samples": fidelity[:, at] - fidelity[:, -1]},
            caveats=tuple(caveats),
            threshold=threshold,
        )  # fmt: skip


def _mean(values: np.ndarray) -> Quantity:
    mean, low, high = student(values)
    if len(values) < 2:
        return Quantity(value=mean, unit="probability", better="higher")
    return Quantity(
        value=mean, low=low, high=high, how="t over examples", unit="probability", better="higher"
    )


def _shown(ids: list[int], found: EdgeExplanations, at: int) -> tuple[_Lines, _Lines, dict[str, Figure]]:
    edges: list[_Line] = []
    features: list[_Line] = []
    figures = {}
    for k, example in enumerate(ids):
        label, chance = int(found.label[k]), float(found.probability[k])
        first = [r for r in found.edges[k, at].tolist() if r[0] >= 0][:TOP]
        edges += [(example, label, chance, i + 1, int(a), int(b), s) for i, (a, b, s) in enumerate(first)]
        scores = found.features[k, 0 if at == 0 else 1]
        top = scores.abs().topk(min(TOP, len(scores))).indices.tolist()
        features += [(example, label, j, float(scores[j])) for j in top if float(scores[j])]
        if k < 4 and first:
            data = [{"edge": f"{int(a)} - {int(b)}", "score": s} for a, b, s in first]
            figures[f"example {example}"] = bars(
                f"Edges behind class {label}, example {example}", data, category="edge", value="score"
            )
    return tuple(edges), tuple(features), figures


def _curves(found: EdgeExplanations, kept: np.ndarray) -> Figure:
    mean = found.judged.numpy()[kept].mean(0)
    whole = float(found.probability.numpy()[kept].mean())
    data = [{"share": 0.0, "probability": whole, "order": m} for m in (*METHODS, "random")]
    for j, name in zip((*range(len(METHODS)), 2 * len(METHODS)), (*METHODS, "random"), strict=True):
        data += [
            {"share": s, "probability": float(p), "order": name}
            for s, p in zip(SHARES, mean[j, :, 0], strict=True)
        ]
    return line(
        "Probability of the class without the first edges", data, x="share", y="probability", series="order",
        x_title="share of the edges silenced",
    )  # fmt: skip
