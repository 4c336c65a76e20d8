"""Exact solutions to the nonlinear dynamics of learning in deep linear neural networks (Saxe et al. 2014)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev, vmap

from microtome import figures
from microtome.data.digits import digits
from microtome.data.tree import tree
from microtome.learn.deep_linear import mode_strength, modes, strengths, sufficient, whitened
from microtome.learn.squared_error import half_squared_error
from microtome.nn.deep_linear import DeepLinear, aligned_, gaussian_, orthogonal_, pretrained_, total
from microtome.population import Moment, Population, Recipe, every, train
from microtome.statistics import spearman, student
from microtome.study import Measured, Study

DEVIATION, ORDER = 0.05, 0.95
DEEP, FLAT, STEEP = 8, 0.15, 0.3
FAITHFUL = 0.5
STARTS = {"orthogonal": orthogonal_, "pretrained": pretrained_, "Gaussian": gaussian_}


def _curves(
    population: Population, data: tuple[Tensor, Tensor], left: Tensor, right: Tensor, rate: float, steps: int
) -> tuple[Tensor, Tensor]:
    """(times [t], strengths [t, N, m]) of every mode while all members train."""
    times: list[int] = []
    seen: list[Tensor] = []

    def look(moment: Moment) -> None:
        if not times or times[-1] < moment.step:
            times.append(moment.step)
            seen.append(strengths(total(list(moment.population.parameters.values())), left, right))

    recipe = Recipe(rate=rate, steps=steps, loss=half_squared_error)
    train(population, *data, recipe, observers=[(look, every(max(steps // 300, 1)))])
    return torch.tensor(times), torch.stack(seen)


def _half(times: Tensor, curves: Tensor, s: Tensor) -> Tensor:
    """[N, m] first time at which half of a mode is learnt; the last time where it never is."""
    return times[((curves >= s / 2).double() * torch.linspace(2, 1, len(times))[:, None, None]).argmax(0)]


def _closed_form(
    name: str, data: tuple[Tensor, Tensor], layers: int, seeds: range
) -> tuple[dict[str, float], list]:
    """Deviation from the closed form, and the order of learning, from aligned and from small random weights."""
    x, y = data
    left, s, right = modes(x, y)
    count = int((s > 1e-3 * s[0]).sum())
    left, s, right = left[:, :count], s[:count], right[:, :count]
    widths = [x.shape[1], *[max(count, 16)] * (layers - 1), y.shape[1]]
    start = (
        torch.tensor([10 ** -(2 + seed % 3 / 2) for seed in seeds])[:, None] * s[0]
    )  # strength at step 0 [N, 1]
    draws = iter(start)
    population = Population.of(
        lambda: aligned_(DeepLinear(widths), left, right, next(draws).clamp(max=float(s[-1]) / 2)), seeds
    )
    first = strengths(total(list(population.parameters.values())), left, right)
    rate = (0.01 if len(seeds) > 2 else 0.05) / float(layers * s[0] ** (2 - 2 / layers))
    slowest = mode_strength(torch.logspace(1, 6, 200), s[-1], first[:, -1].min(), layers=layers, tau=1 / rate)
    steps = int(torch.logspace(1, 6, 200)[int((slowest > 0.95 * s[-1]).double().argmax())])
    times, curves = _curves(population, data, left, right, rate, steps)
    theory = mode_strength(times, s.expand_as(first), first, layers=layers, tau=1 / rate)
    wrong = mode_strength(times, s.flip(0).expand_as(first), first, layers=layers, tau=1 / rate)
    small = Population.of(lambda: gaussian_(DeepLinear(widths), 0.1 if layers == 2 else 0.4), seeds)
    loose_times, loose = _curves(small, data, left, right, rate, 2 * steps)
    orders = [
        [float(spearman(row.numpy(), -s.numpy().round(4)) or 0.0) for row in _half(t, c, s)]
        for t, c in ((times, curves), (loose_times, loose))
    ]
    tag = f"{name}, {layers} layers"
    numbers = {
        f"{tag}, largest deviation from the closed form": float(((curves - theory).abs() / s).max()),
        f"{tag}, control: deviation with singular values exchanged": float(
            ((curves - wrong).abs() / s).max()
        ),
        f"{tag}, order of learning (Spearman)": min(orders[0]),
        f"{tag}, order of learning from small random weights": float(np.mean(orders[1])),
        f"{tag}, steps": float(steps),
    }
    shown = [
        {
            "step": int(times[i]),
            "strength / s": float(values[i, 0, m] / s[m]),
            "mode": f"s = {s[m]:.2f}, {kind}",
        }
        for kind, values in (("simulated", curves), ("closed form", theory))
        for m in range(0, count, max(count // 4, 1))
        for i in range(0, len(times), max(len(times) // 30, 1))
    ]
    return numbers, shown


def _steps_needed(
    depth: int, data: tuple[Tensor, Tensor], start: str, seeds: range, most: int
) -> list[float]:
    """Steps until 95% of what can be learnt is, with the best of many rates, for each seed."""
    rates = torch.logspace(-3.5, 0, 36 if most > 100 else 6)
    width = data[0].shape[1]
    widths = [*[width] * depth, data[1].shape[1]]
    each = [seed for seed in seeds for _ in rates]
    population = Population.of(lambda: STARTS[start](DeepLinear(widths)), each)
    goal = 0.05 * float(half_squared_error(torch.zeros_like(data[1]), data[1]))
    recipe = Recipe(rate=rates.repeat(len(seeds)), steps=most, loss=half_squared_error)
    done = train(population, *data, recipe, until=lambda m: (m.loss < goal) | ~m.loss.isfinite())
    steps = torch.where(done.loss < goal, done.steps, most).reshape(len(seeds), -1)
    return [float(v) for v in steps.amin(1)]


def _jacobians(depth: int, width: int, start: str, gain: float, seeds: range) -> tuple[float, float]:
    """(share of singular values within a factor 10 of 1 of a deep tanh network, spread max/min of the linear one)."""

    def build() -> nn.Module:
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())]
        return STARTS[start](nn.Sequential(*layers), gain)

    population = Population.of(build, seeds)
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(seeds[0]))
    values = torch.linalg.svdvals(population.evaluate(lambda f: vmap(jacrev(f)), x))
    linear = torch.linalg.svdvals(total([p.double() for p in population.parameters.values()]))
    spread = float(torch.log10(linear[:, 0] / linear[:, -1].clamp(min=1e-300)).mean())
    return float(((values > 0.1) & (values < 10)).double().mean()), spread


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Mode curves against the closed form; steps needed against depth; Jacobians of deep networks at the start."""
    images, digit = next(iter(digits("train", batch_size=1201)))
    white = whitened(images.flatten(1).double(), 32).float()
    labels = F.one_hot(digit, 10).float()
    data = sufficient(white, labels - labels.mean(0))
    begin = 1000 + 100 * seed  # a first run, with a coarser grid of rates, used the seeds before
    seeds = range(begin, begin + (2 if smoke else 6))
    numbers: dict[str, float] = {}
    shown: list = []
    for name, task in (("tree", tree(3)), ("digits", data)):
        for layers in (2,) if smoke and name == "tree" else () if smoke else (2, 3, 5):
            found, curves = _closed_form(name, task, layers, seeds)
            numbers |= found
            shown = shown or curves
    depths = (8, 10) if smoke else (2, 4, 8, 16, 32, 50)
    few, most = (range(begin, begin + 1), 60) if smoke else (range(begin, begin + 3), 1000)
    slopes: dict[str, tuple[float, float, float]] = {}
    for start in STARTS:
        needed = np.array([_steps_needed(depth, data, start, few, most) for depth in depths])
        for depth, row in zip(depths, needed, strict=True):
            numbers[f"steps needed, {start}, depth {depth}"] = float(row.mean())
        deep = [i for i, depth in enumerate(depths) if depth >= DEEP]
        fits = [
            float(np.polyfit(np.log([depths[i] for i in deep]), np.log(row[deep]), 1)[0]) for row in needed.T
        ]
        slopes[start] = student(fits)
        for part, value in zip(("", ", low", ", high"), slopes[start], strict=True):
            numbers[f"log-log slope of steps over depth from {DEEP} on, {start}{part}"] = value
    tall, wide = (10, 16) if smoke else (50, 64)
    for start, gain in (("orthogonal", 1.05), ("Gaussian", 1.05), ("orthogonal", 0.8)):
        share, spread = _jacobians(tall, wide, start, gain, few)
        numbers[f"tanh, {start}, gain {gain}, singular values within 10x of 1"] = share
        numbers[f"linear, {start}, gain {gain}, log10 spread of singular values"] = spread
    worst = max(v for k, v in numbers.items() if "largest deviation" in k)
    order = min(v for k, v in numbers.items() if k.endswith("(Spearman)"))
    exact = worst < DEVIATION and order >= ORDER
    flat = (
        all(abs(slopes[k][0]) < FLAT for k in ("orthogonal", "pretrained")) and slopes["Gaussian"][1] > STEEP
    )
    kept = numbers["tanh, orthogonal, gain 1.05, singular values within 10x of 1"]
    lost = numbers["tanh, Gaussian, gain 1.05, singular values within 10x of 1"]
    faithful = kept >= FAITHFUL and lost < FAITHFUL
    held = sum((exact, flat, faithful))
    verdict = "reproduced" if held == 3 else "partly" if held else "not reproduced"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"largest deviation from the closed form {worst:.1%} of a mode (below {DEVIATION:.0%}) and order "
        f"of learning {order:.2f} (at least {ORDER}); slope of steps over depths from {DEEP} on "
        f"{slopes['orthogonal'][0]:.2f} orthogonal, {slopes['pretrained'][0]:.2f} pretrained (below {FLAT}), "
        f"{slopes['Gaussian'][0]:.2f} Gaussian (interval above {STEEP}); {kept:.0%} of singular values kept at depth "
        f"{tall} by orthogonal weights, {lost:.0%} by Gaussian ones ({FAITHFUL:.0%} between them)",
        figure=figures.line(
            "Modes are learnt one after another, each as predicted",
            shown,
            x="step",
            y="strength / s",
            series="mode",
            caption="Hierarchical data, two layers, aligned start; simulated networks lie on their closed form.",
        ),
        conditions=(
            "Digits of 8 x 8 pixels instead of MNIST, whitened to 32 components; networks for the depth sweep are as "
            "wide as their input. Data are replaced by as many examples with the same correlations, which changes "
            "no gradient of a linear network.",
            f"The claim is about deep networks against deeper ones: the slope is taken from depth {DEEP} on; the "
            "shallower ones, which may be faster by a finite delay, are reported.",
            "The theory is for linear networks, white inputs and balanced, decoupled weights. From small random "
            "weights the order is measured as well, and does not decide.",
            f"Steps until 95% is learnt with the best of 36 rates, a factor 1.26 apart, at most {most}: more counts as "
            "that, which makes the Gaussian slope too small.",
            "A first run took 15 rates a factor 1.78 apart, too coarse to tell the best: its slopes were 0.22 "
            "orthogonal, 0.16 pretrained and 1.24 Gaussian. This one has other seeds.",
        ),
    )


STUDY = Study(
    paper="exact-deep-linear-learning-dynamics",
    claim="Gradient descent on deep linear networks follows the closed-form curve of each singular mode, stronger "
    "modes first; from orthogonal or pretrained weights the number of steps does not grow with depth, from Gaussian "
    "ones it does; orthogonal weights near the edge of chaos keep gradients of deep tanh networks.",
    null="Simulated curves leave the closed form, modes come in another order, or all starts slow down "
    "alike with depth.",
    control="The closed form with singular values exchanged between modes must not fit; the best learning rate is "
    "chosen for each depth and start; a gain below the edge of chaos.",
    threshold=f"Deviation below {DEVIATION:.0%} of a mode in every member and Spearman at least {ORDER}; log-log "
    f"slope of steps over depths of at least {DEEP} within {FLAT} of 0 for orthogonal and pretrained, interval above "
    f"{STEEP} for Gaussian; at least {FAITHFUL:.0%} of singular values within 10x of 1 for orthogonal weights and "
    "fewer for Gaussian ones.",
    measure=measure,
    uses=(
        "microtome.learn.deep_linear.mode_strength",
        "microtome.nn.deep_linear.orthogonal_",
        "microtome.nn.deep_linear.pretrained_",
        "microtome.data.tree.tree",
    ),
    example="import torch\n"
    "from microtome.data.tree import tree\n"
    "from microtome.learn.deep_linear import mode_strength, modes\n"
    "left, s, right = modes(*tree(3))\n"
    "curves = mode_strength(torch.arange(1000), s, 0.001 * s, tau=1 / 0.01)  # [1000, 8]\n",
)
