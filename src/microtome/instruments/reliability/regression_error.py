"""How far off the values are, against always answering the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.figures import scatter
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Moments, Reservoir
from microtome.folds.answers import MOST_ROWS
from microtome.instrument import Asking, HasTargets, HasValues, Instrument
from microtome.signals import Constant, derive, labels, rows, signal
from microtome.statistics import normal
from microtome.subject import Subject

NO_NETWORK = Threshold(
    quantity="share explained",
    watch=0.0,
    alarm=0.0,
    worse="below",
    source="always answering the mean of the targets needs no network",
)
SHOWN = 4
MOST_LISTED = 100


@signal
def residual_powers(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, k], [n, k] -> [n, k, 3] answer less target: as it is, its size, its square (float64)."""
    residual = logits.double() - labels.double()
    return torch.stack([residual, residual.abs(), residual.square()], 2)


@signal
def squared_error(residual_powers: Tensor) -> Tensor:
    """[n, k, 3] -> [n] mean over the outputs (float64: the loss of half precision would be rounded to three digits)."""
    return residual_powers[:, :, 2].mean(1)


@signal
def first_values(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, k], [n, k] -> [n, at most 4, 2] target and answer of the first outputs."""
    return torch.stack([labels[:, :SHOWN].double(), logits[:, :SHOWN].double()], 2)


def _spread(labels: Tensor, mean: Constant) -> Tensor:
    return (labels.double() - mean.value.to(labels.device)).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class RegressionError(Instrument):
    """How far off are its values, and does it do better than always answering the mean?

    With residuals r [n, k], answer less target: mean squared error, its root, mean |r| and mean r (bias), in the units
    of the targets, over all examples and outputs; share explained R^2 = 1 - sum r^2 / sum (y - mean y)^2, pooled over
    outputs, so that constant ones do not decide (1: all of the variance; 0: as good as the mean; below: worse). Sums
    are exact; intervals are normal, that of R^2 by the delta method, over at most 65536 examples drawn by their hash.
    """

    needs = HasTargets & HasValues
    how_to_read = (
        "The root is a typical error in the units of the targets. The share explained is 0 for the mean of this data's "
        "own targets, which a network that saw other data cannot know. A bias beside a small root is worth mending: "
        "one number added to the output does it."
    )

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        moments, targets, (ids, error, shown) = yield [
            Moments(signals=(residual_powers,)),
            Moments(signals=(labels,)),
            Reservoir(signals=(rows, squared_error, first_values), count=MOST_ROWS),
        ]
        bias, size, square = moments.mean.unbind(1)
        mean_square = float(square.mean())
        low, high = normal(mean_square, _standard_error(error))
        low = max(low, 0.0)
        quantities = {
            "mean squared error": Quantity(
                value=mean_square, low=low, high=high, how="normal", better="lower"
            ),
            "root mean squared error": Quantity(
                value=mean_square**0.5, low=low**0.5, high=high**0.5, how="normal", better="lower"
            ),
            "mean absolute error": Quantity(value=float(size.mean()), better="lower"),
            "bias": Quantity(value=float(bias.mean())),
        }
        n = moments.count
        variance = targets.variance * ((n - 1) / n)
        total = float(variance.mean())
        words = "; all targets are the same, so there is nothing to explain"
        if total > 0:
            # From the data alone: no pass through the network.
            spread = derive(_spread, labels, Constant(targets.mean), name="spread")
            _, own = yield Reservoir(signals=(rows, spread), count=MOST_ROWS)
            share = 1 - mean_square / total
            influence = (error - mean_square / total * own) / total
            below, above = normal(share, _standard_error(influence))
            quantities["share explained"] = Quantity(
                value=share, low=below, high=min(above, 1.0), how="delta method", better="higher"
            )
            words = f", {share:.3f} of the variance explained"
        listed = range(min(len(bias), MOST_LISTED))
        listing = tuple(
            (
                i,
                float(square[i].sqrt()),
                float(size[i]),
                float(bias[i]),
                float(1 - square[i] / variance[i]) if variance[i] > 0 else None,
            )
            for i in listed
        )
        points = [
            {"output": f"output {j}", "target": float(target), "answer": float(answer)}
            for example in shown[:500].tolist()
            for j, (target, answer) in enumerate(example)
        ]
        return Finding(
            headline="mean squared error",
            summary=f"Values are off by {mean_square**0.5:.4g} (root mean square) over {n} examples{words}.",
            quantities=quantities,
            threshold=NO_NETWORK if total > 0 else None,
            tables={
                "outputs": Table(
                    columns=(
                        "output",
                        "root mean squared error",
                        "mean absolute error",
                        "bias",
                        "share explained",
                    ),
                    rows=listing,
                )
            },
            figures={
                "values": scatter(
                    "Answers against targets",
                    points,
                    x="target",
                    y="answer",
                    series="output" if len(bias) > 1 else None,
                    diagonal=True,
                    caption="A point an example; on the line the answer is the target.",
                )
            },
            arrays={"rows": ids.numpy(), "samples": error.numpy()},
        )


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
