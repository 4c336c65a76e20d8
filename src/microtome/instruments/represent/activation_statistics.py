"""Activation statistics of every layer: dead, constant and saturated units, sparsity, outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from microtome.figures import heatmap
from microtome.finding import Finding, Quantity, Table
from microtome.folds.units import UnitResult, UnitStatistics
from microtome.instrument import Asking, HasLayers, Instrument
from microtome.signals import activation, rows
from microtome.subject import Layer, Subject

_BOUNDS = dict.fromkeys(("sigmoid", "softmax"), (0.0, 1.0))
_BOUNDS |= dict.fromkeys(("tanh", "hardtanh", "softsign"), (-1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics(Instrument):
    """Which units do any work, layer by layer?

    A unit is a channel or hidden unit; its values run over all examples and positions. Dead: a unit of an
    activation function that is never above 0 (elsewhere: always 0). Constant: smallest = largest value (dead
    ones included). Sparsity: share of values within ``threshold`` of 0. Saturated: a unit of a sigmoid, tanh
    or softmax with 95 % of its values within ``margin`` of the range from a bound. Outliers: largest distance
    of a value from its unit's mean, in its standard deviations. Exact in one pass; six reductions a layer.
    A unit called dead may fire on other data: never in n examples bounds its rate by 3/n (95 %).
    Layers are finished values, not those normalised or activated at once; ``every_layer`` takes all.
    Of the first 256 units of a layer also the ``kept`` examples that excite it most and least, by its largest
    value over the positions; none with ``kept`` = 0.
    """

    needs = HasLayers
    how_to_read = (
        "Dead and constant units carry nothing on this data and can often be removed. Saturated units pass "
        "almost no gradient. High sparsity is normal after ReLU. A value many deviations out makes 8-bit "
        "quantisation hard."
    )

    every_layer: bool = False
    threshold: float = 0.0
    margin: float = 0.01
    kept: int = 9

    def examine(self, subject: Subject) -> Asking:
        layers = subject.layers if self.every_layer else subject.representations
        results = yield {layer.name: self._fold(layer) for layer in layers}
        lines = [_read(layer, results[layer.name]) for layer in layers]
        active = [r for r, x in zip(lines, layers, strict=True) if _activates(x)]
        bounded = [r for r, x in zip(lines, layers, strict=True) if _bounded(x)]
        worst = max(lines, key=lambda r: r.outlier)
        quantities = {"constant units": _share(sum(r.constant for r in lines), lines)}
        dead = sum(r.dead for r in active)
        if active:
            sparsity = sum(r.sparsity for r in active) / len(active)
            quantities = {
                "dead units": _share(dead, active),
                "sparsity": Quantity(value=sparsity, unit="share of values, mean over layers"),
                **quantities,
            }
        if bounded:
            quantities["saturated units"] = _share(sum(r.saturated or 0 for r in bounded), bounded)
        quantities["largest outlier"] = Quantity(
            value=worst.outlier, unit="standard deviations of its unit", better="lower"
        )
        counted = f"{dead} of {sum(r.units for r in active)} activation units are dead on this data"
        order = sorted(lines, key=lambda r: (-r.idle, -r.outlier))
        few = f"few examples ({subject.examples}): units may merely seem idle"
        return Finding(
            headline=next(iter(quantities)),
            summary=f"{counted if active else 'No ReLU-like activation is seen'}; the largest outlier is "
            f"{worst.outlier:.1f} deviations out, in {worst.layer}.",
            quantities=quantities,
            tables={
                "layers": Table(
                    columns=_Row._fields,
                    rows=tuple(order),
                    caption="Most idle units first. Dead, constant and saturated count units; sparsity is a "
                    "share of values",
                )
            },
            figures={
                "shares": heatmap(
                    "Idle units and sparsity by layer",
                    [[r.sparsity, r.dead / r.units, r.constant / r.units, r.saturated_share] for r in lines],
                    row_names=[r.layer for r in lines],
                    row_title="layer",
                    value_title="share",
                    limits=(0, 1),
                    column_names=["sparsity", "dead", "constant", "saturated"],
                )
            },
            arrays={f"mean/{x.name}": results[x.name].mean.numpy() for x in layers}
            | {f"maximum/{x.name}": results[x.name].maximum.numpy() for x in layers}
            | {key: value for x in layers for key, value in results[x.name].exciting(x.name).items()},
            caveats=(few,) if subject.examples < 30 else (),
        )

    def _fold(self, layer: Layer) -> UnitStatistics:
        bounds = _bounded(layer)
        return UnitStatistics(
            signals=(activation(layer.name), rows),
            dimension=layer.feature_dimension,
            bounds=bounds,
            margin=self.margin * (bounds[1] - bounds[0]) if bounds else 0.0,
            threshold=self.threshold,
            keep=self.kept,
        )


class _Row(NamedTuple):
    layer: str
    operation: str
    units: int
    mean: float
    sd: float
    sparsity: float
    dead: int
    constant: int
    saturated: int | None
    outlier: float

    @property
    def saturated_share(self) -> float | None:
        return None if self.saturated is None else self.saturated / self.units

    @property
    def idle(self) -> float:
        return (self.constant + (self.saturated or 0)) / self.units


def _read(layer: Layer, of: UnitResult) -> _Row:
    reach = (of.maximum - of.mean).maximum(of.mean - of.minimum)
    moving = (of.maximum > of.minimum) & (of.variance > 0)
    outlier = float((reach[moving] / of.variance[moving].sqrt()).amax()) if bool(moving.any()) else 0.0
    still = of.maximum == of.minimum
    dead = of.maximum <= 0 if _activates(layer) else still & (of.maximum == 0)
    mean = float(of.mean.mean())
    return _Row(
        layer=layer.name,
        operation=layer.operation,
        units=len(of.mean),
        mean=mean,
        sd=float((of.variance + (of.mean - mean).square()).mean().sqrt()),
        sparsity=float(of.zeros.mean()),
        dead=int(dead.sum()),
        constant=int(still.sum()),
        saturated=int((of.edges >= 0.95).sum()) if _bounded(layer) else None,
        outlier=outlier,
    )


def _activates(layer: Layer) -> bool:
    """Functions a unit can be silent in: what is below 0 they cut off or make small."""
    return layer.kind == "activation" and not _bounded(layer)


def _bounded(layer: Layer) -> tuple[float, float] | None:
    name = layer.operation.lower()
    return next((b for k, b in _BOUNDS.items() if name.startswith(k)), None)


def _share(count: int, rows: list[_Row]) -> Quantity:
    return Quantity(value=count / sum(r.units for r in rows), unit="share of units", better="lower")
