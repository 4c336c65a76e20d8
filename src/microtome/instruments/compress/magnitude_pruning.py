"""How many of the smallest weights can go, tensor by tensor and all together."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Cell, Finding, Quantity, Table
from microtome.folds import Collect, Moments, Sample
from microtome.instrument import Asking, HasParameters, HasTargets, Instrument
from microtome.instruments.compress._pruned import bearable, covered, mean_drop, rise, taken
from microtome.signals import correct, derive, loss, prediction_ids
from microtome.signals.parameters import MagnitudePruned, RandomPruned
from microtome.subject import Subject

ALL = "all together"


@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(Instrument):
    """How many of its smallest weights could be removed unnoticed, and where do they matter?

    Each weight tensor (two dimensions or more) loses the given fraction of its entries, the smallest |w|
    (Han et al. 2015), with nothing retrained; then all together under one common threshold. Read: accuracy
    (the loss where there are no classes) on the same ``examples`` rows. Prunable: the largest tried fraction
    up to which the drop stays within ``tolerance`` (0.01: a point of accuracy; a hundredth of the loss).
    Control: as many weights removed by chance, from all together at every fraction, from each tensor at
    ``control``. One forward a tensor and fraction: as many of the largest tensors as ``worlds`` allow.
    Without retraining this is a lower bound of what pruning can reach, and an accuracy of 512 examples
    cannot tell drops below a point.
    """

    needs = HasTargets & HasParameters
    how_to_read = (
        "0.9 for a tensor means that nine tenths of its weights can be set to zero at once with no loss "
        "that shows. Tensors with low numbers are where the network is tight. If pruning by chance does as "
        "well, the size of a weight says nothing about its use."
    )

    fractions: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9, 0.97)
    control: float = 0.5
    tolerance: float = 0.01
    examples: int = 512
    worlds: int = 64
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        fractions = tuple(sorted({*self.fractions, self.control}))
        if not 0 < fractions[0] <= fractions[-1] <= 1:
            raise Refusal("fractions of weights lie above 0 and at most at 1")
        weights = {name: p for name, p in subject.parameters.items() if p.dim() >= 2 and p.numel() > 1}
        if not weights:
            raise Refusal("no parameter has two dimensions: there are no weights to prune")
        # Each tensor alone costs a forward a fraction and one by chance; all together two a fraction.
        alone = max((self.worlds - 2 * len(fractions)) // (len(fractions) + 1), 1)
        largest = sorted(weights, key=lambda name: -weights[name].numel())[:alone]
        sets = {name: (name,) for name in weights if name in largest} | {ALL: tuple(weights)}
        over = Sample(self.examples, self.seed)
        sign, measure = (-1.0, correct) if subject.task.categorical else (1.0, loss)

        def at(change: MagnitudePruned | RandomPruned) -> Moments:
            return Moments(signals=(derive(rise, measure, measure.at(change), sign=sign),), over=over)

        (ids, before), small, chance = yield [
            Collect(signals=(prediction_ids, measure), over=over),
            {(name, f): at(MagnitudePruned(of, f)) for name, of in sets.items() for f in fractions},
            {
                (name, f): at(RandomPruned(of, f, self.seed))
                for name, of in sets.items()
                for f in (fractions if name == ALL else (self.control,))
            },
        ]
        base = float(before.double().mean())
        allowed = self.tolerance * (1.0 if subject.task.categorical else base)
        reach = {name: bearable([small[name, f] for f in fractions], fractions, allowed) for name in sets}
        by_chance = bearable([chance[ALL, f] for f in fractions], fractions, allowed)
        word = "accuracy lost" if subject.task.categorical else "loss added"
        order = sorted(sets, key=lambda name: (name == ALL, reach[name]))
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                name,
                sum(weights[n].numel() for n in sets[name]),
                reach[name],
                *(taken(small[name, f]) for f in fractions),
                taken(chance[name, self.control]),
            )
            for name in order
        )
        drawn = [*order[:-1][:12], ALL]
        curves = {name: [small[name, f] for f in fractions] for name in drawn}
        curves[f"{ALL}, by chance"] = [chance[ALL, f] for f in fractions]
        points = [
            {"fraction": f, word: taken(drop), "weights": name}
            for name, curve in curves.items()
            for f, drop in zip(fractions, curve, strict=True)
        ]
        worst, cost = small[ALL, self.control], chance[ALL, self.control]
        unit = "1" if subject.task.categorical else "loss"
        kept = sum(weights[n].numel() for n in largest)
        caveats = []
        if len(weights) > len(largest):
            share = kept / sum(w.numel() for w in weights.values())
            caveats.append(
                f"only the {len(largest)} largest of {len(weights)} weight tensors ({share:.0%} of weights) "
                "were pruned alone; all were pruned together"
            )
        if len(ids) * self.tolerance < 1 and subject.task.categorical:
            caveats.append(f"{len(ids)} predictions cannot show a drop of {self.tolerance:g}")
        if by_chance >= reach[ALL] > 0:
            caveats.append("weights chosen by chance can go as well: what is measured hardly rests on them")
        tight = min(
            (n for n in sets if n != ALL), key=lambda n: (reach[n], -float(small[n, fractions[-1]].mean))
        )
        return Finding(
            headline="prunable together",
            summary=f"{reach[ALL]:.0%} of the weights can go at once ({by_chance:.0%} by chance) within "
            f"{self.tolerance:g}; {tight} is the tightest, {reach[tight]:.0%} alone.",
            quantities={
                "prunable together": Quantity(value=reach[ALL], unit="share of weights", better="higher"),
                "prunable by chance": Quantity(value=by_chance, unit="share of weights"),
                f"{word} at {self.control:g}": mean_drop(worst, unit),
                f"{word} at {self.control:g} by chance": mean_drop(cost, unit),
                "unpruned accuracy" if subject.task.categorical else "unpruned loss": Quantity(value=base),
            },
            tables={
                "tensors": Table(
                    columns=(
                        "weights",
                        "count",
                        "prunable",
                        *(f"at {f:g}" for f in fractions),
                        f"by chance at {self.control:g}",
                    ),
                    rows=rows,
                    caption=f"{word.capitalize()} at each pruned fraction; tightest first",
                )
            },
            figures={
                "sensitivity": line(
                    "Pruning the smallest weights",
                    points,
                    x="fraction",
                    y=word,
                    series="weights",
                    x_unit="share removed",
                )
            },
            caveats=tuple(caveats),
            coverage=covered(subject, weights, largest, self.examples),
        )
