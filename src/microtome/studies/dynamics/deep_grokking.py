"""Do deeper networks grok more, and does the rank of their features say so better than the norm of their weights?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome import figures
from microtome.data.digits import tensors
from microtome.nn.deep_mlp import deep_mlp
from microtome.population import Population, Recipe, Recorder, Recording, every, train
from microtome.population.grokking import reached
from microtome.population.phases import lagged_correlation, layer_ranks, smoothed, surges
from microtome.statistics import student
from microtome.study import Measured, Outcome, Study

DEPTHS, WIDTH, EXAMPLES = (3, 6, 12), 96, 200
INFLATED, RATE, DECAY = 3.0, 1e-3, 0.3
FIT, GAIN, DELAY, SURGE = 0.99, 0.1, 3.0, 0.05
EVERY, SMOOTH, LAG = 25, 5, 8
TRAIN, TEST, NORM, EFFECTIVE, NUMERICAL = range(5)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def _reader(x: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> Callable[[Population], Tensor]:
    """[N, 5] accuracies, norm of all parameters, and ranks of the features of the learnt examples, means of layers."""

    def read(population: Population) -> Tensor:
        learnt = population.predict(x, private=True).argmax(-1) == y
        held = population.predict(test).argmax(-1) == truth
        effective, numerical = layer_ranks(population, x, private=True)
        norm = population.vectors().double().norm(dim=1)
        ranks = [effective.mean(1), numerical.double().mean(1)]
        return torch.stack([learnt.double().mean(1), held.double().mean(1), norm, *ranks], 1)

    return read


def trained(depth: int, inflated: float, seeds: list[int], steps: int) -> Recording:
    """[N] networks, each on digits of its own, with first weights ``inflated`` times the usual."""
    x, y = tensors("train", flat=True)
    rows = torch.stack(
        [torch.randperm(len(x), generator=torch.Generator().manual_seed(s))[:EXAMPLES] for s in seeds]
    )
    own, labels = x[rows], y[rows]
    population = Population.of(partial(deep_mlp, 64, WIDTH, 10, depth), seeds).scale(inflated)
    recorder = Recorder(measures={"curves": _reader(own, labels, *tensors("test", flat=True))})
    recipe = Recipe(optimizer="adamw", rate=RATE, options={"weight_decay": DECAY}, steps=steps, loss=_loss)
    train(
        population,
        own,
        F.one_hot(labels, 10).float(),
        recipe,
        private=(True, True),
        observers=[(recorder, every(EVERY))],
    )
    return recorder.recording


def delays(found: Recording) -> tuple[Tensor, Tensor, Tensor]:
    """[N] steps to fit (inf if never), steps to the last tenth of the gain over steps to fit, gain after the fit."""
    curve = found.value("curves")
    fit = reached(found.steps, curve[..., TRAIN], FIT)
    ratio, gain = torch.ones_like(fit), torch.zeros_like(fit)
    for i, first in enumerate(fit.tolist()):
        if np.isfinite(first):
            at = found.steps.index(int(first))
            held = smoothed(curve[at:, i : i + 1, TEST], SMOOTH)
            low, high = curve[at, i, TEST], held.amax()
            gain[i] = high - low
            done = reached(found.steps[at:], held, min(float(low + 0.9 * (high - low)), float(high)))
            ratio[i] = done[0] / max(first, EVERY)
    return fit, ratio, gain


def followed(found: Recording, column: int, shift: int = 0) -> Tensor:
    """[N] largest |correlation|, over lags, of changes of the held-out accuracy with those of another curve.

    Args:
        column: of the curves.
        shift: records by which the other curve is turned round, as a control.
    """
    curve = found.value("curves")
    held, other = (smoothed(curve[..., c], SMOOTH).diff(dim=0) for c in (TEST, column))
    return lagged_correlation(held, other.roll(shift, 0), min(LAG, len(held) - 3))[0]


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Three depths from inflated first weights, and again from ordinary ones."""
    count, steps = (2, 100) if smoke else (6, 3000)
    depths = DEPTHS[:2] if smoke else DEPTHS
    seeds = [1000 * seed + i for i in range(count)]
    numbers: dict[str, float] = {"networks a depth": float(count), "steps": float(steps)}

    def note(name: str, values: Tensor) -> None:
        mean, low, high = student(values.double().numpy())
        numbers.update({name: mean, f"{name}, low": low, f"{name}, high": high})

    grokked, second, logs, points = {}, {}, {}, []
    ranked: list[Tensor] = []
    for depth in depths:
        found = trained(depth, INFLATED, seeds, steps)
        plain = trained(depth, 1.0, seeds, steps // 4)
        for name, run in ((f"depth {depth}", found), (f"depth {depth}, ordinary weights", plain)):
            fit, ratio, gain = delays(run)
            curve = run.value("curves")
            numbers[f"{name}: networks that fit"] = float(fit.isfinite().sum())
            if fit.isfinite().any():
                numbers[f"{name}: steps to fit"] = float(fit[fit.isfinite()].mean())
            note(f"{name}: gain after the fit", gain)
            note(f"{name}: held-out accuracy at the end", curve[-1, :, TEST])
            numbers[f"{name}: share that groks"] = float(((gain >= GAIN) & (ratio >= DELAY)).double().mean())
            numbers[f"{name}: steps to generalise over steps to fit"] = float(10 ** ratio.log10().mean())
            if run is found:
                grokked[depth], logs[depth] = (gain >= GAIN) & (ratio >= DELAY), (ratio.log10(), gain)
        curve = found.value("curves")
        times = surges(smoothed(curve[..., TEST], SMOOTH), SURGE)
        second[depth] = float((times > 1).double().mean())
        numbers[f"depth {depth}: share with a second surge"] = second[depth]
        follow = {c: followed(found, c) for c in (EFFECTIVE, NUMERICAL, NORM)}
        for c, name in ((EFFECTIVE, "effective rank"), (NUMERICAL, "numerical rank"), (NORM, "norm")):
            note(f"depth {depth}: held-out accuracy follows the {name}", follow[c])
        half = len(curve) // 2
        note(f"depth {depth}: and the effective rank turned round by half", followed(found, EFFECTIVE, half))
        note(f"depth {depth}: rank less norm", follow[EFFECTIVE] - follow[NORM])
        ranked.append(follow[EFFECTIVE] - follow[NORM])
        lowest = curve[..., EFFECTIVE].amin(0)
        note(
            f"depth {depth}: effective rank at the end over at first",
            curve[-1, :, EFFECTIVE] / curve[0, :, EFFECTIVE],
        )
        note(f"depth {depth}: effective rank at the end over its least", curve[-1, :, EFFECTIVE] / lowest)
        thin = max(1, len(found.steps) // 30)
        for c, name in (
            (TEST, "held-out accuracy"),
            (EFFECTIVE, "rank, over the first"),
            (NORM, "norm, over the first"),
        ):
            points += [
                {
                    "step": found.steps[t],
                    "value": float((curve[t, :, c] / (1.0 if c == TEST else curve[0, :, c])).mean()),
                    "curve": f"{name}, {depth} layers",
                }
                for t in range(0, len(found.steps), thin)
                if depth in (depths[0], depths[-1])
            ]
    shallow, deep = depths[0], depths[-1]
    note("rank less norm", torch.cat(ranked))
    note("gain after the fit, deepest less shallowest", logs[deep][1] - logs[shallow][1])
    note("decades of delay, deepest less shallowest", logs[deep][0] - logs[shallow][0])
    said = "gain after the fit, deepest less shallowest"
    deepest, shallowest = (float(grokked[d].double().mean()) for d in (deep, shallow))
    deeper = numbers[f"{said}, low"] > 0 and deepest >= max(0.5, shallowest)
    rank = numbers["rank less norm, low"] > 0
    again = second[deep] > second[shallow]
    passed = sum((deeper, rank, again))
    verdict: Outcome = "reproduced" if passed == 3 else "partly" if passed else "not reproduced"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,
        decided_by=f"after the fit the deepest networks gain {numbers[said]:.3f} [{numbers[said + ', low']:.3f}, "
        f"{numbers[said + ', high']:.3f}] more than the shallowest (above 0), {deepest:.0%} of "
        f"them grok (at least half, and no fewer than {shallowest:.0%} of the shallowest); changes of "
        f"held-out accuracy follow the rank {numbers['rank less norm']:.3f} [{numbers['rank less norm, low']:.3f}, "
        f"{numbers['rank less norm, high']:.3f}] closer than the norm (above 0; at depth {deep} alone "
        f"{numbers[f'depth {deep}: rank less norm']:.3f} [{numbers[f'depth {deep}: rank less norm, low']:.3f}, "
        f"{numbers[f'depth {deep}: rank less norm, high']:.3f}]); a second surge in "
        f"{second[deep]:.0%} of the deepest and {second[shallow]:.0%} of the shallowest (more)",
        figure=figures.line(
            "Held-out accuracy, rank and norm",
            points,
            x="step",
            y="value",
            series="curve",
            points=False,
            x_title="updates",
            caption=f"Means of {count} networks; rank and norm over their first values.",
        ),
        conditions=(
            f"{EXAMPLES} digits of 8 x 8 pixels, {WIDTH} units a layer, {steps} full-batch updates of AdamW (rate "
            f"{RATE:g}, weight decay {DECAY:g}), first weights {INFLATED:g} times the usual instead of 8, instead of "
            "thousands of MNIST digits and 10^5 updates. All three were set in a pilot with one network of each "
            "of two depths, so that both fit within the first tenth and weight decay has time to act: with 4 times the "
            "usual weights twelve layers hardly fit in that time.",
            f"A network groks when accuracy on other digits rises by at least {GAIN} after {FIT:.0%} of the digits "
            f"learnt are right, and nine tenths of that rise take at least {DELAY:.0f} times the updates of the fit.",
            f"Curves are read every {EVERY} updates and smoothed over {SMOOTH} readings; correlation at the best of "
            f"{2 * LAG + 1} lags. The rank is the mean over hidden layers of the effective rank on the digits learnt. "
            "A curve that is smooth correlates at some lag with any bump: compare the rank turned round by half.",
            "One network more with a second surge satisfies the threshold, which is weak for so few. That the rank "
            "falls twice is not judged: its end over its least is 1 where it only falls.",
        ),
    )


STUDY = Study(
    paper="deep-grokking",
    claim="From inflated first weights, deeper ReLU networks gain more accuracy on held-out digits after they fit "
    "than shallow ones do, some in a second surge; changes of that accuracy follow changes of the features' rank more "
    "closely than those of the weights' norm.",
    null="The gain after the fit does not grow with depth, no depth has second surges, or accuracy follows the norm as "
    "closely as the rank.",
    control="The same networks from ordinary first weights, which should not grok; the rank curve turned round by "
    "half, for what correlation the search over lags gives by itself.",
    threshold="Gain after the fit at depth 12 above that at depth 3 with the 95 % interval of the paired difference, "
    "at least half of the deep networks grokking (gain of 0.1 or more, three times as late as the fit) and no fewer "
    "than of the shallow; best-lag correlation of rank less norm above 0 with its interval over all runs; more runs "
    "with two surges of at least 0.05 at depth 12 than at depth 3. All three: reproduced; one or two: partly.",
    measure=measure,
    uses=(
        "microtome.instruments.represent.feature_rank.FeatureRank",
        "microtome.nn.deep_mlp.deep_mlp",
        "microtome.population.phases.layer_ranks",
        "microtome.population.phases.lagged_correlation",
        "microtome.population.phases.surges",
    ),
    example="""population = Population.of(lambda: deep_mlp(64, 96, 10, 12), range(6)).scale(4.0)
recorder = Recorder(measures={"rank": lambda p: layer_ranks(p, x)[0].mean(1)})
train(population, x, one_hot, recipe, observers=[(recorder, every(25))])
recorder.recording.value("rank")  # [t, 6]""",
)
