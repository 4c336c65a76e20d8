"""Accuracy, with what is confused for what."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.figures import heatmap
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Collect, Confusion
from microtome.instrument import Asking, HasClasses, HasTargets, Instrument
from microtome.signals import correct, labels, prediction_ids, predictions
from microtome.statistics import wilson
from microtome.subject import Subject

NO_NETWORK = Threshold(
    quantity="gain over the majority",
    watch=0.0,
    alarm=0.0,
    worse="below",
    source="always answering the commonest class needs no network",
)


@dataclass(frozen=True, kw_only=True)
class Accuracy(Instrument):
    """How often is it right, and what does it mistake for what?

    Share of predictions whose largest logit is the label, k / m, with Wilson's interval
    (Wilson 1927); recall and precision of each class from the confusion matrix [k, k].
    Predictions of one sequence are not independent: there the interval is too narrow, and says so.
    """

    needs = HasTargets & HasClasses
    how_to_read = (
        "The share of right answers on this data. The interval covers the chance of having drawn these "
        "examples, not a change of data. Compare with the majority share, which needs no network."
    )

    def examine(self, subject: Subject) -> Asking:
        k = subject.classes or 0
        confusion, (ids, right) = yield [
            Confusion(signals=(predictions, labels), classes=k),
            Collect(signals=(prediction_ids, correct)),
        ]
        total = int(confusion.sum())
        hits = int(confusion.diagonal().sum())
        low, high = wilson(hits, total)
        true, given = confusion.sum(1), confusion.sum(0)
        majority = float(true.max()) / total
        rows = tuple(
            (
                c,
                int(true[c]),
                float(confusion[c, c]) / int(true[c]) if true[c] else None,
                float(confusion[c, c]) / int(given[c]) if given[c] else None,
            )
            for c in range(k)
        )
        wrong = confusion.clone()
        wrong.fill_diagonal_(0)
        worst = wrong.flatten().argsort(descending=True)[:10]
        mistakes = tuple(
            (int(i) // k, int(i) % k, int(wrong.flatten()[i])) for i in worst if int(wrong.flatten()[i])
        )
        tables = {
            "mistakes": Table(
                columns=("true", "predicted", "count"), rows=mistakes, caption="Commonest mistakes"
            )
        }
        figures = {}
        if k <= 100:
            tables["classes"] = Table(columns=("class", "examples", "recall", "precision"), rows=rows)
            names = [str(c) for c in range(k)]
            figures["confusion"] = heatmap(
                "Confusion (share of each true class)",
                (confusion / true.clamp_min(1)[:, None]).numpy(),
                row_names=names,
                column_names=names,
                row_title="true",
                column_title="predicted",
                limits=(0, 1),
            )
        return Finding(
            headline="accuracy",
            summary=f"{hits} of {total} right; always answering the commonest class would give {majority:.3f}.",
            quantities={
                "accuracy": Quantity(value=hits / total, low=low, high=high, how="Wilson", better="higher"),
                "majority share": Quantity(value=majority),
                "gain over the majority": Quantity(value=hits / total - majority, better="higher"),
            },
            threshold=NO_NETWORK,
            tables=tables,
            figures=figures,
            arrays={"rows": ids.numpy(), "samples": right.numpy(), "confusion": confusion.numpy()},
            caveats=()
            if subject.task.one_answer_per_example
            else ("positions of one sequence are not independent: the interval is too narrow",),
        )
