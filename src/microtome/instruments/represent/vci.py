"""The variability collapse index of every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Covariance, GroupedMoments
from microtome.folds.spectrum import zero_variance
from microtome.folds.stock import CovarianceResult, GroupedResult
from microtome.instrument import Asking, HasClasses, HasLayers, HasTargets, Instrument, OneAnswer
from microtome.signals.readout import WIDEST, example_labels, narrowed, penultimate
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class VariabilityCollapseIndex(Instrument):
    """How much of each layer's variation does not tell classes apart, whatever linear map follows?

    VCI = 1 - tr(pinv(S_T) S_B) / rank(S_B) (Xu & Liu 2023), S_T and S_B the total and between-class
    covariance of features [n, d]. 0: a linear probe separates the classes without error in the
    least-squares sense; 1: class means are equal. Unlike NC1 and CDNV it does not change under any
    invertible linear map, so it compares layers of different scale. S_B comes from class means and counts,
    S_T's pseudo-inverse drops directions within rounding. Exact in one pass. In-sample it is 1 - r/(n-1)
    for labels that mean nothing (r the rank of S_T), so it reads low when n is not many times d; the
    adjusted value, VCI (n-1)/(n-1-r) as in adjusted R^2, is 1 there.
    """

    papers = ("vci",)
    needs = HasTargets & HasClasses & OneAnswer & HasLayers
    how_to_read = (
        "0 means classes are points after the best linear map, 1 means they are not separated at all; "
        "usually it falls with depth. Use the adjusted value when a layer has more than a tenth as many "
        "units as there are examples."
    )

    def examine(self, subject: Subject) -> Asking:
        k = subject.classes or 0
        label, last = example_labels(), penultimate(subject)
        layers = [x for x in subject.representations if x.name == last or k * min(x.units, WIDEST) <= 1 << 16]
        results = yield {
            x.name: (
                Covariance(signals=(narrowed(x),)),
                GroupedMoments(signals=(narrowed(x), label), groups=k, full=False),
            )
            for x in layers
        }
        if int((results[last][1].count > 0).sum()) < 2:
            raise Refusal("only one class is present")
        n = subject.examples
        rows, points = [], []
        for x in layers:
            total, grouped = results[x.name]
            index, rank = _vci(total, grouped, subject.dtype)
            adjusted = index * (n - 1) / (n - 1 - rank) if index is not None and rank < n - 1 else None
            rows.append((x.name, x.units, rank, index, adjusted))
            points += [{"layer": x.name, "VCI": adjusted}] if adjusted is not None else []
        upto = [r[0] for r in rows].index(last) + 1
        read = next((r for r in reversed(rows[:upto]) if r[4] is not None), None)
        if read is None:
            raise Refusal(
                "class means are equal, or layers have as many directions as there are examples "
                "(then VCI is 0 whatever the labels)"
            )
        name, _, rank, index, adjusted = read
        assert index is not None and adjusted is not None
        crowded = [r[0] for r in rows if r[2] * 10 > n]
        caveats = (
            [f"fewer than 10 examples a direction in {len(crowded)} layers: read the adjusted value"]
            if crowded
            else []
        )
        caveats += (
            [f"the headline is of {name}: {last} has too few examples, or equal class means"]
            if name != last
            else []
        )
        return Finding(
            headline="VCI",
            summary=f"Along the directions that separate classes best, {100 * index:.1f} % of the "
            f"variance of {name} is within classes.",
            quantities={
                "VCI": Quantity(value=index),
                "VCI, adjusted": Quantity(value=adjusted),
                "VCI, meaningless labels": Quantity(value=1 - rank / (n - 1)),
            },
            tables={
                "layers": Table(
                    columns=("layer", "units", "rank", "VCI", "adjusted"),
                    rows=tuple(rows),
                    caption="In order of the network; empty where class means coincide or there are "
                    "too few examples",
                )
            },
            figures={"VCI": line("Adjusted VCI by layer", points, x="layer", y="VCI")},
            caveats=tuple(caveats),
        )


def _vci(total: CovarianceResult, grouped: GroupedResult, dtype: torch.dtype) -> tuple[float | None, int]:
    """(VCI, rank of the total covariance); None when the classes have one mean."""
    tiny = zero_variance(total, dtype)
    covariance = total.covariance.cpu() * ((total.count - 1) / total.count)
    share = grouped.count.cpu().double() / total.count
    means = grouped.mean.cpu()[share > 0]
    share = share[share > 0]
    root = (means - share @ means) * share.sqrt()[:, None]  # S_B = root^T root
    rank = int((torch.linalg.eigvalsh(root @ root.T) > tiny).sum())
    explained, total_rank = _explained(covariance, root, tiny)
    return (1 - explained / rank if rank else None), total_rank


def _explained(covariance: Tensor, root: Tensor, tiny: float) -> tuple[float, int]:
    """(tr(pinv(covariance) root^T root), rank)."""
    alive = covariance.diagonal() > tiny
    covariance, root = covariance[alive][:, alive], root[:, alive]
    # covariance - tiny has a Cholesky factor exactly when every eigenvalue is larger: no spectrum is needed.
    shifted = covariance - tiny * torch.eye(len(covariance), dtype=covariance.dtype)
    if not int(torch.linalg.cholesky_ex(shifted)[1]):
        factor = torch.linalg.cholesky(covariance)
        return float(torch.linalg.solve_triangular(factor, root.T, upper=False).square().sum()), len(
            covariance
        )
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > tiny
    return float(((root @ vectors[:, kept]).square().sum(0) / values[kept]).sum()), int(kept.sum())
