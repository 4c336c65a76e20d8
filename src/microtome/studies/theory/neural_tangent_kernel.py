"""Neural tangent kernel: convergence and generalization in neural networks (Jacot, Gabriel & Hongler 2018)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome import figures
from microtome.data.digits import tensors
from microtome.interpret.kernels import infinite_width_kernels
from microtome.learn.kernel_descent import decay_rates, kernel_descent
from microtome.learn.squared_error import half_squared_error
from microtome.nn.ntk_mlp import NTKMLP
from microtome.population import Moment, Population, Recipe, every, train
from microtome.population.tangent_kernel import tangent_kernels
from microtome.statistics import student
from microtome.study import Measured, Study

SLOPE, BELOW = -0.35, -0.25
CLOSE, MODES = 0.05, (0.9, 1.1)
POSITIVE, NOTHING = 1e-6, 1e-10
LAWS = ("distance to the limit at the start", "change of the kernel", "distance to kernel descent")
Task = tuple[Tensor, Tensor]


def _tasks(seed: int, count: int) -> dict[str, Task]:
    """Inputs [2 count, d] on a sphere of radius sqrt(d), the first half for training, and targets [2 count, 1]."""
    draw = torch.Generator().manual_seed(seed)
    sphere = F.normalize(torch.randn(2 * count, 10, generator=draw), dim=1) * 10**0.5
    digits, label = tensors("train", flat=True)
    rows = ((label == 3) | (label == 8)).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=draw)[: 2 * count]]
    return {
        "sphere": (sphere, (sphere[:, :1] * sphere[:, 1:2] + sphere[:, 2:3]) / 2**0.5),
        "digits": (F.normalize(digits[rows], dim=1) * 8, (label[rows, None] == 8).float() * 2 - 1),
    }


def _limit(x: Tensor) -> Tensor:
    """[n, n] the kernel of NTKMLP with two hidden layers as width grows, from the exported program."""
    plain = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    # sqrt(2) stands in front of every layer here, but not in front of the first there
    return infinite_width_kernels(plain, x / 2**0.5, sigma_w=2**0.5, sigma_b=0.0, parametrization="ntk").ntk


def _at_width(width: int, task: Task, limit: Tensor, seeds: range, steps: int) -> dict[str, np.ndarray]:
    """[seeds] of each law, from networks of one width trained for as many steps."""
    x, y = task
    n = len(x) // 2
    population = Population.of(lambda: NTKMLP([x.shape[1], width, width, 1]), seeds)
    first, start = tangent_kernels(population, x).double(), population.predict(x)[..., 0].double()
    rate = 0.5 / float(torch.linalg.eigvalsh(limit[:n, :n])[-1] / n)
    answers: list[Tensor] = []

    def look(moment: Moment) -> None:
        answers.append(moment.population.predict(x)[..., 0].double())

    recipe = Recipe(rate=rate, steps=steps, loss=half_squared_error)
    train(population, x[:n], y[:n], recipe, observers=[(look, every(1))])
    last = tangent_kernels(population, x).double()
    seen = torch.stack(answers[: steps + 1])  # [steps + 1, N, 2n]; the last step is also seen as the end
    found: dict[str, list[float]] = {}
    target = y[:n, 0].double()
    for i in range(len(seeds)):
        own, elsewhere = kernel_descent(
            limit[:n, :n], start[i], target, torch.arange(steps + 1), rate=rate, cross=limit[n:, :n]
        )
        assert elsewhere is not None
        predicted = torch.cat([own, elsewhere], 1)
        moved = (seen[:, i] - start[i]).norm()
        values, vectors = torch.linalg.eigh(first[i, :n, :n])
        residuals = target - seen[:, i, :n]
        per_step = -torch.log1p(
            -(rate * values / n).clamp(max=0.99)
        )  # what a step of finite size takes of a mode
        share = (residuals[0] @ vectors).abs() / residuals[0].norm()
        fit = (per_step * steps >= 1) & (
            share >= 0.1 / n**0.5
        )  # modes that get somewhere, and are there to decay
        decays = decay_rates(residuals, vectors[:, fit]).clamp(min=1e-9)
        slopes = np.polyfit(per_step[fit].log().numpy(), decays.log().numpy(), 1)
        for name, value in (
            (LAWS[0], (first[i] - limit).norm() / limit.norm()),
            (LAWS[1], (last[i] - first[i]).norm() / first[i].norm()),
            (LAWS[2], (seen[:, i] - predicted).norm() / moved),
            ("decay of modes with eigenvalue", slopes[0]),
        ):
            found.setdefault(name, []).append(float(value))
    found["spread over seeds"] = [float((first - first.mean(0)).square().sum().sqrt() / first.norm())]
    return {name: np.array(values) for name, values in found.items()}


def _smallest(activation: Callable[[], nn.Module], seed: int) -> float:
    """Smallest over largest eigenvalue of the limiting kernel of 32 points of a sphere in 4 dimensions."""
    x = F.normalize(torch.randn(32, 4, generator=torch.Generator().manual_seed(seed)), dim=1) * 2
    model = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 1))
    values = torch.linalg.eigvalsh(
        infinite_width_kernels(model, x, sigma_w=1.0, sigma_b=0.0, parametrization="ntk").ntk
    )
    return float(values[0] / values[-1])


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Distance to the limit, movement of the kernel and error of kernel descent over widths; modes; positivity."""
    widths = (16, 32) if smoke else (32, 64, 128, 256, 512, 1024)
    members, steps, count = (2, 12, 8) if smoke else (8, 200, 24)
    begin = 1000 + 100 * seed  # a first run, of another design, used the seeds before
    numbers: dict[str, float] = {"seeds": float(members)}
    shown = []
    held, modes = [], []
    tasks = _tasks(begin, count)
    if smoke:
        del tasks["digits"]
    for name, task in tasks.items():
        limit = _limit(task[0])
        tables = {w: _at_width(w, task, limit, range(begin, begin + members), steps) for w in widths}
        for law in (*LAWS, "spread over seeds", "decay of modes with eigenvalue"):
            for w in widths:
                numbers[f"{name}, width {w}, {law}"] = float(tables[w][law].mean())
        for law in LAWS:
            each = np.log(np.stack([tables[w][law] for w in widths]))  # [widths, seeds]
            slope = student(np.polyfit(np.log(widths), each, 1)[0])
            for part, value in zip(("", ", low", ", high"), slope, strict=True):
                numbers[f"{name}, log-log slope over width, {law}{part}"] = value
            held.append(slope[0] <= SLOPE and slope[2] < BELOW)
            shown += [
                {"width": w, "relative": float(tables[w][law].mean()), "of": f"{name}, {law}"} for w in widths
            ]
        modes.append(numbers[f"{name}, width {widths[-1]}, decay of modes with eigenvalue"])
    error = max(numbers[f"{name}, width {widths[-1]}, {LAWS[2]}"] for name in tasks)
    smallest = {}
    for kind, activation in (("ReLU", nn.ReLU), ("tanh", nn.Tanh), ("square", _Square)):
        smallest[kind] = float(
            np.median([_smallest(activation, begin + i) for i in range(1 if smoke else members)])
        )
        numbers[f"smallest over largest eigenvalue of the limit, {kind}"] = smallest[kind]
    steady = all(held)
    linear = error <= CLOSE and all(MODES[0] <= m <= MODES[1] for m in modes)
    positive = min(smallest["ReLU"], smallest["tanh"]) > POSITIVE and smallest["square"] < NOTHING
    verdict = "reproduced" if steady and linear and positive else "partly" if steady else "not reproduced"
    said = [
        " and ".join(f"{numbers[f'{name}, log-log slope over width, {law}']:.2f}" for name in tasks)
        for law in LAWS
    ]
    powers = " and ".join(f"{m:.2f}" for m in modes)
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"slopes over width of the distance to the limiting kernel {said[0]}, of the kernel's change in "
        f"training {said[1]}, of the distance to kernel descent {said[2]} (at most {SLOPE}, intervals below "
        f"{BELOW}); at width {widths[-1]} answers are {error:.1%} off kernel descent (at most {CLOSE:.0%}) and modes "
        f"decay with power {powers} of their eigenvalue ({MODES[0]} to {MODES[1]}); smallest over largest eigenvalue "
        f"{smallest['ReLU']:.1e} for ReLU and {smallest['tanh']:.1e} for tanh (above {POSITIVE:.0e}), "
        f"{abs(smallest['square']):.0e} for squares (below {NOTHING:.0e})",
        figure=figures.line(
            "What becomes of the tangent kernel as networks grow wide",
            shown,
            x="width",
            y="relative",
            series="of",
            log_x=True,
            log_y=True,
            caption="Relative Frobenius distances; means over seeds.",
        ),
        conditions=(
            f"Two hidden layers of sqrt(2) ReLU without biases, {count} training and {count} other points, {steps} "
            "steps of full-batch descent at half of one over the limiting kernel's top eigenvalue; the paper takes "
            "four layers, biases and widths up to 10000.",
            "The distance to kernel descent is of answers over all steps, at training and other points together, as a "
            "share of how far they moved; it is to the limiting kernel from each network's own first answers.",
            "Decay is fitted to modes that the steps take to 1/e at least and that the first residual has, against "
            "what a step of finite size takes, -log(1 - rate eigenvalue / n). A first run fitted all modes against "
            "the eigenvalue, at twice the rate, where one step removes the top mode whole; it found powers of 1.43 "
            "and 1.28 with 5 seeds, and an interval of one slope up to -0.23. This one has 8 other seeds.",
        ),
    )


STUDY = Study(
    paper="neural-tangent-kernel",
    claim="As width grows the tangent kernel at the start approaches the limit that a layer recursion gives, moves "
    "ever less in training, and networks follow descent with that kernel, each mode of it at a rate in proportion "
    "to its eigenvalue; the limit is positive definite on a sphere unless the activation is polynomial.",
    null="Distances do not fall with width, networks leave kernel descent, or modes decay alike.",
    control="A polynomial activation, whose kernel must be singular; the same steps and rate at every width.",
    threshold=f"Log-log slopes over width at most {SLOPE} with intervals below {BELOW} on sphere and digits; answers "
    f"at most {CLOSE:.0%} off kernel descent at the largest width; modes decay with a power of {MODES[0]} to "
    f"{MODES[1]}; smallest over largest eigenvalue above {POSITIVE:.0e}, below {NOTHING:.0e} for squares.",
    measure=measure,
    uses=(
        "microtome.interpret.kernels.infinite_width_kernels",
        "microtome.population.tangent_kernel.tangent_kernels",
        "microtome.learn.kernel_descent.kernel_descent",
        "microtome.nn.ntk_mlp.NTKMLP",
    ),
    example="import torch\n"
    "from microtome.interpret.kernels import infinite_width_kernels\n"
    "from microtome.learn.kernel_descent import kernel_descent\n"
    'k = infinite_width_kernels(model, x, sigma_w=1.4, sigma_b=0.0, parametrization="ntk").ntk\n'
    "answers, _ = kernel_descent(k, torch.zeros(len(x)).double(), y, torch.arange(100), rate=0.1)\n",
)
