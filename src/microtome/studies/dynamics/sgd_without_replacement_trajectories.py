"""On the trajectories of SGD without replacement (Beneventano 2023)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import hessian

from microtome import figures
from microtome.data.digits import digits
from microtome.learn import epoch_displacement as e
from microtome.learn.flat import flat
from microtome.population import Moment, Population, Recipe, cross_entropy, train
from microtome.population.gradient_noise import gradient_noise, weighted_at_random
from microtome.statistics import student
from microtome.study import Measured, Study

BATCHES = 4
SHARPNESS = (0.03, 0.1, 0.3, 1.0)
COSINE, RATIO, DRIFT = 0.95, 0.2, 0.2
FASTER = 0.8
SAMPLERS = ("shuffled", "drawn", "noise injected")


def _bce(call):  # type: ignore[no-untyped-def]
    return lambda theta, x, y: F.binary_cross_entropy_with_logits(call(theta, x)[:, 0], y)


def _one_epoch(kind: str, seed: int, count: int, draws: int) -> dict[str, float]:
    """Average displacements beyond full-batch steps against the two predictions, for every rate."""
    x, y = next(iter(digits("train", batch_size=2000, seed=seed)))
    rows = ((y == 3) | (y == 8)).nonzero()[:count, 0]
    xs = x[rows].flatten(1).double().reshape(BATCHES, -1, 64)
    ys = (y[rows] == 8).double().reshape(BATCHES, -1)
    torch.manual_seed(seed)
    model = (
        nn.Linear(64, 1)
        if kind == "logistic"
        else nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1))
    )
    theta, call = flat(model.double())
    loss = _bce(call)
    theta = theta + e.full_batch(loss, theta, xs, ys, 0.3, 20)
    top = float(torch.linalg.eigvalsh(hessian(loss)(theta, xs.flatten(0, 1), ys.flatten()))[-1])
    found = {}
    for c in SHARPNESS:
        rate = c / top
        whole = e.full_batch(loss, theta, xs, ys, rate, BATCHES)
        moved = {
            "shuffled": e.displacements(loss, theta, xs, ys, e.shuffled(BATCHES), rate).mean(0) - whole,
            "drawn": e.displacements(loss, theta, xs, ys, e.drawn(BATCHES), rate).mean(0) - whole,
        }
        if c == SHARPNESS[0]:  # a mean of random sequences, where the others are exact
            noise = e.noisy(BATCHES, draws, seed)
            moved["noise injected"] = e.displacements(loss, theta, xs, ys, noise, rate).mean(0) - whole
        length = float(moved["shuffled"].norm())
        for name, step in (
            ("small-rate form", e.small_rate_step(loss, theta, xs, ys, rate)),
            ("full form", e.regulariser_step(loss, theta, xs, ys, rate)),
        ):
            found[f"{kind}, {c:g}, {name}, cosine"] = float(
                F.cosine_similarity(moved["shuffled"], step, dim=0)
            )
            found[f"{kind}, {c:g}, {name}, length over predicted"] = length / float(step.norm())
        for name in moved.keys() - {"shuffled"}:
            found[f"{kind}, {c:g}, drift of {name} over shuffled"] = float(moved[name].norm()) / length
    return found


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def _neurons(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()


def _saddle(seed: int, steps: int) -> tuple[nn.Sequential, Tensor, Tensor, float]:
    """The best single neuron, split in two where that makes a saddle (Fukumizu & Amari 2000), and its data."""
    torch.manual_seed(seed)
    x = torch.randn(64, 2, dtype=torch.float64)
    y = torch.tanh(3 * x[:, :1]) - torch.tanh(3 * x[:, 1:]) + 0.1 * torch.randn(64, 1, dtype=torch.float64)
    single = Population.of(lambda: _neurons(1), range(seed, seed + 8))
    done = train(single, x, y, Recipe(optimizer="adam", rate=0.02, steps=steps, loss=_mse))
    done = train(single, x, y, Recipe(rate=0.1, steps=steps, loss=_mse))
    best = single.member(int(done.loss.argmin()))
    alone = best.state_dict()
    pair, lowest = _neurons(2), 0.0
    kept: dict[str, Tensor] = {}
    for share in (-0.5, -0.25, 0.25, 0.4, 1.25, 1.5):
        state = {k: v.expand(2, *v.shape[1:]) for k, v in alone.items() if k.startswith("0")}
        outgoing = alone["2.weight"] * torch.tensor([[share, 1 - share]])
        pair.load_state_dict(state | {"2.weight": outgoing, "2.bias": alone["2.bias"]})
        theta, call = flat(pair)
        bottom = float(torch.linalg.eigvalsh(hessian(lambda t, f=call: _mse(f(t, x), y))(theta))[0])
        if bottom < lowest:
            lowest, kept = bottom, {k: v.clone() for k, v in pair.state_dict().items()}
    pair.load_state_dict(kept or pair.state_dict())
    return pair, x, y, lowest


def _escapes(seed: int, members: int, most: int) -> dict[str, Tensor]:
    """[N] epochs until the loss has fallen 5% below that of the saddle, for each way of sampling."""
    pair, x, y, _ = _saddle(seed, 100 if most < 100 else 1500)
    with torch.no_grad():
        goal = 0.95 * float(_mse(pair(x), y))
    found = {}
    for name in SAMPLERS:
        population = Population([pair], seeds=[0]).copy([0] * members)
        population.seeds = tuple(range(1000 * seed, 1000 * seed + members))
        recipe = Recipe(
            rate=0.3,
            steps=most * BATCHES,
            batch_size=None if name == "noise injected" else len(x) // BATCHES,
            order="drawn" if name == "drawn" else "private",
            loss=weighted_at_random(_mse, len(x) // BATCHES) if name == "noise injected" else _mse,
        )
        torch.manual_seed(seed)
        out = train(
            population,
            x,
            y,
            recipe,
            until=lambda m: (m.population.predict(x) - y).square().mean((1, 2)) < goal,
            check_every=BATCHES,
        )
        found[name] = out.steps.double() / BATCHES
    return found


def _noise_at_the_end(seeds: range, most: int) -> dict[str, np.ndarray]:
    """[N] trace of the covariance of per-example gradients once the training loss is below 0.05."""
    x, y = next(iter(digits("train", batch_size=2000)))
    x = x.flatten(1)
    found = {}
    for name in ("full batch", *SAMPLERS):
        population = Population.of(
            lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), seeds
        )
        whole = name in ("full batch", "noise injected")
        recipe = Recipe(
            rate=0.5,
            steps=most,
            batch_size=None if whole else 32,
            order="drawn" if name == "drawn" else "private",
            loss=weighted_at_random(cross_entropy, 32) if name == "noise injected" else cross_entropy,
        )

        def low(moment: Moment) -> Tensor:
            logits = moment.population.predict(x)
            each = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="none")
            return each.view(len(logits), -1).mean(1) < 0.05

        torch.manual_seed(seeds[0])
        train(population, x, y, recipe, until=low, check_every=10)
        found[name] = gradient_noise(population, cross_entropy, x, y).numpy()
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Average epochs against the predicted regulariser; escapes from saddles; gradient noise at equal loss."""
    numbers: dict[str, float] = {}
    begin = 100 * seed
    table: dict[str, list[float]] = {}
    for kind in ("logistic", "MLP"):
        for s in range(begin, begin + (1 if smoke else 5)):
            for name, value in _one_epoch(kind, s, 100, 50 if smoke else 3000).items():
                table.setdefault(name, []).append(value)
    for name, values in table.items():
        numbers[name], numbers[f"{name}, low"], numbers[f"{name}, high"] = student(values)
    saddles, members, most = (1, 8, 20) if smoke else (5, 48, 1500)
    ratios: dict[str, list[float]] = {}
    for s in range(begin, begin + saddles):
        epochs = _escapes(s, members, most)
        for name in SAMPLERS:
            numbers[f"saddle {s - begin}, median epochs to escape, {name}"] = float(epochs[name].median())
            numbers[f"saddle {s - begin}, spread of epochs to escape, {name}"] = float(epochs[name].std())
        for name in ("drawn", "noise injected"):
            ratios.setdefault(name, []).append(float(epochs["shuffled"].median() / epochs[name].median()))
            spread = float(epochs["shuffled"].std() / epochs[name].std().clamp(min=1e-9))
            ratios.setdefault(f"{name}, spread", []).append(spread)
    for name, values in ratios.items():
        low_high = student(np.log(np.maximum(values, 1e-6)))
        for part, value in zip(("", ", low", ", high"), low_high, strict=True):
            numbers[f"epochs to escape, shuffled over {name}{part}"] = float(np.exp(min(value, 50)))
    noise = _noise_at_the_end(range(begin, begin + (2 if smoke else 8)), 30 if smoke else 4000)
    for name, trace in noise.items():
        numbers[f"gradient noise at a loss of 0.05, {name}"] = float(trace.mean())
    for name in ("full batch", "drawn", "noise injected"):
        low_high = student(np.log(noise["shuffled"] / noise[name]))
        for part, value in zip(("", ", low", ", high"), low_high, strict=True):
            numbers[f"gradient noise, shuffled over {name}{part}"] = float(np.exp(value))

    def fits(form: str, c: float) -> bool:
        return all(
            numbers[f"{k}, {c:g}, {form}, cosine"] >= COSINE
            and abs(numbers[f"{k}, {c:g}, {form}, length over predicted"] - 1) <= RATIO
            for k in ("logistic", "MLP")
        )

    drift = max(
        numbers[f"{k}, {SHARPNESS[0]:g}, drift of {n} over shuffled"]
        for k in ("logistic", "MLP")
        for n in ("drawn", "noise injected")
    )
    local = fits("small-rate form", SHARPNESS[0]) and drift <= DRIFT
    large = fits("full form", SHARPNESS[-1])
    escape = numbers["epochs to escape, shuffled over drawn, high"] < 1
    escape = escape and numbers["epochs to escape, shuffled over drawn"] < FASTER
    flatter = numbers["gradient noise, shuffled over full batch, high"] < 1
    held = (local, large, escape, flatter)
    verdict = "reproduced" if all(held) else "partly" if local else "not reproduced"
    rows = [
        {
            "rate times sharpness": c,
            "cosine": numbers[f"{k}, {c:g}, {form}, cosine"],
            "prediction": f"{k}, {form}",
        }
        for k in ("logistic", "MLP")
        for form in ("small-rate form", "full form")
        for c in SHARPNESS
    ]
    top = SHARPNESS[-1]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"at small rates the average shuffled epoch goes beyond full-batch steps along the regulariser with "
        f"cosine {min(numbers[f'{k}, {SHARPNESS[0]:g}, small-rate form, cosine'] for k in ('logistic', 'MLP')):.3f} "
        f"(at least {COSINE}), other samplers by {drift:.1%} of its length (at most {DRIFT:.0%}); at rate times "
        f"sharpness {top:g} the full form has cosine "
        f"{min(numbers[f'{k}, {top:g}, full form, cosine'] for k in ('logistic', 'MLP')):.3f}; shuffled descent leaves "
        f"saddles in {numbers['epochs to escape, shuffled over drawn']:.2f} of the epochs of drawn batches (below "
        f"{FASTER}); at equal loss its gradient noise is {numbers['gradient noise, shuffled over full batch']:.2f} of "
        "that of full-batch descent (interval below 1)",
        figure=figures.line(
            "Where a shuffled epoch goes beyond full-batch steps",
            rows,
            x="rate times sharpness",
            y="cosine",
            series="prediction",
            log_x=True,
            caption="Cosine with the predicted step on the regulariser, all orders of four batches enumerated.",
        ),
        conditions=(
            "All orders of 4 batches of 25 digits (3 against 8) are enumerated, after 20 full-batch steps; the paper "
            "bounds remainders instead.",
            "The full form is derived here to second order in how batches deviate, with their Hessians; the paper "
            "states it in eigendirections of a Hessian common to all batches.",
            "Saddles are single best neurons split in two, of regression in two dimensions; descent starts exactly "
            "there.",
            "Gradient noise is compared when each run first has a training loss below 0.05, with one learning rate.",
        ),
    )


STUDY = Study(
    paper="sgd-without-replacement-trajectories",
    claim="Averaged over orders, an epoch of shuffled descent is full-batch descent plus a step on a regulariser of "
    "the gradient noise, also when rate times Hessian is of order 1; batches drawn with replacement and injected "
    "noise take no such step. It leaves saddles sooner, and ends with less gradient noise than full-batch descent.",
    null="The average displacement beyond full-batch steps has no relation to the predicted step, or other samplers "
    "share it; saddles are left no sooner and gradient noise is the same.",
    control="Batches drawn with replacement, and full-batch descent with injected noise of the same covariance, "
    "from the same weights at the same rate; gradient noise at equal training loss.",
    threshold=f"Cosine at least {COSINE} and length within {RATIO:.0%} of predicted for logistic regression and MLP, "
    f"for the small-rate form at rate times sharpness {SHARPNESS[0]} and the full form at {SHARPNESS[-1]:g}; drift "
    f"of other samplers at most {DRIFT:.0%} of it; epochs to escape below {FASTER} of drawn batches, interval below "
    "1; gradient noise over that of full batch below 1 with its interval.",
    measure=measure,
    uses=(
        "microtome.learn.epoch_displacement.regulariser_step",
        "microtome.population.gradient_noise.gradient_noise",
        "microtome.learn.flat.flat",
    ),
    example="from microtome.learn import epoch_displacement as e\n"
    "moved = e.displacements(loss, theta, xs, ys, e.shuffled(4), rate).mean(0)\n"
    "beyond = moved - e.full_batch(loss, theta, xs, ys, rate, steps=4)\n"
    "predicted = e.regulariser_step(loss, theta, xs, ys, rate)\n",
)
