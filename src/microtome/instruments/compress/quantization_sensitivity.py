"""How few bits a weight needs, tensor by tensor and all together."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Cell, Finding, Quantity, Table
from microtome.folds import Collect, Moments, Sample
from microtome.instrument import Asking, HasParameters, HasTargets, Instrument
from microtome.instruments.compress._pruned import bearable, covered, mean_drop, rise, taken
from microtome.signals import correct, derive, loss, prediction_ids
from microtome.signals.parameters import Rounded
from microtome.subject import Subject

ALL = "all together"


@dataclass(frozen=True, kw_only=True)
class QuantizationSensitivity(Instrument):
    """In how few bits could its weights be kept unnoticed, and which layer needs the most?

    Each weight tensor (two dimensions or more) is rounded to b bits: w -> s * round(w / s) with a step
    s = max |w| / (2^(b-1) - 1) for each output channel (symmetric, as Krishnamoorthi 2018), nothing else changed and
    nothing retrained; then all of them at once. Read: accuracy (the loss where there are no classes) on the same
    ``examples`` rows. Fewest bits: the least b such that b and every larger tried number keep the drop within
    ``tolerance`` (0.01: a point of accuracy; a hundredth of the loss); the type's own bits where none does. Size: all
    weights at each tensor's own fewest bits, without the steps. One forward a tensor and number of bits: as many of
    the largest tensors as ``worlds`` allow. Weights alone: rounded activations cost more. Rounding to the nearest is
    the plainest way; better ones and training go lower. 512 examples cannot tell drops below a point.
    """

    needs = HasTargets & HasParameters
    how_to_read = (
        "4 for a tensor means that its weights fit in 4 bits with no loss that shows; a tensor that needs 8 while the "
        "rest need 4 should be kept apart. What holds for each alone need not hold for all at once: that is its own "
        "line."
    )

    bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    tolerance: float = 0.01
    examples: int = 512
    worlds: int = 64
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        tried = tuple(sorted(set(self.bits), reverse=True))
        if not tried or tried[-1] < 2 or tried[0] > 16:
            raise Refusal("a weight has 2 to 16 bits here")
        weights = {
            n: p
            for n, p in subject.parameters.items()
            if p.dim() >= 2 and p.numel() > 1 and p.is_floating_point()
        }
        if not weights:
            raise Refusal("no parameter has two dimensions: there are no weights to round")
        alone = max(self.worlds // len(tried) - 1, 1)
        largest = sorted(weights, key=lambda name: -weights[name].numel())[:alone]
        sets = {name: (name,) for name in weights if name in largest} | {ALL: tuple(weights)}
        over = Sample(self.examples, self.seed)
        sign, measure = (-1.0, correct) if subject.task.categorical else (1.0, loss)

        def at(change: Rounded) -> Moments:
            return Moments(signals=(derive(rise, measure, measure.at(change), sign=sign),), over=over)

        (ids, before), drops = yield [
            Collect(signals=(prediction_ids, measure), over=over),
            {(name, b): at(Rounded(of, b)) for name, of in sets.items() for b in tried},
        ]
        base = float(before.double().mean())
        allowed = self.tolerance * (1.0 if subject.task.categorical else base)
        stored = 8 * max(p.element_size() for p in weights.values())
        fewest = {
            name: int(bearable([drops[name, b] for b in tried], tried, allowed)) or stored for name in sets
        }
        word = "accuracy lost" if subject.task.categorical else "loss added"
        unit = "1" if subject.task.categorical else "loss"
        order = sorted(sets, key=lambda n: (n == ALL, -fewest[n], -float(drops[n, tried[-1]].mean)))
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                name,
                sum(weights[n].numel() for n in sets[name]),
                fewest[name],
                *(taken(drops[name, b]) for b in tried),
            )
            for name in order
        )
        points = [
            {"bits": b, word: taken(drops[name, b]), "weights": name}
            for name in [*order[:-1][:12], ALL]
            for b in tried
        ]
        count = sum(p.numel() for p in weights.values())
        kept = sum(weights[n].numel() for n in largest)
        caveats = []
        if len(weights) > len(largest):
            caveats.append(
                f"only the {len(largest)} largest of {len(weights)} weight tensors ({kept / count:.0%} of weights) "
                "were rounded alone; all were rounded together"
            )
        if len(ids) * self.tolerance < 1 and subject.task.categorical:
            caveats.append(f"{len(ids)} predictions cannot show a drop of {self.tolerance:g}")
        size = sum(weights[n].numel() * fewest[n] for n in largest) / kept
        tight = order[0]
        told = [b for b in tried if b in (4, tried[-1])]
        return Finding(
            headline="fewest bits together",
            summary=f"All weights at once need {fewest[ALL]} bits within {self.tolerance:g}; {tight} needs the most "
            f"alone, {fewest[tight]}.",
            quantities={
                "fewest bits together": Quantity(value=fewest[ALL], unit="bits a weight", better="lower"),
                "fewest bits each alone": Quantity(value=size, unit="bits a weight, mean", better="lower"),
                **{f"{word} at {b} bits": mean_drop(drops[ALL, b], unit) for b in told},
                "unrounded accuracy" if subject.task.categorical else "unrounded loss": Quantity(value=base),
            },
            tables={
                "tensors": Table(
                    columns=("weights", "count", "fewest bits", *(f"at {b} bits" for b in tried)),
                    rows=rows,
                    caption=f"{word.capitalize()} at each number of bits; the most sensitive first",
                )
            },
            figures={
                "sensitivity": line("Rounding the weights", points, x="bits", y=word, series="weights")
            },
            caveats=tuple(caveats),
            coverage=covered(subject, weights, largest, self.examples),
        )  # fmt: skip
