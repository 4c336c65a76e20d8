"""Understanding deep learning requires rethinking generalization: the randomisation tests (Zhang et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from microtome import figures
from microtome.data.digits import tensors
from microtome.data.label_noise import corrupted_labels
from microtome.data.randomised import RANDOMISATIONS, Randomisation, randomised
from microtome.nn.interpolating import Interpolating
from microtome.nn.random_shift import RandomShift
from microtome.population import Moment, Population, Recipe, train
from microtome.statistics import spearman, student
from microtome.study import Measured, Study

FITTED, CHANCE, REGULARISED, KEPT, EXACT = 0.99, 0.05, 0.9, 0.05, 1e-8
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS = (4, 8, 16, 32, 64, 128, 256)
BATCH, DECAY, DROP = 64, 0.05, 0.25


def _mlp(drop: float = 0.0, shift: int = 0) -> nn.Module:
    moved = [RandomShift(shift)] if shift else []
    left = [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*moved, nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), *left, nn.Linear(256, 10))


def _cnn(drop: float = 0.0, shift: int = 0) -> nn.Module:
    moved = [RandomShift(shift)] if shift else []
    left = [nn.Dropout(drop)] if drop else []
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    later = [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 128), nn.ReLU()]
    return nn.Sequential(*moved, *first, *later, *left, nn.Linear(128, 10))


def _fit(
    population: Population, x: Tensor, y: Tensor, epochs: int, decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Train each member on its own data x [N, n, ...], y [N, n] until it has learnt all: (training accuracy, steps)."""

    def correct() -> Tensor:
        return (population.predict(x, private=True).argmax(-1) == y).double().mean(1)

    def learnt(_: Moment) -> Tensor:
        return correct() == 1

    recipe = Recipe(
        optimizer="adamw", rate=0.003, options={"weight_decay": decay}, epochs=epochs, batch_size=BATCH
    )
    per_epoch = -(-x.shape[1] // BATCH)
    done = train(population, x, y, recipe, private=(True, True), until=learnt, check_every=2 * per_epoch)
    return correct(), done.steps


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def _kinds(
    build: Callable[[], nn.Module], data: tuple[Tensor, ...], seeds: range, epochs: int
) -> dict[str, dict[str, list[float]]]:
    """Every randomisation, all seeds in one population: training accuracy, accuracy on test data, steps."""
    x, y, test, truth = data
    jobs = [(kind, seed) for kind in RANDOMISATIONS for seed in seeds]
    population = Population.of(build, [seed for _, seed in jobs])
    fitted, steps = _fit(population, *_stacked([randomised(x, y, k, 10, seed=s) for k, s in jobs]), epochs)
    # Test pictures are changed as the training pictures were, their labels are the true ones.
    unlike: dict[Randomisation, Randomisation] = {"random labels": "true labels"}
    seen = torch.stack([randomised(test, truth, unlike.get(k, k), 10, seed=s)[0] for k, s in jobs])
    right = (population.predict(seen, private=True).argmax(-1) == truth).double().mean(1)
    found: dict[str, dict[str, list[float]]] = {}
    for (kind, _), *values in zip(jobs, fitted, right, steps, strict=True):
        row = found.setdefault(kind, {"training accuracy": [], "test accuracy": [], "steps": []})
        for name, value in zip(row, values, strict=True):
            row[name].append(float(value))
    return found


def _regularised(
    make: Callable[..., nn.Module], data: tuple[Tensor, ...], seeds: range, epochs: int
) -> dict[str, tuple[float, float]]:
    """(training accuracy on random labels, test accuracy on true labels) with each explicit regulariser."""
    x, y, test, truth = data
    ways: dict[str, tuple[Callable[[], nn.Module], float]] = {
        "none": (make, 0.0),
        "weight decay": (make, DECAY),
        "dropout": (lambda: make(drop=DROP), 0.0),
        "augmentation": (lambda: make(shift=1), 0.0),
    }
    kinds: tuple[Randomisation, ...] = ("random labels", "true labels")
    jobs = [(kind, seed) for kind in kinds for seed in seeds]
    found = {}
    for name, (build, decay) in ways.items():
        population = Population.of(build, [seed for _, seed in jobs])
        pairs = _stacked([randomised(x, y, kind, 10, seed=seed) for kind, seed in jobs])
        fitted, _ = _fit(population, *pairs, epochs, decay)
        right = (population.predict(test).argmax(-1) == truth).double().mean(1)
        found[name] = (float(fitted[: len(seeds)].mean()), float(right[len(seeds) :].mean()))
    return found


def _capacity(x: Tensor, y: Tensor, seeds: range, epochs: int) -> dict[int, float]:
    """Training accuracy on random labels by hidden width: all widths are masks on the widest network."""
    jobs = [(width, seed) for width in WIDTHS for seed in seeds]
    population = Population.of(_mlp, [seed for _, seed in jobs])
    alive = torch.stack([torch.arange(WIDTHS[-1]) < width for width, _ in jobs]).float()
    population.mask({"1.weight": alive[:, :, None], "1.bias": alive, "3.weight": alive[:, None, :]})
    labels = _stacked([randomised(x, y, "random labels", 10, seed=seed) for _, seed in jobs])
    fitted, _ = _fit(population, *labels, epochs)
    return {width: float(fitted.view(len(WIDTHS), -1)[i].mean()) for i, width in enumerate(WIDTHS)}


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Fits of true and randomised data, with and without regularisers, by share of corruption and by width."""
    count, epochs, few = (2, 2, BATCH) if smoke else (3, 500, None)
    first = 10_000 * seed + 5000
    seeds = range(first, first + count)
    x, y, test, truth = data = tuple(part[:few] for part in (*tensors("train"), *tensors("test")))
    numbers: dict[str, float] = {"seeds": float(count), "examples": float(len(x))}
    fits, chances, plain, least = [], [], [], []
    for name, make in {"MLP": _mlp, "CNN": _cnn}.items():
        rows = _kinds(make, data, seeds, epochs)
        for kind, row in rows.items():
            for key, values in row.items():
                numbers[f"{name}, {kind}, {key}"] = float(np.mean(values))
            numbers[f"{name}, {kind}, steps over true labels"] = float(
                np.mean(row["steps"]) / np.mean(rows["true labels"]["steps"])
            )
            fits.append(min(row["training accuracy"]))
        chances.append(float(np.mean(rows["random labels"]["test accuracy"])))
        ways = _regularised(make, data, seeds, epochs)
        for way, (learnt, right) in ways.items():
            numbers[f"{name}, {way}, random labels, training accuracy"] = learnt
            numbers[f"{name}, {way}, true labels, test accuracy"] = right
        least.append(min(learnt for learnt, _ in ways.values()))
        plain.append(max(right for _, right in ways.values()) - ways["none"][1])

    jobs = [(share, s) for share in SHARES for s in seeds]
    population = Population.of(_mlp, [s for _, s in jobs])
    wrong = torch.stack([corrupted_labels(y, share, 10, seed=s) for share, s in jobs])
    corrupted, _ = _fit(population, x.expand(len(jobs), *x.shape), wrong, epochs)
    seen = (population.predict(test).argmax(-1) == truth).double().mean(1)
    shown = []
    gaps = (corrupted - seen).view(len(SHARES), -1)
    for i, share in enumerate(SHARES):
        mean, low, high = student(gaps[i].numpy())
        numbers[f"MLP, {share:.0%} of labels corrupted, gap"] = mean
        shown.append({"corrupted": share, "gap": mean, "low": low, "high": high})
    rising = spearman(np.array(SHARES), gaps.mean(1).numpy()) or 0.0
    numbers["rank correlation of corruption and gap"] = rising

    n = min(200, len(x))
    errors = []
    for s in seeds:
        labels = randomised(x[:n], y[:n], "random labels", 10, seed=s)[1]
        built = Interpolating(x[:n], labels, seed=s)
        errors.append(float((built(x[:n]) - labels).abs().max()))
    numbers |= {
        "constructed network, largest error": max(errors),
        "constructed network, weights": float(built.count()),
    }
    numbers["constructed network, examples"] = float(n)
    for width, reached in _capacity(x, y, seeds, epochs).items():
        numbers[f"MLP of width {width}, random labels, training accuracy"] = reached
        numbers[f"MLP of width {width}, parameters"] = float(75 * width + 10)

    holds: dict[str, bool] = {
        f"everything is fitted: training accuracy at least {min(fits):.4f} (threshold {FITTED})": min(fits)
        >= FITTED,
        f"random labels, test accuracy {max(chances, key=lambda c: abs(c - 0.1)):.3f} (0.1 within {CHANCE})": all(
            abs(c - 0.1) <= CHANCE for c in chances
        ),
        f"with any regulariser random labels are still fitted to {min(least):.3f} (at least {REGULARISED})": min(
            least
        )
        >= REGULARISED,
        f"and without one true labels lose {max(plain):.3f} (at most {KEPT})": max(plain) <= KEPT,
        f"the gap grows with corruption, rank correlation {rising:.2f} (1)": rising > 1 - 1e-9,
        f"the construction errs by {max(errors):.1e} (below {EXACT:.0e})": max(errors) < EXACT,
    }
    held = sum(holds.values())
    verdict = (
        "reproduced" if held == len(holds) else "partly" if next(iter(holds.values())) else "not reproduced"
    )
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by="; ".join(holds) + f": {held} of {len(holds)} hold",
        figure=figures.line(
            "What is learnt by heart does not generalise",
            shown,
            x="corrupted",
            y="gap",
            band=("low", "high"),
            x_title="share of labels drawn anew",
            y_title="training less test accuracy",
            caption="Networks of one architecture, all of which fit their training labels.",
        ),
        conditions=(
            "1201 digits of 8 x 8 pixels instead of CIFAR-10 and ImageNet; AdamW, at most 500 epochs, training of a "
            "network "
            "ends when all its examples are right.",
            "A first design ended after 150 epochs, when the fully connected networks had learnt 93% of random "
            "labels and were still learning, so that slow learning could not be told from failing to learn. It has "
            "500 epochs now, a rate of 0.003 instead of 0.002, and new seeds; thresholds are as before.",
            f"Regularisers are AdamW's decay {DECAY}, dropout {DROP} before the last layer, and shifts by one pixel; "
            f"accuracy on "
            "training data is read without dropout and shifts.",
            "Where fitting fails is reported by width: at one size of data, within the epochs given.",
        ),
    )


STUDY = Study(
    paper="randomisation-tests",
    claim="Ordinary networks fit random labels, shuffled and random pixels, and noise without error, with test "
    "accuracy at "
    "chance; explicit regularisers neither prevent that nor are needed to generalise; a two-layer network of 2n + d "
    "weights "
    "fits any n examples.",
    null="Training accuracy on randomised data stays well below that on true labels, or regularisers keep networks "
    "from "
    "learning random labels: then capacity or regularisation could explain generalisation.",
    control="True labels, the same networks without regularisers, and labels corrupted by degrees.",
    threshold=f"Training accuracy at least {FITTED} on each of five kinds of data by each network; test accuracy "
    f"with random "
    f"labels within {CHANCE} of 0.1; random labels fitted to {REGULARISED} with each regulariser; at most {KEPT} "
    f"test accuracy "
    f"lost without; gap rising at each share of corruption; construction within {EXACT:.0e} for n = 200. All: "
    f"reproduced; the "
    "first: partly.",
    measure=measure,
    uses=(
        "microtome.data.randomised:randomised",
        "microtome.data.randomised:corrupted_labels",
        "microtome.nn.interpolating:Interpolating",
        "microtome.nn.random_shift:RandomShift",
    ),
    example="x, y = randomised(images, labels, 'random labels', 10)\n"
    "f = Interpolating(x[:200], y[:200])  # fits them exactly with 2n + d weights\n"
    "(f(x[:200]) - y[:200]).abs().max()",
)
