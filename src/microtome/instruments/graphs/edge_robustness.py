"""Accuracy when edges are lost, false ones come, or features are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect
from microtome.instrument import Asking, HasClasses, HasGraph, HasTargets, Instrument
from microtome.signals import correct, prediction_ids
from microtome.signals.expression import BatchChange
from microtome.signals.graphs import AddEdges, DropEdges, FlipFeatures, ShuffleFeatures
from microtome.statistics import normal, wilson
from microtome.subject import Subject

KINDS: dict[str, Callable[[float, int], BatchChange]] = {
    "edges lost": DropEdges,
    "false edges": AddEdges,
    "features flipped": FlipFeatures,
}


@dataclass(frozen=True, kw_only=True)
class EdgeRobustness(Instrument):
    """How much accuracy do random faults of the graph cost?

    Accuracy with a share of the edges left out (both directions together), with as many random edges added, and with a
    share of the feature values exchanged (binary ones turned, as many on as off), at each of ``shares``; draws depend
    on node ids alone. Two controls bound what edges and features are worth: no edge at all, and each node given another
    node's features. Differences are paired over the examples, with a normal interval; the faults are one draw of
    ``seed``. Cost: 3 forwards a share and 2 for the controls. Random faults say little about chosen ones: an attacker
    needs far fewer.
    """

    needs = HasGraph & HasTargets & HasClasses
    how_to_read = (
        "Read each loss beside the controls: a network that loses nothing without edges does not use them. Faults that "
        "cost more at 10 % than taking all edges away mislead the network rather than starve it."
    )

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if any(getattr(m, "cached", False) is True for m in subject.model.modules()):
            raise Refusal("the network caches its edges (cached=True): it would not see them change")
        worlds: dict[tuple[str, float], BatchChange] = {
            (name, s): kind(s, self.seed) for name, kind in KINDS.items() for s in self.shares
        }
        worlds |= {
            ("no edges", 1.0): DropEdges(1.0, self.seed),
            ("features shuffled", 1.0): ShuffleFeatures(self.seed),
        }
        got = yield {
            "plain": Collect(signals=(prediction_ids, correct)),
            "worlds": {key: Collect(signals=(prediction_ids, correct.under(w))) for key, w in worlds.items()},
        }
        ids, plain = got["plain"]
        total, hits = len(plain), int(plain.sum())
        rows, points = [], [{"share": 0.0, "fault": name, "accuracy": hits / total} for name in KINDS]
        losses: dict[tuple[str, float], tuple[float, float, float]] = {}
        for (name, share), (_, right) in got["worlds"].items():
            loss, low, high = losses[name, share] = _loss(plain, right)
            rows.append((name, share, float(right.mean()), loss, low, high))
            if name in KINDS:
                points.append({"share": share, "fault": name, "accuracy": float(right.mean())})
        low, high = wilson(hits, total)
        quantities = {
            "accuracy": Quantity(value=hits / total, low=low, high=high, how="Wilson", better="higher")
        }
        at = min(self.shares, key=lambda s: abs(s - 0.1))
        for name in KINDS:
            quantities[f"lost at {at:.0%} {name}"] = _quantity(losses[name, at])
        for name in ("no edges", "features shuffled"):
            quantities[f"lost with {name}"] = _quantity(losses[name, 1.0])
        worst = max(KINDS, key=lambda name: losses[name, at][0])
        quantities["lost at worst"] = _quantity(losses[worst, at])
        return Finding(
            headline="lost at worst",
            summary=f"Of the random faults of {at:.0%}, {worst} cost most: {losses[worst, at][0]:.1%} of accuracy; "
            f"no edge at all costs {losses['no edges', 1.0][0]:.1%}, another node's features "
            f"{losses['features shuffled', 1.0][0]:.1%}.",
            quantities=quantities,
            tables={"faults": Table(columns=("fault", "share", "accuracy", "lost", "low", "high"), rows=tuple(rows))},
            figures={
                "faults": line(
                    "Accuracy under random faults", points, x="share", y="accuracy", series="fault",
                    rules={"no edges": hits / total - losses["no edges", 1.0][0],
                           "features shuffled": hits / total - losses["features shuffled", 1.0][0]},
                )
            },
            arrays={"rows": ids.numpy(), "samples": (plain - got["worlds"][worst, at][1]).numpy()},
        )  # fmt: skip


def _loss(plain: Tensor, right: Tensor) -> tuple[float, float, float]:
    gap = plain - right
    mean = float(gap.mean())
    return (mean, *normal(mean, float(gap.std(correction=0)) / max(len(gap), 1) ** 0.5))


def _quantity(loss: tuple[float, float, float]) -> Quantity:
    return Quantity(
        value=loss[0], low=loss[1], high=loss[2], how="normal, paired over examples", unit="accuracy"
    )
