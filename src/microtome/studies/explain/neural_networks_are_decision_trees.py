"""Is the equivalent tree exact, how large is it, and where does it stop to help?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.figures import bars
from microtome.interpret import Graph, capture
from microtome.interpret.crossings import code
from microtome.interpret.decision_tree import DecisionTree, Grown, grown
from microtome.interpret.patterns import pattern
from microtome.interpret.planes import plane_regions
from microtome.population import Population, Recipe, train
from microtome.statistics import student
from microtome.study import Measured, Outcome, Study, rows_of


def moons(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two half circles with noise, scaled to lie within -1.5 ... 1.5; labels in turns."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    angle = torch.pi * torch.rand(n, dtype=torch.float64, generator=generator)
    x = torch.stack([angle.cos() - 0.5 + y, (angle.sin() - 0.25) * (1 - 2 * y)], 1)
    return x + 0.1 * torch.randn(n, 2, dtype=torch.float64, generator=generator), y


def cancer(seed: int) -> tuple[Tensor, Tensor]:
    """569 tumours, 30 measurements each, standardised; in an order drawn by the seed."""
    from sklearn.datasets import load_breast_cancer

    held = load_breast_cancer()
    x = torch.from_numpy(held.data)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order], torch.from_numpy(held.target)[order]


class Kinked(nn.Module):
    """tanh as straight pieces between ``count`` points: a sum of ReLUs, flat outside of -3 ... 3."""

    def __init__(self, count: int) -> None:
        super().__init__()
        points = torch.linspace(-3, 3, count, dtype=torch.float64)
        slopes = torch.tanh(points).diff() / points.diff()
        self.register_buffer("points", points)
        self.register_buffer("turns", torch.cat([slopes[:1], slopes.diff(), -slopes[-1:]]))
        self.low = float(torch.tanh(points[0]))

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        points, turns = self.get_buffer("points"), self.get_buffer("turns")
        return self.low + (torch.relu(x[..., None] - points) * turns).sum(-1)


def network(
    inputs: int, depth: int, width: int, seed: int, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """float64, two classes."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 2)).double()


def trained(model: nn.Sequential, x: Tensor, y: Tensor, steps: int) -> Any:
    """Adam on all examples at once."""
    population = Population([model])
    train(population, x, y, Recipe(optimizer="adam", rate=0.02, steps=steps))
    return population.member(0)


def program(model: nn.Module, inputs: int) -> Graph:
    """Captured, with gradients off."""
    return capture(model.eval().requires_grad_(False), (torch.zeros(2, inputs, dtype=torch.float64),))


def difference(tree: DecisionTree, model: nn.Module, x: Tensor) -> float:
    """Largest, over outputs."""
    return float((tree(x) - model(x)).abs().max())


def products(model: nn.Sequential) -> int:
    """Multiply-adds of one forward."""
    return sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))


def work(tree: Grown, inputs: int) -> float:
    """Mean multiply-adds of a decision by the pruned tree, leaves counted alike."""
    return float(np.mean([inputs * (region.splits + 2) for region in tree.regions]))


def on_moons(smoke: bool) -> tuple[dict[str, float], dict[str, bool]]:
    """Small networks of which the whole tree can be grown."""
    seeds, steps = (1, 60) if smoke else (5, 400)
    shapes = [(1, 4), (2, 4)] if smoke else [(1, 4), (1, 8), (1, 16), (2, 4), (2, 8), (2, 16), (3, 8)]
    numbers: dict[str, float] = {}
    worst, missed, cheaper = 0.0, 0, []
    for depth, width in shapes:
        rows: dict[str, list[float]] = {}
        for seed in range(seeds):
            for learned in (True, False):
                if not learned and (depth, width) != shapes[-2]:
                    continue
                x, y = moons(400, seed)
                model = network(2, depth, width, seed)
                if learned:
                    model = trained(model, x, y, steps)
                graph = program(model, 2)
                tree = DecisionTree.from_graph(graph)
                anywhere = 4 * torch.rand(10_000, 2, dtype=torch.float64) - 2
                worst = max(worst, difference(tree, model, anywhere), difference(tree, model, x))
                reached = len(code(pattern(graph, (x,)), len(x)).unique(dim=0))
                began = time.perf_counter()
                whole = grown(graph, -2.0, 2.0)
                seconds = time.perf_counter() - began
                corner = torch.tensor([-2.0, -2.0])
                plane = plane_regions(graph, corner, torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0]))
                leaves = {tuple(torch.cat(r.leaf.pieces).tolist()) for r in whole.regions}
                missed += len({tuple(p.tolist()) for p in plane.patterns} ^ leaves)
                key = "" if learned else "untrained, "
                for name, value in (
                    ("feasible leaves", len(whole.regions)), ("leaves reached by 400 examples", reached),
                    ("leaves when joined", whole.joined), ("work over the network", work(whole, 2) / products(model)),
                    ("numbers held over the network", 3 * (len(whole.regions) - 1) / products(model)),
                    ("seconds to grow", seconds),
                ):  # fmt: skip
                    rows.setdefault(key + name, []).append(float(value))
        for name, values in rows.items():
            numbers[f"moons, {depth} x {width}: {name}"] = float(np.mean(values))
        numbers[f"moons, {depth} x {width}: patterns that answers could make"] = float(2.0 ** (depth * width))
        cheaper.append(np.mean(rows["work over the network"]) < 1)
    numbers |= {
        "moons: largest difference": worst,
        "moons: leaves contradicted by the plane": missed,
    }
    return numbers, {
        "exact on moons": worst < 1e-10,
        "all leaves found": missed == 0,
        "cheaper": all(cheaper),
    }


def on_cancer(smoke: bool) -> tuple[dict[str, float], dict[str, bool]]:
    """Thirty inputs: the tree is built where examples go."""
    seeds, steps = (1, 40) if smoke else (5, 150)
    numbers: dict[str, float] = {}
    worst, alone = 0.0, []
    for width in (8,) if smoke else (2, 4, 8, 16, 64):
        rows: dict[str, list[float]] = {}
        for seed in range(seeds):
            x, y = cancer(seed)
            for who in ("trained", "untrained"):
                model = network(30, 2, width, seed)
                if who == "trained":
                    model = trained(model, x[:400], y[:400], steps)
                graph = program(model, 30)
                tree = DecisionTree.from_graph(graph)
                anywhere = 3 * torch.randn(100 if smoke else 2000, 30, dtype=torch.float64)
                with torch.no_grad():
                    right = float(((tree(x[400:]).argmax(1)) == y[400:]).double().mean())
                worst = max(worst, difference(tree, model, x), difference(tree, model, anywhere))
                own = code(pattern(graph, (x,)), len(x))
                reached = len(own[:400].unique(dim=0))
                known = {tuple(row) for row in own[:400].tolist()}
                seen = float(np.mean([tuple(row) in known for row in own[400:].tolist()]))
                full = 30 * (2 * width + 2) / products(model)
                for name, value in (
                    ("accuracy on others", right), ("leaves reached by 400 examples", reached),
                    ("others that fall into a known leaf", seen), ("work over the network", full),
                ):  # fmt: skip
                    rows.setdefault(f"{who}: {name}", []).append(float(value))
        for name, values in rows.items():
            mean, low, high = student(values)
            key = f"cancer, 2 x {width}, {name}"
            numbers |= {key: mean, f"{key}, low": low, f"{key}, high": high}
        alone.append(np.mean(rows["trained: leaves reached by 400 examples"]))
    numbers["cancer: largest difference"] = worst
    return numbers, {"exact on thirty inputs": worst < 1e-9}


def on_tanh(smoke: bool) -> dict[str, float]:
    """A smooth network has no finite tree: straight pieces come near it, at the price of leaves."""
    x, y = moons(400, 0)
    model = network(2, 1, 4, 0, nn.Tanh)
    model = trained(model, x, y, 60 if smoke else 400)
    anywhere = 4 * torch.rand(5000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 2
    numbers: dict[str, float] = {}
    for count in (2,) if smoke else (2, 3, 5, 9):
        kinked = nn.Sequential(model[0], Kinked(count), model[2])
        whole = grown(program(kinked, 2), -2.0, 2.0)
        with torch.no_grad():
            error = float((kinked(anywhere) - model(anywhere)).abs().max())
        numbers |= {
            f"tanh by {count} points: leaves": len(whole.regions),
            f"tanh by {count} points: largest error": error,
        }
    return numbers


def measure(smoke: bool) -> Measured:
    """Moons, tumours, a smooth network."""
    numbers, holds = on_moons(smoke)
    more, also = on_cancer(smoke)
    numbers, holds = numbers | more | on_tanh(smoke), holds | also
    exact = holds["exact on moons"] and holds["exact on thirty inputs"] and holds["all leaves found"]
    verdict: Outcome = "partly" if exact else "not reproduced"
    largest = "moons, 2 x 16" if not smoke else "moons, 1 x 4"
    last = 8 if smoke else 64
    cost = numbers[f"{largest}: work over the network"]
    held = numbers[f"{largest}: numbers held over the network"]
    reached = numbers[f"cancer, 2 x {last}, trained: leaves reached by 400 examples"]
    known = numbers[f"cancer, 2 x {last}, trained: others that fall into a known leaf"]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,
        decided_by=f"largest difference of tree and network {numbers['moons: largest difference']:.1e} on moons and "
        f"{numbers['cancer: largest difference']:.1e} on thirty inputs (below 1e-9 required), "
        f"{numbers['moons: leaves contradicted by the plane']:.0f} leaves contradicted by the regions of the plane; "
        f"cheaper on all moons: {'yes' if holds['cheaper'] else 'no'} ({largest}: {cost:.2f} of the network's work, "
        f"but {held:.1f} times its numbers are held). With a 2 x {last} network on tumours 400 examples reach "
        f"{reached:.0f} leaves and {known:.1%} of other examples fall into one of them: no rules for people; and a "
        "smooth activation has no finite tree. Hence partly",
        figure=bars(
            "Leaves of the tree that equals a network on moons",
            [
                row | {"leaves": kind}
                for kind in ("feasible leaves", "leaves when joined", "leaves reached by 400 examples")
                for row in rows_of(numbers, "moons, {network}: " + kind)
            ],
            category="network",
            value="value",
            series="leaves",
            value_title="leaves",
            log=True,
        ),
    )


STUDY = Study(
    paper="neural-networks-are-decision-trees",
    claim="A piecewise-linear network is a decision tree with linear splits, exactly (largest difference over 10 000 "
    "random points below 1e-9 in float64; leaves within a box are the regions that cutting the plane finds), useful to "
    "read and cheaper for small networks, and so for any activation. Controls: untrained networks; the leaves that the "
    "data reach beside all feasible ones; straight pieces instead of tanh.",
    null="Tree and network differ somewhere, or leaves are not the regions.",
    control="Untrained networks; leaves the data reach beside all feasible ones; straight pieces instead "
    "of tanh.",
    threshold="Largest difference below 1e-9 in float64 over 10 000 points; counts of leaves and regions "
    "equal.",
    measure=measure,
)
