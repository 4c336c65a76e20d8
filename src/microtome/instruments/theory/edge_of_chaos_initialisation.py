"""Where a network stands between forgetting its inputs and tearing them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from microtome.errors import Refusal, SubjectError
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasParameters, HasSite, Independent, Instrument
from microtome.interpret.propagation import branches, propagation
from microtome.signals import inputs, rows
from microtome.subject import Subject

AT_THE_EDGE = 1e-3
"""How near to 1 a mean chi counts as 1: a network of 1000 layers keeps its gradients within a factor of 3."""


@dataclass(frozen=True, kw_only=True)
class EdgeOfChaos(Instrument):
    """Does the network keep its signals and gradients as they pass through its layers?

    chi of a stage = sigma_w^2 E f'(z)^2: the factor of a small difference between two inputs, and of a gradient's
    squared norm; sigma_w^2 = fan-in times the mean square of the weights. Below 1 inputs become alike and gradients
    vanish (ordered), above 1 they part and grow (chaotic); the depth scale 1 / |ln chi| says over how many layers.
    Reported is the geometric mean over stages, with variance and mean cosine of ``examples`` inputs at every layer of
    weights, beside what mean-field theory predicts from the variances alone (Schoenholz et al. 2017; Hayou 2019).
    Cost: a walk over the program with kernels [n, n] by position, and a forward of the sample.
    Misleads: theory is of independent weights and great width. Of trained networks the gap to the prediction says how
    far weights have come from independent ones; with residual sums chi is that of a branch. Max-pools, attention,
    layers used twice and batch-norms that differ by unit before an activation have no prediction and are refused.
    """

    papers = ("edge-of-chaos-initialisation",)
    needs = HasSite & Independent & HasParameters
    how_to_read = (
        "A chi of 1 lets signals and gradients through any depth. At 0.5 a gradient has lost half of its squared norm "
        "after one stage; networks much deeper than a few depth scales do not train. Multiply the weights by the scale "
        "given to be at the edge, or draw them with microtome.nn.critical."
    )

    examples: int = 16
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        yield ()  # planning captures nothing
        ids, x = yield Collect(signals=(rows, inputs), over=Sample(self.examples, self.seed))
        try:
            stages = propagation(subject.graph, x)
            joins = branches(subject.graph)
        except SubjectError as error:
            raise Refusal(str(error)) from error
        factors = [s.chi for s in stages if s.chi is not None]
        if not factors:
            raise Refusal("there is one layer of weights: nothing travels from layer to layer")
        if min(factors) <= 0 or min(s.told for s in stages) <= 0:
            raise Refusal("a layer of weights, or a function, is flat: no signal comes through")
        mean = math.exp(sum(math.log(v) for v in factors) / len(factors))
        last = stages[-1]
        phase = "at the edge" if abs(mean - 1) < AT_THE_EDGE else "ordered" if mean < 1 else "chaotic"
        quantities = {
            "chi": Quantity(value=mean),
            "gradient factor of all stages": Quantity(value=math.prod(factors)),
            "scale of weights that leads to the edge": Quantity(value=mean**-0.5),
            "variance at the last layer": Quantity(value=last.variance, unit="output unit^2"),
            "variance at the last layer, of that predicted": Quantity(value=last.variance / last.told),
        }
        if phase != "at the edge":
            quantities["depth scale"] = Quantity(value=1 / abs(math.log(mean)), unit="layers")
        if last.correlation is not None and last.correlation_told is not None:
            quantities["cosine of two inputs at the last layer"] = Quantity(value=last.correlation)
            quantities["cosine at the last layer, predicted"] = Quantity(value=last.correlation_told)
        points = [{"layer": s.layer, "variance": v, "which": which} for s in stages
                  for which, v in (("measured", s.variance), ("predicted", s.told))]  # fmt: skip
        caveats = (f"{len(joins)} sums of branches: chi is that of the branches",) if joins else ()
        return Finding(
            headline="chi",
            summary=f"The network is {phase}: a small difference changes its square by a factor of {mean:.3g} a stage, "
            f"{math.prod(factors):.3g} in all {len(factors)}.",
            quantities=quantities,
            tables={"layers": Table(
                columns=("layer", "functions before", "numbers", "sigma_w", "sigma_b", "chi", "variance",
                         "predicted variance", "cosine", "predicted cosine"),
                rows=tuple((s.layer, ", ".join(s.functions), s.units, s.sigma_w, s.sigma_b, s.chi, s.variance, s.told,
                            s.correlation, s.correlation_told) for s in stages),
                caption="Layers of weights in order of the program; cosines are means over pairs of inputs",
            )},
            figures={"variance": line("Variance by layer", points, x="layer", y="variance", series="which")},
            arrays={"rows": ids.numpy()},
            caveats=caveats,
        )  # fmt: skip
