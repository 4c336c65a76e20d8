"""Whether one user's input can reach another user's answer within a batch."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal, SubjectError
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasSite, Instrument
from microtome.interpret.isolation import by_the_batch, isolation
from microtome.signals import rows
from microtome.signals.interpretation import interpreted
from microtome.signals.isolation import Companions
from microtome.subject import Subject

SOURCE = "non-interference: an answer must not depend on other examples of its batch (Küchler et al. 2025)"


@dataclass(frozen=True, kw_only=True)
class BatchIsolation(Instrument):
    """Can one example of a batch reach the answer of another?

    Information flow over the exported program in eval mode: every value is labelled with the axis along which its
    entries belong to one example each; an operation that would join entries of two (a reduction, softmax, product,
    gather or view across that axis, statistics of a batch) is a leak, as is an operation without a rule (Küchler et
    al. 2025). Weights count as any numbers and no input is run, so that neither a zero weight nor a missing trigger
    hides a leak. 0 leaking operations is a proof for the program and every size of batch it takes. Beside it
    ``examples`` inputs are answered beside two different companions each: the largest change of an output is 0 where
    the proof holds. Modules that would normalise by the batch in train mode are listed.
    Cost: one walk over the program on labels, 2 forwards of two rows for each of ``examples``.
    Misleads: it speaks of the exported program: of code that branches on the size of the batch it knows one way, and of
    hooks, servers and caches around it, and of timing, nothing. Operations that cancel (a batch reversed twice) count
    as leaks though nothing leaks.
    """

    papers = ("batch-isolation-audit",)
    needs = HasSite
    how_to_read = (
        "0 is a proof: nobody's answer depends on who else is in the batch. Anything else names the operation and the "
        "line by which examples may meet; a change above 0 shows that they do."
    )

    examples: int = 4
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        yield ()  # planning captures nothing
        if subject.layout.kind == "graph":
            raise Refusal("examples of a graph are meant to reach one another")
        try:
            found = isolation(subject.graph)
        except SubjectError as error:
            raise Refusal(str(error)) from error
        quantities = {
            "leaking operations": Quantity(value=len(found.leaks), unit="operations", better="lower"),
            "operations followed": Quantity(value=found.followed, unit="operations"),
        }
        caveats = []
        if subject.independent_rows and subject.graph.dynamic:
            over = Sample(self.examples, self.seed)
            _, change = yield Collect(signals=(rows, interpreted(Companions())), over=over)
            largest = float(change.max())
            quantities["largest change by a companion"] = Quantity(
                value=largest, unit="output unit", better="lower"
            )
        else:
            caveats.append("the network was seen to answer an example otherwise when its batch is cut")
        trained = by_the_batch(subject.model)
        quantities["modules that leak in train mode"] = Quantity(value=len(trained), unit="modules")
        if trained:
            caveats.append("in train mode examples meet in " + ", ".join(trained[:8]))
        if not subject.graph.dynamic:
            caveats.append(f"the program takes batches of {found.sizes[0]} alone: the proof is for that size")
        words = (
            f"Proven over {found.followed} operations: no answer depends on another example of its batch."
            if found.proved
            else f"Examples may meet in {len(found.leaks)} operations, first in {found.leaks[0].text()}."
        )
        return Finding(
            headline="leaking operations",
            summary=words,
            quantities=quantities,
            tables={
                "leaks": Table(
                    columns=("operation", "module", "line", "why"),
                    rows=tuple((x.operation, x.node.layer, x.node.where, x.why) for x in found.leaks),
                    caption="In order of the program",
                )
            },
            threshold=Threshold(quantity="leaking operations", watch=0, alarm=0, source=SOURCE),
            caveats=tuple(caveats),
        )
