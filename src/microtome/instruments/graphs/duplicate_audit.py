"""Nodes that are copies of training nodes: same neighbours, same label."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.finding import Finding, Quantity, Threshold
from microtome.folds import Collect, Sum
from microtome.instrument import Asking, HasClasses, HasGraph, HasTargets, Instrument, NodeTask
from microtome.instruments.graphs import _labels
from microtome.signals import correct, rows
from microtome.statistics import wilson
from microtome.subject import Subject

LEAK = Threshold(
    quantity="examples with a twin in training",
    watch=0.05,
    alarm=0.2,
    source="Platonov et al. 2023: on Squirrel and Chameleon about half the nodes are duplicates and rankings change",
)


@dataclass(frozen=True, kw_only=True)
class DuplicateAudit(Instrument):
    """Do test nodes have twins among the training nodes?

    Two nodes are twins when they have the same neighbours (at least one) and the same label; features are not compared
    (Platonov et al. 2023). Neighbourhoods are compared by a 64-bit hash of the set of in-neighbours, exact but for a
    chance of 2^-64 a pair. Reads ``train_mask``; without one only duplicates are counted, and no leak. Beside it the
    accuracy on examples with and without a training twin: the first is what copying alone may give.
    Cost: one pass, one forward. Misleads: in sparse graphs nodes with one neighbour are twins by nature; leaves of one
    hub are found here though nothing was copied. With sampled neighbours twins are missed.
    """

    papers = ("heterophily-benchmark-audit",)
    needs = HasGraph & NodeTask & HasTargets & HasClasses
    how_to_read = (
        "The share of test nodes whose neighbourhood and label were seen in training. Above a few per cent "
        "accuracy says less about generalising: look at the accuracy on nodes without a twin, or remove copies by "
        "microtome.graphs.homophily.without_twins."
    )

    def examine(self, subject: Subject) -> Asking:
        (ids, twin, right), total = yield [
            Collect(signals=(rows, _labels.twinned(), correct)),
            Sum(signals=(_labels.duplicates(),)),
        ]
        n = len(ids)
        if n == 0:
            raise Refusal("no labelled example")
        trained = float(total[3]) > 0.5
        leaked = int(twin[:, 1].sum())
        low, high = wilson(leaked, n)
        quantities = {
            "examples with a twin in training": Quantity(
                value=leaked / n, low=low, high=high, how="Wilson", unit="share of examples", better="lower"
            ),
            "examples with a twin": Quantity(value=float(twin[:, 0].mean()), unit="share of examples"),
            "nodes with a twin": Quantity(value=float(total[1] / total[0]), unit="share of nodes"),
            "nodes to remove": Quantity(value=float(total[2]), unit="nodes"),
        }
        parts = {"with": twin[:, 1] > 0, "without": twin[:, 1] == 0}
        for name, inside in parts.items():
            count, hits = int(inside.sum()), round(float(right[inside].sum()))
            if count:
                low, high = wilson(hits, count)
                quantities[f"accuracy {name} a twin"] = Quantity(
                    value=hits / count, low=low, high=high, how="Wilson", better="higher"
                )
        return Finding(
            headline="examples with a twin in training",
            summary=f"{leaked} of {n} examples have the neighbours and the label of a training node."
            if trained
            else f"The data names no training nodes; {int(twin[:, 0].sum())} of {n} examples have a twin somewhere.",
            quantities=quantities,
            threshold=LEAK,
            arrays={"rows": ids.numpy(), "samples": twin[:, 1].numpy()},
            caveats=() if trained else ("no train_mask: a leak cannot be told",),
        )
