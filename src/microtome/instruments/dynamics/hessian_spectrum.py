"""Spectrum of the loss Hessian: largest eigenvalues, trace, density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from microtome.errors import Refusal
from microtome.figures import line, rows
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Moments, Sample, Sum
from microtome.instrument import Asking, HasParameters, HasTargets, Instrument
from microtome.instruments.dynamics._lanczos import Lanczos, Spectrum
from microtome.instruments.dynamics._words import eval_mode, loss_unit
from microtome.signals import Constant, hessian_vector_products, loss
from microtome.signals.directions import random_signs
from microtome.statistics import normal
from microtome.subject import Subject

KEEP = 256 << 20
"""Bytes of Lanczos vectors, or of first products, to hold at once."""


@dataclass(frozen=True, kw_only=True)
class HessianSpectrum(Instrument):
    """How sharp is the loss around these weights: largest curvatures, trace, and density of the rest?

    H [p, p] is the Hessian of the mean loss over n rows, seen through products H v. Lanczos from k random
    sign vectors at once, m steps, one round a step; top eigenvalues are the largest Ritz values (never above
    the truth, save rounding), each with the bound |H y - theta y| on its distance to an eigenvalue. Trace:
    the converged eigenvalues, and Hutchinson's mean of v^T H v over K sign vectors for the rest R, standard
    error sqrt(2 / K) |R|_F at most. Density by stochastic Lanczos quadrature (Ghorbani et al. 2019).
    Cost: about 4 forwards of n rows a product. Misleads: eigenvalues of n rows, not of the training set;
    kinks of ReLU have no second derivative and count as flat; equal eigenvalues show once; batch-norm in
    eval mode makes another loss than in training.
    """

    papers = ("loss-landscape-convergence-with-sample",)
    needs = HasTargets & HasParameters
    how_to_read = (
        "The largest eigenvalue is the steepest curvature: plain gradient descent with a learning rate above "
        "2 divided by it leaves this place. A few large values over a bulk near zero are usual, about one a "
        "class. Negative values show that the place is no minimum."
    )

    examples: int = 128
    probes: int = 2
    steps: int = 16
    trace_probes: int = 8
    top: int = 5
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return min(self.steps, subject.parameter_count)

    def examine(self, subject: Subject) -> Asking:
        over, p = Sample(self.examples, self.seed), subject.parameter_count
        count = max(min(self.trace_probes, KEEP // (8 * p)), self.probes)
        signs = random_signs(subject, count, self.seed)
        product, losses = yield [
            Sum(signals=(hessian_vector_products(loss, Constant(signs)),), over=over),
            Moments(signals=(loss,), over=over),
        ]
        product = product.to(signs.device) / losses.count
        if not bool(torch.isfinite(product).all()):
            raise Refusal("a Hessian-vector product is not finite")
        if not bool(product.any()):
            raise Refusal("the loss is flat here: every Hessian-vector product is zero")
        forms = torch.stack([torch.dot(v.to(w.dtype), w) for v, w in zip(signs, product, strict=True)])
        squares = product.square().sum(1)
        precision = max(torch.finfo(value.dtype).eps for value in subject.parameters.values())
        lanczos = Lanczos(signs[: self.probes] / math.sqrt(p), self.rounds(subject), KEEP, precision)
        lanczos.advance(product[: self.probes], 1 / math.sqrt(p))
        del product, signs  # as large as the network, each: drawn again when they are read
        while lanczos.vectors is not None:
            signal = hessian_vector_products(loss, Constant(lanczos.vectors))
            products = yield Sum(signals=(signal,), over=over)
            lanczos.advance(products, 1 / losses.count)
            del products
        signs = random_signs(subject, count, self.seed)
        values, vectors = lanczos.converged(1e-3)
        share = (vectors @ signs.T).double().square().cpu()  # [c, K]
        rest, left = forms.cpu() - values @ share, squares.cpu() - values.square() @ share
        trace = (float(values.sum() + rest.mean()), math.sqrt(max(2 * float(left.mean()), 0.0) / count))
        return self._finding(subject, lanczos.spectrum(), trace, count, lanczos.whole)

    def _finding(
        self, subject: Subject, found: Spectrum, traced: tuple[float, float], count: int, whole: bool
    ) -> Finding:
        unit, p = f"{loss_unit(subject)} / unit of weight²", subject.parameter_count
        trace, error = traced
        low, high = normal(trace, error)
        largest, bound = float(found.largest[0]), float(found.bounds[0])
        least, slack = found.least, found.least_bound
        mass = (found.weights * found.values.abs()).sum()
        negative = (found.weights * found.values.clamp(max=0).abs()).sum() / mass.clamp_min(1e-300)
        grid, density = found.density(256)
        drawn = rows(eigenvalue=grid.tolist(), density=density.clamp_min(1e-9).tolist())
        quantities = {
            "largest eigenvalue": Quantity(
                value=largest, unit=unit, low=largest - bound, high=largest + bound, confidence=1.0,
                how="Lanczos residual; these rows only", better="lower",
            ),
            "trace": Quantity(value=trace, unit=unit, low=low, high=high, how=f"Hutchinson, {count} probes"),
            "trace, standard error": Quantity(value=error, unit=unit),
            "least eigenvalue": Quantity(
                value=least, unit=unit, low=least - slack, high=least + slack, confidence=1.0,
                how="Lanczos residual; these rows only",
            ),
            "negative share": Quantity(value=float(negative), better="lower"),
        }  # fmt: skip
        if trace > 0 and largest > 0:
            quantities["effective eigenvalues"] = Quantity(value=trace / largest)
        if largest > 0:
            rate = f"unit of weight² / {loss_unit(subject)}"
            quantities["largest stable learning rate"] = Quantity(value=2 / largest, unit=rate)
        ranks = range(min(self.top, len(found.largest)))
        top = tuple((i + 1, float(found.largest[i]), float(found.bounds[i])) for i in ranks)
        words = () if whole else (
            "the Lanczos vectors do not fit the memory set aside for them: three-term recurrence, in which "
            "repeated copies of converged values are merged",
        )  # fmt: skip
        return Finding(
            headline="largest eigenvalue",
            summary=f"The steepest direction has curvature {largest:.3g}, all {p} together {trace:.3g}.",
            quantities=quantities,
            tables={"top": Table(columns=("rank", "eigenvalue", "bound on its error"), rows=top)},
            figures={
                "density": line(
                    "Density of eigenvalues", drawn,
                    x="eigenvalue", y="density", log_y=True, points=False, x_unit=unit,
                    caption="Quadrature nodes of all probes, widened by 1 % of the range.",
                )
            },
            arrays={
                "ritz_values": found.values.numpy(), "weights": found.weights.numpy(),
                "eigenvalues": found.largest.numpy(), "bounds": found.bounds.numpy(),
            },
            caveats=(*words, *eval_mode(subject)),
        )  # fmt: skip
