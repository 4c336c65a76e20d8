"""Neural collapse: NC1 to NC4 at the classifier's input, and the spread of classes in every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import heatmap, line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Covariance, GroupedMoments, Moments
from microtome.folds.spectrum import zero_variance
from microtome.folds.stock import CovarianceResult, GroupedResult
from microtome.instrument import Asking, HasClasses, HasLayers, HasTargets, Instrument, OneAnswer
from microtome.signals import Constant, derive, predictions
from microtome.signals.readout import WIDEST, example_labels, narrowed, readout
from microtome.statistics import wilson
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ClassCollapse(Instrument):
    """Have the classes shrunk to points at the corners of a simplex?

    Papyan, Han & Donoho 2020, on features h [n, d] read by the classifier W [k, d], class means m_c less
    the mean over classes: NC1 = tr(S_W pinv(S_B)) / k; NC2 = sd / mean of |m_c|, sd of cos(m_c, m_c') over
    pairs and their mean distance from -1/(k-1); the same of the rows of W; NC3 = |W/|W| - M/|M||^2
    (Frobenius); NC4 = share whose nearest class mean is not the network's answer. CDNV (Galanti, Gyorgy &
    Hutter 2022) of each layer: mean over pairs of classes of (v_c + v_c') / (2 |m_c - m_c'|^2), v_c the
    mean squared distance to the class mean. 0 is full collapse everywhere. Two passes. Collapse is a fact
    about training data; test data shows more spread. Noise of the means makes NC1 and CDNV read low with
    few examples a class.
    """

    needs = HasTargets & HasClasses & OneAnswer & HasLayers
    how_to_read = (
        "NC1 and CDNV compare the spread within classes to the distance between them: 0.01 is tight, 1 is "
        "loose. NC2 near 0 means evenly placed classes, NC3 near 0 a classifier that copies the class "
        "means. Measure on training data to compare with the literature; strong collapse helps the task at "
        "hand and tends to harm transfer."
    )

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        k = subject.classes or 0
        found = readout(subject)
        if found is None or found.weight.shape[1] > WIDEST:
            raise Refusal("no linear classifier that reads the output of a layer of at most 1024 units")
        read, label = found.features, example_labels()
        layers = [x for x in subject.representations if k * min(x.units, WIDEST) <= 1 << 16]
        grouped = {x.name: GroupedMoments(signals=(narrowed(x), label), groups=k, full=False) for x in layers}
        got = yield {
            "all": Covariance(signals=(read,)),
            "gap": Moments(signals=(found.gap(),)),
            "class": GroupedMoments(signals=(read, label), groups=k, full=False),
            "layers": grouped,
        }
        count, means = got["class"].count.cpu(), got["class"].mean.cpu()
        present = count > 0
        classes = int(present.sum())
        if classes < 2:
            raise Refusal("only one class is present")
        if float(got["gap"].maximum) > 5e-2:  # half precision rounds by about 1e-2
            raise Refusal(
                f"'{found.classifier}' does not read the mean of '{found.layer}' over its positions"
            )
        share = count[present].double() / count.sum()
        nc1 = _nc1(got["all"], means[present], share, zero_variance(got["all"], subject.dtype)) / classes
        balanced = means[present] - means[present].mean(0)
        weight = found.weight.cpu()[present]
        if not bool(weight.any()):
            raise Refusal(f"all weights of '{found.classifier}' are 0: it reads nothing")
        duality = float((weight / weight.norm() - balanced / balanced.norm()).square().sum())
        named = Constant(present.nonzero()[:, 0])
        centres = Constant(means[present])
        nc4 = yield Moments(signals=(derive(_off_centre, read, predictions, centres, named),))
        off = round(float(nc4.mean) * nc4.count)
        low, high = wilson(off, nc4.count)
        curve = {name: _cdnv(of) for name, of in got["layers"].items()}
        last = _cdnv(got["class"])
        plain, (cosines, shape), (_, dual) = {"NC1": nc1}, _frame(balanced), _frame(weight)
        plain |= {f"NC2 {key}": value for key, value in shape.items()}
        plain |= {f"NC2 {key}, classifier": value for key, value in dual.items()} | {"NC3": duality}
        quantities = {name: Quantity(value=value) for name, value in plain.items()}
        share_off, unit = off / nc4.count, "share of examples"
        quantities["NC4"] = Quantity(value=share_off, unit=unit, low=low, high=high, how="Wilson")
        quantities |= {"CDNV": Quantity(value=last)} if last is not None else {}
        caveats = ["collapse is defined on training data: on other data all of these read higher"]
        few = int(count[present].min())
        caveats += [f"a class has only {few} examples: NC1 and CDNV are biased"] if few < 30 else []
        points = [{"layer": name, "CDNV": value} for name, value in curve.items() if value is not None]
        figures = {}
        if points:
            figures["CDNV"] = line("Spread of classes by layer", points, x="layer", y="CDNV", log_y=True)
        if classes <= 64:
            names = [str(c) for c in named.value.tolist()]
            figures["angles"] = heatmap(
                "Cosines between class means", cosines.numpy(), row_names=names, column_names=names,
                limits=(-1, 1), diverging=True, value_title="cosine",
            )  # fmt: skip
        empty = "In order of the network; empty where two class means coincide"
        return Finding(
            headline="NC1",
            summary=f"Within-class spread at {found.layer} is {nc1:.2g} of the between-class spread (NC1); "
            f"{off} of {nc4.count} answers are not the nearest class mean.",
            quantities=quantities,
            tables={"layers": Table(columns=("layer", "CDNV"), rows=tuple(curve.items()), caption=empty)},
            figures=figures,
            arrays={"class means": means.numpy()},
            caveats=tuple(caveats),
        )


def _nc1(total: CovarianceResult, means: Tensor, share: Tensor, tiny: float) -> float:
    """tr(S_W pinv(S_B)), from S_W = S_T - S_B and the class means [k, d]."""
    centred = means - share @ means
    between = (centred * share[:, None]).T @ centred
    within = total.covariance.cpu() * ((total.count - 1) / total.count) - between
    values, vectors = torch.linalg.eigh(between)
    kept = values > tiny
    if not bool(kept.any()):
        raise Refusal("the class means before the classifier are equal: nothing to collapse to")
    basis = vectors[:, kept]
    return float(((basis * (within @ basis)).sum(0) / values[kept]).sum().clamp_min(0))


def _off_centre(features: Tensor, predictions: Tensor, centres: Constant, classes: Constant) -> Tensor:
    """[n] 1 where the nearest class mean is not the predicted class."""
    nearest = torch.cdist(features.double(), centres.value.to(features.device)).argmin(1)
    return (classes.value.to(features.device)[nearest] != predictions).double()


def _frame(rows: Tensor) -> tuple[Tensor, dict[str, float]]:
    """[k, k] cosines between [k, d] rows, and how far the rows are from a simplex."""
    length = rows.norm(dim=1)
    unit = rows / length.clamp_min(1e-300)[:, None]
    cosines = unit @ unit.T
    pairs = cosines[~torch.eye(len(rows), dtype=torch.bool)]
    return cosines, {
        "equal length": float(length.std(correction=0) / length.mean().clamp_min(1e-300)),
        "equal angle": float(pairs.std(correction=0)),
        "simplex": float((pairs + 1 / (len(rows) - 1)).abs().mean()),
    }


def _cdnv(of: GroupedResult) -> float | None:
    """Mean over pairs of classes; None when two class means coincide."""
    present = (of.count > 0).cpu()
    spread = of.within.cpu()[present] / of.count.cpu()[present]
    means = of.mean.cpu()[present]
    i, j = torch.triu_indices(len(means), len(means), 1)
    distance = (means[i] - means[j]).square().sum(1)
    if bool((distance <= 1e-12 * means.square().sum(1).amax()).any()):
        return None
    return float(((spread[i] + spread[j]) / (2 * distance)).mean())
