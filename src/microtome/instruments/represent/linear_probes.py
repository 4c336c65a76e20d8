"""Linear probes of every layer in closed form, with two controls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Covariance, CrossCovariance, Moments
from microtome.folds.regression import ridge_map
from microtome.folds.stock import MomentsResult
from microtome.instrument import Asking, HasLayers, HasTargets, Instrument, OneAnswer
from microtome.signals import Constant, derive, labels, rows, task
from microtome.signals.halves import half
from microtome.signals.noise import row_uniform
from microtome.signals.readout import example_labels, narrowed, penultimate
from microtome.signals.reinitialise import Reinitialised
from microtome.statistics import wilson
from microtome.subject import Subject
from microtome.task import Task

WIDTH = 512


@dataclass(frozen=True, kw_only=True)
class LinearProbes(Instrument):
    """What can be read off each layer by a linear map?

    Ridge regression from features [n, d] (positions averaged, standardised) to one-hot labels (or values),
    w = (R + ridge I)^-1 c with R the correlations and c the covariances on one half of the examples, chosen
    by a hash of their id; accuracy (or R^2) on the other half, in a second pass. Controls: the same layers
    of an untrained network, and labels drawn at random by example (selectivity, Hewitt & Liang 2019; chance
    if nothing leaks). The second moments are kept, d x d a layer; a layer wider than 512 units passes a
    fixed random projection. A probe shows what is present, not what the network uses; with fewer examples
    than units it reads low.
    """

    needs = HasTargets & HasLayers & OneAnswer
    how_to_read = (
        "Accuracy of a linear reading of each layer on examples it was not fitted to. Only the gain over "
        "the untrained network was learned; random labels must end near chance. Layers before a flattening "
        "read low: positions are averaged."
    )

    ridge: float = 0.03
    untrained: bool = True
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        if subject.task.kind == "multilabel":
            raise Refusal("probes of several labels at once are not defined here")
        k = subject.classes or 0
        layers, last = subject.representations, penultimate(subject)
        changes = [(), (Reinitialised(self.seed),)] if self.untrained and subject.parameters else [()]
        told = derive(_answers, example_labels() if k else labels, rows, task, classes=k, seed=self.seed)
        fit = half(told, held=False, seed=self.seed)
        asked = {}
        for x in layers:
            for i, change in enumerate(changes):
                read = half(narrowed(x, WIDTH), held=False, seed=self.seed).at(*change)
                asked[x.name, i] = (Covariance(signals=(read,)), CrossCovariance(signals=(read, fit)))
        found = yield asked
        held = half(told, held=True, seed=self.seed)
        again: dict[tuple[str, int], Moments] = {("", 0): Moments(signals=(held,))}
        for x in layers:
            for i, change in enumerate(changes):
                covariance, (_, _, means, cross) = found[x.name, i]
                map_ = Constant(ridge_map(covariance, means, cross, self.ridge))
                read = half(narrowed(x, WIDTH), held=True, seed=self.seed).at(*change)
                again[x.name, i] = Moments(signals=(derive(_judged, read, held, map_, classes=k),))
        scores = yield again
        truth = scores["", 0]
        n, fitted = truth.count, next(iter(found.values()))[0].count
        table, points, numbers = [], [], {}
        for x in layers:
            here = [_score(scores[x.name, i], truth.variance * ((n - 1) / n), k) for i in range(len(changes))]
            (mine, chance), bare = here[0], here[1][0] if len(here) > 1 else None
            low, high = wilson(round(mine * n), n) if k else (None, None)
            numbers[x.name] = (mine, low, high, bare, chance)
            gain = None if bare is None else mine - bare
            table.append((x.name, x.units, mine, low, high, bare, gain, chance))
            for name, value in (("this network", mine), ("untrained", bare), ("random labels", chance)):
                points += [{"layer": x.name, "score": value, "read from": name}] if value is not None else []
        mine, low, high, bare, chance = numbers[last]
        what, name = ("accuracy", "probe accuracy") if k else ("R2", "probe R2")
        how = "Wilson" if k else ""
        quantities = {name: Quantity(value=mine, low=low, high=high, how=how, better="higher")}
        quantities |= {f"{name}, untrained": Quantity(value=bare)} if bare is not None else {}
        quantities[f"{name}, random labels"] = Quantity(value=chance)
        quantities["selectivity"] = Quantity(value=mine - chance, better="higher")
        common = float(truth.mean[:k].max()) if k else None
        quantities |= {"majority share": Quantity(value=common)} if common is not None else {}
        best = max(table, key=lambda row: row[2])
        words = "" if bare is None else f", {bare:.3f} untrained"
        tight = sum(min(x.units, WIDTH) * 5 > fitted for x in layers)
        few = f"fewer than 5 fitting examples a unit in {tight} of {len(layers)} layers"
        caveats = [f"{few}: these probes read low"] if tight else []
        wide = [x.name for x in layers if x.units > WIDTH]
        caveats += [f"read through a random projection to {WIDTH}: {', '.join(wide)}"] if wide else []
        columns = ("layer", "units", what, "low", "high", "untrained", "gain", "random labels")
        halves = f"Fitted on {fitted} examples, read on the other {n}; in order of the network"
        return Finding(
            headline=name,
            summary=f"A linear map reads the answer off {last} with {what} {mine:.3f}{words}; best "
            f"at {best[0]} ({best[2]:.3f}).",
            quantities=quantities,
            tables={"layers": Table(columns=columns, rows=tuple(table), caption=halves)},
            figures={
                "probes": line(
                    "Linear probes by layer",
                    points,
                    x="layer",
                    y="score",
                    series="read from",
                    y_title=what,
                    rules=None if common is None else {"majority share": common},
                )
            },
            caveats=tuple(caveats),
        )


def _answers(labels: Tensor, rows: Tensor, task: Task, classes: int, seed: int) -> Tensor:
    """[n, 2t]: what is to be read (one-hot or values), then the same drawn at random."""
    if not classes:
        noise = [row_uniform(rows, seed, 31 + j) for j in range(labels.shape[1])]
        return torch.cat([labels.double(), torch.stack(noise, dim=1).to(labels.device)], dim=1)
    drawn = (row_uniform(rows, seed, 31) * classes).long().to(labels.device)
    both = torch.nn.functional.one_hot(torch.stack([labels, drawn], dim=1), classes)
    return both.flatten(1).double()


def _judged(features: Tensor, told: Tensor, map_: Constant, classes: int) -> Tensor:
    """[n, 2] hits (true, random labels), or [n, 2t] squared errors."""
    weights = map_.value.to(features.device)
    given = features.double() @ weights[:-1] + weights[-1]
    if not classes:
        return (given - told).square()
    pairs = zip(given.split(classes, dim=1), told.split(classes, dim=1), strict=True)
    return torch.stack([(g.argmax(1) == t.argmax(1)).double() for g, t in pairs], dim=1)


def _score(judged: MomentsResult, variance: Tensor, classes: int) -> tuple[float, float]:
    """(score, score on random labels): accuracy, or R^2 averaged over outputs that vary."""
    if classes:
        return float(judged.mean[0]), float(judged.mean[1])
    vary = variance > 0
    gained = torch.where(vary, 1 - judged.mean / variance.clamp_min(1e-300), torch.zeros_like(variance))
    t = len(variance) // 2
    if not bool(vary[:t].any()):
        raise Refusal("the targets do not vary on the held half")
    return tuple(
        float(gained[part].sum() / vary[part].sum().clamp_min(1)) for part in (slice(0, t), slice(t, None))
    )  # type: ignore[return-value]
