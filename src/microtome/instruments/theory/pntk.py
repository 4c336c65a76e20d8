"""The tangent kernel of the summed answers: along which directions of the data the network learns fast."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasParameters, HasSite, Independent, Instrument
from microtome.signals import Constant, inputs, labels, outputs, rows
from microtome.signals.interpretation import interpreted
from microtome.signals.tangent import TangentKernel
from microtome.subject import Subject

MOST = 1 << 26
"""Numbers that the gradients of all answers of the exact subset may have."""


@dataclass(frozen=True, kw_only=True)
class PseudoNTK(Instrument):
    """Along which directions of the data does the network learn fast, and are the labels among them?

    K_ij = <g_i, g_j>, g_i [p] the gradient of the sum of example i's k answers over root k: an [n, n] stand-in for the
    tangent kernel Theta [n k, n k], as K times the identity (Mohamadi, Bae & Sutherland 2023). Of ``examples`` inputs.
    Gradient descent with a small rate shrinks an error along an eigenvector at a rate of its eigenvalue (Jacot et al.
    2018). Effective rank: exp(entropy of the eigenvalues over their sum). Alignment: cosine of the centred kernel and
    the centred kernel of the labels, 1 when equal labels are exactly what moves together. Error: |K x 1 - Theta| over
    |Theta|, Frobenius, exact on ``exact`` of the examples. Answers are logits.
    Cost: two gradients an example, and k for each of the exact ones; memory for a few gradients at a time.
    Misleads: the stand-in is proven for networks as they are first drawn, with a wide last layer; after training look
    at its error. The kernel speaks of small steps of plain gradient descent, and depends on the parametrisation.
    """

    papers = ("pntk", "neural-tangent-kernel")
    needs = HasSite & Independent & HasParameters
    how_to_read = (
        "A large first eigenvalue is the direction learned first, usually the mean of all answers. An alignment near 1 "
        "means that a step for one example helps those of its class and no others; near 0 labels are learned slowly. "
        "Trust the eigenvalues as far as the error of the stand-in allows."
    )

    examples: int = 64
    exact: int = 8
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        task = subject.task
        labelled = subject.has_targets and task.one_answer_per_example and task.kind != "unlabelled"
        over, some = Sample(self.examples, self.seed), Sample(min(self.exact, self.examples), self.seed)
        asked = {"all": Collect(signals=(rows, inputs, outputs), over=over)}
        if labelled:
            asked["labels"] = Collect(signals=(rows, labels), over=over)
        found = yield asked
        ids, x, answers = found["all"]
        k = answers.reshape(len(ids), -1).shape[1]
        chosen = some.rows(subject.examples)
        few = torch.isin(ids, chosen) if chosen is not None else torch.ones_like(ids, dtype=torch.bool)
        exact = self.exact > 0 and int(few.sum()) * k * subject.parameter_count <= MOST
        kernels = {"sum": Collect(signals=(rows, interpreted(TangentKernel(Constant(x)))), over=over)}
        if exact:
            kernels["full"] = Collect(
                signals=(rows, interpreted(TangentKernel(Constant(x[few]), "all"))), over=some
            )
        read = yield kernels
        kernel = (read["sum"][1] + read["sum"][1].T) / 2
        trace = float(kernel.diagonal().mean())
        if not trace > 0:
            raise Refusal("no parameter moves any answer on these examples")
        values = torch.linalg.eigvalsh(kernel).flip(0).clamp(min=0)
        shares = values / values.sum()
        present = shares[shares > 0]
        quantities = {
            "effective rank": Quantity(
                value=math.exp(float(-(present * present.log()).sum())), unit="directions"
            ),
            "share of the largest eigenvalue": Quantity(value=float(shares[0])),
            "largest eigenvalue": Quantity(
                value=float(values[0]), unit="squared answer per squared parameter"
            ),
            "mean of the diagonal": Quantity(value=trace, unit="squared answer per squared parameter"),
        }
        words, caveats = "", []
        if labelled:
            alignment = _alignment(kernel, _label_kernel(found["labels"][1], task.categorical))
            if alignment is not None:
                quantities["alignment with the labels"] = Quantity(value=alignment, better="higher")
                words = f" Its alignment with the labels is {alignment:.3f}."
        if exact:
            error = _error(kernel[few][:, few], read["full"][1])
            quantities["error of the stand-in"] = Quantity(value=error, better="lower")
        else:
            caveats.append(f"all {k} answers have too many gradients: the error of the stand-in is not known")
        rank = quantities["effective rank"].value
        table = tuple(
            (i + 1, float(v), float(s)) for i, (v, s) in enumerate(zip(values, shares, strict=True))
        )
        points = [{"number": n, "share": s} for n, _, s in table]
        return Finding(
            headline="effective rank",
            summary=f"The tangent kernel of {len(ids)} examples spreads over {rank:.1f} directions, "
            f"{float(shares[0]):.0%} of it along the first.{words}",
            quantities=quantities,
            tables={"eigenvalues": Table(columns=("number", "eigenvalue", "share"), rows=table[:20],
                                         caption="Largest first")},
            figures={"spectrum": line("Eigenvalues of the tangent kernel", points, x="number", y="share")},
            arrays={"rows": ids.numpy(), "kernel": kernel.numpy()},
            caveats=tuple(caveats),
        )  # fmt: skip


def _label_kernel(labels: Tensor, categorical: bool) -> Tensor:
    """[n, n] whether labels are equal, or inner products of values."""
    if categorical:
        return (labels[:, None] == labels).double()
    flat = labels.double().reshape(len(labels), -1)
    return flat @ flat.T


def _alignment(a: Tensor, b: Tensor) -> float | None:
    """Cosine of centred kernels; None where one is constant."""
    centre = torch.eye(len(a), dtype=a.dtype) - 1 / len(a)
    first, second = centre @ a @ centre, centre @ b @ centre
    size = float(first.norm() * second.norm())
    flat = float(first.norm()) <= 1e-12 * float(a.norm()) or float(second.norm()) <= 1e-12 * float(b.norm())
    return None if flat or size == 0 else float((first * second).sum()) / size


def _error(kernel: Tensor, full: Tensor) -> float:
    """Of K x 1, [n, n], against Theta [n, k, n, k], relative."""
    stand_in = torch.einsum("ij,ab->iajb", kernel, torch.eye(full.shape[1], dtype=kernel.dtype))
    return float((stand_in - full).norm() / full.norm())
