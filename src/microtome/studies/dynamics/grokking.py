"""Does generalisation come long after the fit, and later the less data there is?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from microtome import figures
from microtome.data.modular import modular
from microtome.nn.modular_mlp import ModularMLP
from microtome.population import Population, Recipe, Recorder, Recording, every, train
from microtome.population.grokking import all_reached, reached, scores
from microtome.statistics import student
from microtome.study import Measured, Outcome, Study

P, WIDTH, RATE, DECAY, STRONG = 31, 128, 5e-3, 0.5, 3.0
LEVEL = 0.99
RATIO, CHANCE, SLOWER = 10.0, 0.1, 2.0
SLOWDOWN = "steps at the smallest share that suffices over those at the largest"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
OPERATIONS = ("x+y", "x*y", "x^2+xy+y^2", "random")


def trained(
    share: float, operations: Sequence[str], decay: Sequence[float], seeds: Sequence[int], steps: int
) -> Recording:
    """Train one network for each (operation, decay, seed), until it generalises or the steps are over."""
    data = modular(P, share, operations, seeds)
    population = Population.of(lambda: ModularMLP(P, WIDTH), list(seeds))
    measure = scores(data.pairs, data.answers, data.trained)
    recorder = Recorder(measures={"scores": measure})
    options = {"weight_decay": torch.tensor(decay), "betas": (0.9, 0.98)}
    train(
        population,
        data.x,
        data.y,
        Recipe(optimizer="adamw", rate=RATE, options=options, steps=steps),
        private=(True, True),
        observers=[(recorder, every(10))],
        until=all_reached(measure, LEVEL),
        check_every=10,
    )
    return recorder.recording


def times(found: Recording) -> tuple[Tensor, Tensor, Tensor]:
    """[N] steps to fit, steps to generalise, and held-out accuracy at the fit."""
    curve = found.value("scores")  # [t, N, 4]
    fit, general = (reached(found.steps, curve[:, :, i], LEVEL) for i in range(2))
    at = [found.steps.index(int(s)) if math.isfinite(s) else -1 for s in fit.tolist()]
    return fit, general, torch.stack([curve[t, i, 1] for i, t in enumerate(at)])


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Four tables at one share, one of them with none and with strong weight decay; then the sum at other shares."""
    count, steps = (2, 40) if smoke else (5, 4000)
    seeds = [1000 * seed + i for i in range(count)]
    kinds = [(o, DECAY) for o in OPERATIONS] + [("x+y", 0.0), ("x+y", STRONG)]
    main_share = trained(
        0.5,
        [o for o, _ in kinds for _ in seeds],
        [d for _, d in kinds for _ in seeds],
        seeds * len(kinds),
        steps,
    )
    curve = main_share.value("scores")
    fit, general, at_fit = (t.view(len(kinds), count) for t in times(main_share))
    numbers: dict[str, float] = {"networks a setting": float(count), "steps": float(steps)}
    delayed = {}
    for i, (operation, decay) in enumerate(kinds):
        name = operation if decay == DECAY else f"{operation}, weight decay {decay:.0f}"
        last = curve[-1, i * count : (i + 1) * count]
        done = general[i].isfinite()
        numbers[f"{name}: networks that generalise"] = float(done.sum())
        numbers[f"{name}: held-out accuracy at the end"] = float(last[:, 1].mean())
        numbers[f"{name}: held-out accuracy at the fit"] = float(at_fit[i].mean())
        numbers[f"{name}: largest held-out loss"] = float(
            curve[:, i * count : (i + 1) * count, 3].amax(0).mean()
        )
        if fit[i].isfinite().all():
            numbers[f"{name}: steps to fit"] = float(fit[i].mean())
        if done.all() and (fit[i] > 0).all():
            mean, low, high = student((general[i] / fit[i]).log10().numpy())
            numbers |= {
                f"{name}: steps to generalise": float(general[i].mean()),
                f"{name}: steps to generalise over steps to fit": 10**mean,
                f"{name}: steps to generalise over steps to fit, low": 10**low,
                f"{name}: steps to generalise over steps to fit, high": 10**high,
            }
            if decay == DECAY:
                delayed[name] = 10**low > RATIO and float(at_fit[i].mean()) <= CHANCE
    held = [float(v) for v in curve[-1, 3 * count : 4 * count, 1]]
    null = max(held) <= CHANCE
    slower = bool((general[4] > general[0]).all())
    # --- less data
    xs: list[float] = []
    ys: list[float] = []
    steps_at: dict[float, float] = {}
    for share in SHARES[:1] if smoke else SHARES:
        found = main_share if share == 0.5 else trained(share, ["x+y"] * count, [DECAY] * count, seeds, steps)
        when = times(found)[1][:count]
        done = when.isfinite()
        numbers[f"share {share}: networks that generalise"] = float(done.sum())
        if done.all():
            steps_at[share] = float(when.mean())
            numbers[f"share {share}: steps to generalise"] = steps_at[share]
            xs += [share] * count
            ys += when.log10().tolist()
    less = False
    if len(steps_at) > 1:
        each = np.array(ys).reshape(-1, count)  # [shares, seeds]: one slope a seed
        slopes = [float(np.polyfit(list(steps_at), each[:, i], 1)[0]) for i in range(count)]
        mean, low, high = student(slopes)
        numbers |= {
            "log10 steps per unit of share": mean,
            "log10 steps per unit of share, low": low,
            "log10 steps per unit of share, high": high,
        }
        numbers[SLOWDOWN] = steps_at[min(steps_at)] / steps_at[max(steps_at)]
        less = high < 0 and steps_at[min(steps_at)] >= SLOWER * steps_at[max(steps_at)]
    grokked = [name for name in ("x+y", "x*y") if delayed.get(name)]
    passed = [len(grokked) == 2, less, null]
    verdict: Outcome = "reproduced" if all(passed) else "partly" if grokked and null else "not reproduced"
    said = ", ".join(
        f"{name} {numbers[f'{name}: steps to generalise over steps to fit']:.1f} "
        f"[{numbers[f'{name}: steps to generalise over steps to fit, low']:.1f}, "
        f"{numbers[f'{name}: steps to generalise over steps to fit, high']:.1f}]"
        for name in delayed
    )
    chosen = [i * count for i in range(len(kinds))]
    points = [
        {"step": max(s, 10), "accuracy": float(curve[t, j, c]), "curve": f"{kinds[j // count][0]}, {part}"}
        for j in chosen[:2] + chosen[3:4]
        for c, part in ((0, "learnt"), (1, "held out"))
        for t, s in enumerate(main_share.steps)
        if t % max(1, len(main_share.steps) // 40) == 0
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,
        decided_by=f"steps to {LEVEL:.0%} held out over steps to {LEVEL:.0%} learnt: {said or 'none'} (interval "
        f"above {RATIO:.0f}, held-out accuracy at the fit at most {CHANCE}); "
        f"{numbers.get('log10 steps per unit of share', 0):.2f} decades of steps per unit of share, smallest share "
        f"that suffices {numbers.get(SLOWDOWN, 1):.1f} times "
        f"as slow as the largest (at least {SLOWER:.0f}); random table {max(held):.3f} held out (at most {CHANCE}); "
        f"without weight decay {'later or never' if slower else 'not always later'}",
        figure=figures.line(
            "Generalisation after the fit",
            points,
            x="step",
            y="accuracy",
            series="curve",
            x_title="updates",
            log_x=True,
            caption=f"Modulo {P}, half of the pairs learnt, one network each; one that generalises is left as it is.",
        ),
        conditions=(
            f"A one-layer quadratic network of {WIDTH} units instead of a two-layer transformer, p = {P} instead of "
            "97, all learnt pairs in every update, at most 4000 updates instead of up to a million.",
            "Training of a network stops once it generalises; steps are counted to ten.",
            "Rate and weight decay were set in a pilot with one network, so that networks generalise within the "
            "budget. How long the delay is depends on them: compare the row of weight decay 3.",
        ),
    )


STUDY = Study(
    paper="grokking",
    claim="On tables of x+y and x*y mod p a network answers held-out pairs right only after at least ten times the "
    "updates it needed to fit, from near chance at the fit; the fewer pairs, the more updates. Controls: a table of "
    "random answers, no weight decay.",
    null="Held-out accuracy rises with the fit, or the number of updates does not depend on the share of pairs.",
    control="A table of random answers must stay at chance; x^2+xy+y^2 as a harder table; no weight decay.",
    threshold="Ratio of updates to 99 % above 10 with its 95 % interval for both tables, held-out accuracy at the fit "
    "at most 0.1; slope of log updates over share below 0 with its interval, and the smallest share at which all "
    "networks generalise takes at least twice the updates of the largest; random table at most 0.1 held out.",
    measure=measure,
    uses=(
        "microtome.data.modular.modular",
        "microtome.nn.modular_mlp.ModularMLP",
        "microtome.population.grokking.scores",
        "microtome.population.grokking.reached",
    ),
    example="""data = modular(31, 0.5, ["x+y"] * 5, range(5))
population = Population.of(lambda: ModularMLP(31, 128), range(5))
recorder = Recorder(measures={"scores": scores(data.pairs, data.answers, data.trained)})
recipe = Recipe(optimizer="adamw", rate=5e-3, steps=2000, options={"weight_decay": 0.5})
train(population, data.x, data.y, recipe, private=(True, True), observers=[(recorder, every(10))])
reached(recorder.recording.steps, recorder.recording.value("scores")[..., 1], 0.99)""",
)
