"""How densely linear regions lie between examples, and elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import bars
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample, row_uniform
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.signals import inputs, rows
from microtome.signals.expression import Constant
from microtome.signals.interpretation import interpreted
from microtome.signals.noise import row_counters, row_normal
from microtome.signals.readout import example_labels
from microtome.signals.regions import Crossed, Nearest, affordable_share, matrices_fit, piecewise_program
from microtome.statistics import student
from microtome.subject import Subject

WAYS = ("to the same class", "to another class", "in a random direction", "between random points")


@dataclass(frozen=True, kw_only=True)
class LinearRegions(Instrument):
    """How many linear regions lie on the way from one example to the next?

    A network of linear maps, ReLUs, clamps and max-pools is linear on polytopes; crossing a boundary changes the piece
    of some unit. Density = boundaries crossed / Euclidean length, in 1 / unit of the inputs, along straight ways of
    equal length from each of ``examples`` inputs x [d]: to the next of its class among ``partners`` examples, to one of
    another class (cut to the same length), in a random direction, and from a random point of the box of the data in a
    random direction.
    Every crossing is solved for in float64, none is sampled (Sotoudeh & Thakur 2019). Distance to the nearest boundary:
    min over units of |margin| / |gradient of the margin| inside the region, exact; only where all slopes fit.
    Tiwari & Konidaris 2022 bound both by the number of units and the geometry of the data.
    Cost: a forward of all points where something is crossed, for each way; d + 1 forwards for a distance.
    Misleads: a straight way between examples leaves their manifold; with as many units more boundaries are crossed
    whatever was learned: compare networks of one architecture, or with the untrained one.
    """

    papers = ("linear-regions-on-the-data-manifold",)
    needs = HasSite & Independent
    how_to_read = (
        "The density says how often the network changes its linear rule per unit of distance. Near to data it is often "
        "higher between classes than within one; equal densities along data and random ways mean that training did not "
        "place the boundaries where the data are."
    )

    examples: int = 4
    partners: int = 64
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        yield ()  # planning captures nothing
        graph = piecewise_program(subject)
        narrow, share = matrices_fit(graph), affordable_share(graph)
        over = Sample(self.examples, self.seed)
        labelled = subject.task.one_answer_per_example and subject.has_targets and subject.task.categorical
        label = [example_labels()] if labelled else []
        around = Sample(max(self.examples, self.partners), self.seed)  # of which the others are a part
        ids, given, *named = yield Collect(signals=(rows, inputs, *label), over=around)
        classes = named[0] if named else torch.zeros(len(ids), dtype=torch.long)
        starts, ends, kinds = _ways(ids, given.double(), classes, self.seed)
        ends = starts + share * (ends - starts)
        chosen = over.rows(subject.examples)
        kept = torch.isin(ids, chosen) if chosen is not None else torch.ones_like(ids, dtype=torch.bool)
        ids, starts, ends = ids[kept], starts[kept], ends[kept]
        length = (ends - starts).flatten(2).norm(dim=2)  # [n, kinds]
        if not bool((length > 0).any()):
            raise Refusal("there are no two different examples to go between")
        asked = {"ways": Collect(signals=(rows, interpreted(Crossed(Constant(starts, ids), Constant(ends, ids)))),
                                 over=over)}  # fmt: skip
        if narrow:
            asked["near"] = Collect(signals=(rows, interpreted(Nearest())), over=over)
        found = yield asked
        counts = found["ways"][1]
        quantities, table = {}, []
        for i, kind in enumerate(kinds):
            gone = length[:, i] > 0
            if not bool(gone.any()):
                continue
            each = (counts[gone, i] / length[gone, i]).numpy()
            mean, low, high = student(each)
            single = len(each) < 2
            quantities[f"density {kind}"] = Quantity(
                value=mean, unit="1/input unit", low=None if single else low, high=None if single else high,
                how="" if single else "t over ways",
            )  # fmt: skip
            table.append(
                (kind, len(each), float(length[gone, i].mean()), float(counts[gone, i].mean()), mean)
            )
        head = table[0][0]
        here, elsewhere = quantities[f"density {head}"].value, quantities[f"density {WAYS[3]}"].value
        quantities["regions on a way"] = Quantity(value=float(table[0][3]) + 1, unit="regions")
        if elsewhere > 0:
            quantities["density, of that between random points"] = Quantity(value=here / elsewhere)
        caveats = [] if labelled else ["without one class an example, ways go to the next example"]
        if share < 1:
            caveats.append(f"the network is large: ways are cut to {share:.2g} of their length")
        if narrow:
            near = found["near"][1]
            near = near[near >= 0]
            if len(near):
                quantities["nearest boundary"] = Quantity(value=float(near.median()), unit="input unit")
        else:
            caveats.append(
                "the slopes of all units are too many to have: no distance to the nearest boundary"
            )
        return Finding(
            headline=f"density {head}",
            summary=f"From an example {head}, {table[0][3]:.4g} boundaries are crossed on the way, {here:.3g} per unit "
            f"of distance; between random points {elsewhere:.3g}.",
            quantities=quantities,
            tables={"ways": Table(columns=("way", "ways", "length", "boundaries", "density"), rows=tuple(table),
                                  caption="Means over ways; lengths in units of the inputs")},
            figures={"density": bars("Boundaries per unit of distance", [{"way": r[0], "density": r[4]} for r in table],
                                     category="way", value="density", unit="1/input unit")},
            arrays={"rows": np.asarray(ids), "boundaries": counts.numpy(), "lengths": length.numpy()},
            caveats=tuple(caveats),
        )  # fmt: skip


def _ways(ids: Tensor, x: Tensor, classes: Tensor, seed: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Starts and ends [n, kinds, ...] of the ways of each example, and what they are called.

    An example without a partner gets a way of length 0.
    """
    n = len(ids)
    ahead = (torch.arange(n)[:, None] + torch.arange(1, n + 1)) % n  # the others in order, itself last
    same = classes[ahead] == classes[:, None]
    partner = ahead.gather(1, same.long().argmax(1, keepdim=True))[:, 0]
    other = ahead.gather(1, (~same).long().argmax(1, keepdim=True))[:, 0]
    flat = x.flatten(1)
    several = bool((~same).any())
    to_other = flat[other] - flat
    length = (flat[partner] - flat).norm(dim=1, keepdim=True)
    length = torch.where(length > 0, length, to_other.norm(dim=1, keepdim=True) if several else 0.0)
    counters = row_counters(ids, flat.shape[1])
    direction = [row_normal(counters, seed, draw) for draw in (51, 52)]
    steps = [length * d / d.norm(dim=1, keepdim=True) for d in direction]
    low, high = flat.amin(0), flat.amax(0)
    anywhere = low + (high - low) * row_uniform(counters, seed, 53)
    starts = [flat, flat, flat, anywhere]
    ends = [flat[partner], flat + to_other * (length / to_other.norm(dim=1, keepdim=True).clamp(min=1e-300)),
            flat + steps[0], anywhere + steps[1]]  # fmt: skip
    kinds = [*WAYS] if several else ["to the next example", *WAYS[2:]]
    if not several:
        starts, ends = starts[1:], [ends[0], *ends[2:]]
    shape = (n, len(kinds), *x.shape[1:])
    return torch.stack(starts, 1).reshape(shape), torch.stack(ends, 1).reshape(shape), tuple(kinds)
