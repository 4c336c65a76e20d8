"""Do boundaries of linear regions on a curve grow with the neurons, and does the curve's geometry matter?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.digits import digits, tensors
from microtome.figures import line
from microtome.interpret import Graph, capture
from microtome.interpret.crossings import code, curve_crossings, line_crossings
from microtome.interpret.patterns import doubled, pattern
from microtome.population import Population, Recipe, train
from microtome.population.program import Loss
from microtome.statistics import student
from microtome.study import Measured, Outcome, Study, rows_of

INSIDE, BIAS = 10, 0.5
"""Numbers of the ambient space, and deviation of the biases."""
LENGTH = 2 * math.pi
Curve = Callable[[Tensor], Tensor]


def network(seed: int, depth: int, width: int) -> Graph:
    """Weights N(0, 2 / fan-in), biases N(0, 0.25), float64."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    sizes = [INSIDE, *[width] * depth]
    for inside, outside in itertools.pairwise(sizes):
        layer = nn.Linear(inside, outside).double()
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(2 / inside), generator=generator)
            layer.bias.normal_(0, BIAS, generator=generator)
        layers += [layer, nn.ReLU()]
    head = nn.Linear(width, 1).double()
    return capture(nn.Sequential(*layers, head), (torch.zeros(2, INSIDE, dtype=torch.float64),))


def curves(seed: int) -> dict[str, Curve]:
    """A circle of radius 1, a tractrix and a straight line through the origin, of equal length 2 pi, turned at random.

    All are run along at unit speed: t in 0..1 is arc length / 2 pi.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    turned = torch.linalg.qr(torch.randn(INSIDE, INSIDE, dtype=torch.float64, generator=generator))[0][:, :2]

    def circle(t: Tensor) -> Tensor:
        return torch.stack([(LENGTH * t).cos(), (LENGTH * t).sin()], 1) @ turned.T

    def tractrix(t: Tensor) -> Tensor:
        # By arc length s from the cusp: y = exp(-s), x = arcosh(1/y) - sqrt(1 - y^2); mirrored at the cusp.
        s = LENGTH * (t - 0.5)
        y = torch.exp(-s.abs())
        root = (1 - y * y).clamp(min=0).sqrt()
        x = torch.log((1 + root) / y) - root
        return torch.stack([x * s.sign(), y], 1) @ turned.T

    def line(t: Tensor) -> Tensor:
        return (LENGTH * (t - 0.5))[:, None] * turned[:, 0]

    return {"circle": circle, "tractrix": tractrix, "line": line}


def expected(curve: Curve, width: int) -> float:
    """Crossings of one layer by Kac and Rice: the mean over weights, without drawing any.

    A unit z = w x + b is normal; the density of its zeros is sqrt(var z var z' - cov^2) / (pi var z) in t.
    """
    t = torch.linspace(0, 1, 40_001, dtype=torch.float64)
    x = curve(t)
    slope = (x[1:] - x[:-1]) / (t[1:] - t[:-1])[:, None]
    x = (x[1:] + x[:-1]) / 2
    scale = 2 / INSIDE
    var, moving, both = (
        scale * (x * x).sum(1) + BIAS**2,
        scale * (slope * slope).sum(1),
        scale * (x * slope).sum(1),
    )
    return width * float(((var * moving - both**2).clamp(min=0).sqrt() / (math.pi * var)).mean())


def brute_force(graph: Graph, curve: Curve, points: int) -> int:
    """Steps of dense sampling over which the pattern changes."""
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    codes = torch.cat([code(pattern(graph, (curve(part),)), len(part)) for part in t.split(20_000)])
    return int((codes[1:] != codes[:-1]).any(1).sum())


def fit(x: list[float], y: list[float]) -> float:
    """Exponent of y over x, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def at_random(smoke: bool) -> tuple[dict[str, float], dict[str, bool]]:
    """Networks as they are drawn."""
    seeds = 1 if smoke else 20
    shapes = [(1, 16), (2, 8)] if smoke else [(d, w) for d in (1, 2, 3) for w in (16, 32, 64, 128)]
    numbers: dict[str, float] = {}
    counts: dict[tuple[int, int, str], list[int]] = {}
    near: dict[tuple[int, int], list[float]] = {}
    disagree = checked = 0
    for depth, width in shapes:
        for seed in range(seeds):
            graph = doubled(network(seed, depth, width))
            for name, curve in curves(seed).items():
                found = curve_crossings(graph, curve, samples=257 if smoke else 2049)
                counts.setdefault((depth, width, name), []).append(len(found.at))
                if name == "line":
                    ends = curve(torch.tensor([0.0, 1.0], dtype=torch.float64))
                    exact = int(line_crossings(graph, ends[:1], ends[1:]).counts)
                    disagree += exact != len(found.at)
                    checked += 1
                if seed < 2:
                    disagree += brute_force(graph, curve, 5_001 if smoke else 100_001) > len(found.at)
                    checked += 1
                if name == "circle" and len(found.at):
                    places = torch.linspace(0, 1, 200, dtype=torch.float64)
                    gap = (places[:, None] - found.at[None]).abs()
                    gap = torch.minimum(gap, 1 - gap).amin(1) * LENGTH
                    near.setdefault((depth, width), []).append(float(gap.mean()))
    for (depth, width, name), each in counts.items():
        numbers[f"depth {depth}, width {width}: crossings of the {name}"] = float(np.mean(each))
    inside = total = 0
    for width in sorted({w for d, w in shapes if d == 1}):
        for name, curve in curves(0).items():
            mean, low, high = student(counts[1, width, name], 0.99)
            truth = expected(curve, width)
            numbers[f"depth 1, width {width}: crossings of the {name}, by Kac and Rice"] = truth
            inside += low <= truth <= high
            total += 1
    numbers |= {"one layer: means with the truth in their 99 % interval": inside, "one layer: means": total,
                "counts checked": checked, "counts that another way contradicts": disagree}  # fmt: skip
    holds = {"one layer": inside >= total - 1, "counts": disagree == 0}
    exponents, distances = [], []
    for depth in sorted({d for d, _ in shapes}):
        widths = [w for d, w in shapes if d == depth]
        if len(widths) < 2:
            continue
        neurons = [float(depth * w) for w in widths]
        exponents.append(fit(neurons, [float(np.mean(counts[depth, w, "circle"])) for w in widths]))
        distances.append(fit(neurons, [float(np.mean(near[depth, w])) for w in widths]))
        numbers[f"depth {depth}: exponent of crossings in neurons"] = exponents[-1]
        numbers[f"depth {depth}: exponent of the distance on the curve"] = distances[-1]
    holds["linear in neurons"] = bool(exponents) and all(0.8 <= e <= 1.2 for e in exponents)
    holds["distance falls as 1 / neurons"] = bool(distances) and all(-1.3 <= e <= -0.7 for e in distances)
    for name in ("circle", "tractrix"):
        ratios = [
            float(np.mean([counts[d, w, name][seed] for d, w in shapes])
                  / np.mean([counts[d, w, "line"][seed] for d, w in shapes]))
            for seed in range(seeds)
        ]  # fmt: skip
        mean, low, high = student(ratios)
        numbers |= {f"{name} over line": mean, f"{name} over line, low": low, f"{name} over line, high": high}
    holds["geometry matters"] = numbers["circle over line, low"] > 1 or numbers["circle over line, high"] < 1
    return numbers, holds


# --- digits


class Coder(nn.Module):
    """64 - 48 - 4 - 48 - 64 with tanh: a smooth surface near the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 4))
        self.outward = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 64] -> [n, 64]."""
        return self.outward(self.inward(x))


def fitted(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, epochs: int, seed: int) -> nn.Module:
    """Adam in batches of 256."""
    population = Population([model], seeds=[seed])
    recipe = Recipe(optimizer="adam", rate=3e-3, epochs=epochs, batch_size=256, loss=loss)
    train(population, x, y, recipe)
    return population.member(0).double().eval().requires_grad_(False)


def on_digits(smoke: bool) -> tuple[dict[str, float], dict[str, bool]]:
    """Densities on decoded ways between codes of digits, on straight lines between the same ends, and elsewhere."""
    seeds, pairs = (1, 2) if smoke else (8, 20)
    known, labels = tensors("train", flat=True)
    table: dict[str, list[float]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        coder = fitted(Coder(), known, known, F.mse_loss, 2 if smoke else 60, seed)
        plain = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        bare = capture(nn.Sequential(*plain).double(), (torch.zeros(2, 64, dtype=torch.float64),))
        bare = dataclasses.replace(bare, state={k: t.detach().clone() for k, t in bare.state.items()})
        model = fitted(plain.float(), known, labels, F.cross_entropy, 2 if smoke else 30, seed)
        graphs = {"trained": capture(model, (torch.zeros(2, 64, dtype=torch.float64),)), "untrained": bare}
        x = digits("test", seed=seed).x[: 2 * pairs].flatten(1).double()
        codes = coder.inward(x)  # type: ignore[operator]
        noise = torch.randn(2 * pairs, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for who, graph in graphs.items():
            rates: dict[str, list[float]] = {}
            for i in range(pairs):
                first, last = codes[2 * i], codes[2 * i + 1]

                def way(
                    t: Tensor, first: Tensor = first, last: Tensor = last, coder: nn.Module = coder
                ) -> Tensor:
                    return coder.outward(first + (last - first) * t[:, None])  # type: ignore[operator]

                fine = way(torch.linspace(0, 1, 2001, dtype=torch.float64))
                length = float((fine[1:] - fine[:-1]).norm(dim=1).sum())
                found = len(curve_crossings(graph, way, samples=257 if smoke else 1025).at)
                rates.setdefault("decoded ways", []).append(found / length)
                ends = [fine[:1], fine[-1:]]
                aside = ends[0] + noise[i] / noise[i].norm() * (ends[1] - ends[0]).norm()
                for name, end in (("straight lines", ends[1]), ("random directions", aside)):
                    crossed = int(line_crossings(graph, ends[0], end).counts)
                    rates.setdefault(name, []).append(crossed / float((end - ends[0]).norm()))
            for name, each in rates.items():
                table.setdefault(f"{who}, {name}", []).append(float(np.mean(each)))
    numbers = {f"digits: {name}, crossings per unit": float(np.mean(each)) for name, each in table.items()}
    for who in ("trained", "untrained"):
        for name in ("straight lines", "random directions"):
            pairs_of = zip(table[f"{who}, decoded ways"], table[f"{who}, {name}"], strict=True)
            ratio = [a / b for a, b in pairs_of if b > 0] or [0.0]
            mean, low, high = student(ratio)
            key = f"digits: {who}, decoded ways over {name}"
            numbers |= {key: mean, f"{key}, low": low, f"{key}, high": high}
    key = "digits: trained, decoded ways over straight lines"
    return numbers, {
        "data differ from straight lines": numbers[f"{key}, low"] > 1 or numbers[f"{key}, high"] < 1
    }


def measure(smoke: bool) -> Measured:
    """Random networks on curves, then digits."""
    numbers, holds = at_random(smoke)
    more, also = on_digits(smoke)
    numbers, holds = numbers | more, holds | also
    core = holds["one layer"] and holds["counts"] and holds["linear in neurons"]
    verdict: Outcome = "reproduced" if all(holds.values()) else "partly" if core else "not reproduced"
    said = "; ".join(f"{name}: {'yes' if value else 'no'}" for name, value in holds.items())
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,
        decided_by=f"{said}. Circle over line {numbers['circle over line']:.3f} "
        f"[{numbers['circle over line, low']:.3f}, {numbers['circle over line, high']:.3f}]; trained on digits, "
        f"decoded ways over straight lines {numbers['digits: trained, decoded ways over straight lines']:.3f} "
        f"[{numbers['digits: trained, decoded ways over straight lines, low']:.3f}, "
        f"{numbers['digits: trained, decoded ways over straight lines, high']:.3f}]",
        figure=line(
            "Boundaries of linear regions crossed by curves, one hidden layer",
            rows_of(numbers, "depth 1, width {neurons}: crossings of the {curve}"),
            x="neurons",
            y="value",
            series="curve",
            y_title="crossings",
            log_x=True,
            log_y=True,
        ),
    )


STUDY = Study(
    paper="linear-regions-on-the-data-manifold",
    claim="At initialisation the boundaries of linear regions on a curve grow linearly with the neurons (exponent 0.8 "
    "to 1.2 at each depth) and the distance to them along it falls as their inverse (-1.3 to -0.7); curves of equal "
    "length and other geometry are crossed otherwise (circle over line, 95 % interval off 1, 20 seeds), and so are "
    "ways on a surface fitted to digits, an autoencoder's in place of the paper's generator of faces (off 1 against "
    "straight lines, 8 seeds). Controls: the mean for one layer is the one that Kac and Rice's formula gives; exact "
    "line crossings and dense sampling find the same counts; untrained networks.",
    null="Boundaries do not grow linearly with neurons, or the geometry of the curve makes no difference.",
    control="Kac and Rice's mean for one layer; exact crossings against dense sampling; untrained networks.",
    threshold="Exponents 0.8 to 1.2 and -1.3 to -0.7; 95 % intervals of ratios off 1.",
    measure=measure,
)
