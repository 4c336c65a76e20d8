"""How fast the outputs can move with the input: a bound for all inputs, and the fastest that was found."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal, SubjectError
from microtome.figures import bars
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.interpret.lipschitz import Norm, lipschitz
from microtome.interpret.lipschitz_domain import NORMS
from microtome.signals import rows
from microtome.signals.interpretation import interpreted
from microtome.signals.lipschitz import JacobianNorms, LocalBounds
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class LipschitzConstant(Instrument):
    """How much faster than the input can the outputs move?

    Upper bound L: |f(x) - f(y)| <= L |x - y| for all inputs [d] and outputs [k] in one ``norm``, composed over the
    exported program: operator norms of linear layers (matrices: singular values; convolutions: the largest singular
    value over frequencies of the padded image, a bound from above), steepest slopes of activations, sums of branches.
    Found: the largest norm of the matrix of slopes [k, d] at ``examples`` inputs, a bound from below; the truth lies
    between. The ratio of both says how loose the composition is. Near an example: the same composition with slopes that
    occur in a box of ``radius`` around it, median over ``boxes`` examples. Units: output units per input unit.
    Cost: one walk over the program; k backward passes of ``examples`` inputs.
    Misleads: the upper bound grows with depth though the network need not, for no input is stretched most by every
    layer; a ratio of 1000 says nothing about the network. Layer-norm is bounded by its eps alone. Networks with
    products of values (attention, gates) have no finite bound and are refused (Kim, Papamakarios & Mnih 2021).
    """

    needs = HasSite & Independent
    how_to_read = (
        "The true constant lies between the fastest slope found and the upper bound. A margin divided by twice the "
        "upper bound is a radius within which no answer changes. Layers with a large factor are where a spectral "
        "penalty would act."
    )

    examples: int = 64
    norm: Norm = "2"
    radius: float = 0.01
    boxes: int = 2
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        if self.norm not in NORMS:
            raise Refusal(f"the norm is one of {', '.join(NORMS)}")
        yield ()  # planning captures nothing
        try:
            bound = lipschitz(subject.graph, self.norm)
        except SubjectError as error:
            raise Refusal(str(error)) from error
        found = yield {
            "slopes": Collect(
                signals=(rows, interpreted(JacobianNorms(self.norm))), over=Sample(self.examples, self.seed)
            ),
            "near": Collect(
                signals=(rows, interpreted(LocalBounds(self.radius, self.norm))),
                over=Sample(self.boxes, self.seed),
            ),
        }
        ids, slopes = found["slopes"]
        largest, near = float(slopes.max()), found["near"][1]
        unit = "output unit/input unit"
        quantities = {
            "upper bound": Quantity(value=bound.value, unit=unit, better="lower"),
            "largest slope found": Quantity(value=largest, unit=unit, better="lower"),
            "median slope": Quantity(value=float(slopes.median()), unit=unit),
            "upper bound near an example": Quantity(value=float(near.median()), unit=unit, better="lower"),
        }
        if largest > 0:
            quantities["bound, of the slope found"] = Quantity(value=bound.value / largest, better="lower")
        lines = tuple(
            (step.node.layer or step.node.name, step.kind, step.factor, step.estimate, step.so_far)
            for step in bound.steps
        )
        return Finding(
            headline="upper bound",
            summary=f"Outputs move at most {bound.value:.4g} times as far as the input, and {largest:.4g} times at one "
            f"of {len(ids)} examples (norm {self.norm}).",
            quantities=quantities,
            tables={
                "layers": Table(
                    columns=("layer", "operation", "factor", "norm by power iteration", "bound so far"),
                    rows=lines,
                    caption="What multiplies the bound, in order of the program; branches have their own lines",
                )
            },
            figures={
                "factors": bars(
                    "Factor by layer", [{"layer": line[0], "factor": line[2]} for line in lines],
                    category="layer", value="factor",
                )
            } if lines else {},
            arrays={"rows": ids.numpy(), "samples": slopes.numpy()},
            caveats=bound.notes,
        )  # fmt: skip
