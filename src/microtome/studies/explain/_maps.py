"""What the studies of maps share: small networks trained on digits, maps by every method, and their judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.interpret import Graph, capture
from microtome.interpret.bias_gradients import decomposed, saliency
from microtome.interpret.gates import ExcitationPullback, GuidedBackprop, pulled_back
from microtome.interpret.relevance import composite, of_class, relevance
from microtome.population import Population, Recipe, every
from microtome.population import train as train_all
from microtome.population.program import State
from microtome.statistics import spearman, student

Maps = Callable[[nn.Module, Graph, Tensor, Tensor], Tensor]
"""(network, its program, inputs, classes) -> [n, h, w]."""


class Cnn(nn.Module):
    """Three convolutions, the first two with batch-norm when asked for, and a dense layer."""

    def __init__(
        self, classes: int = 10, width: int = 8, norm: bool = False, size: int = 8,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(2 * width) if norm else nn.Identity()
        self.hidden, self.head = nn.Linear(2 * width * (size // 2) ** 2, 32), nn.Linear(32, classes)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, h, w] -> [n, classes]."""
        x = self.activation(self.norm1(self.conv1(x)))
        x = F.avg_pool2d(self.activation(self.norm2(self.conv2(x))), 2)
        x = self.activation(self.conv3(x))
        return self.head(self.activation(self.hidden(x.flatten(1))))


def train(
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    seed: int,
    epochs: int,
    after: Callable[[State], None] = lambda parameters: None,
) -> nn.Module:
    """Adam at 3e-3, batches of 64; ``after`` is done to the parameters at first and after each step."""
    population = Population.of(make, [seed])
    recipe = Recipe(optimizer="adam", rate=3e-3, epochs=epochs, batch_size=64)
    watched = [(lambda now: after(now.population.parameters), every(1))]
    train_all(population, x, y, recipe, observers=watched)
    return population.member(0).eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def _slope(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    score = model(leaf).gather(1, classes[:, None]).sum()
    return torch.autograd.grad(score, leaf)[0]


def by_gradient(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
    """Size of the gradient."""
    return _slope(model, x, classes).abs().sum(1)


def by_input_times_gradient(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
    """Gradient times input."""
    return (_slope(model, x, classes) * x).sum(1)


def by_integrated_gradients(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
    """From a black picture, 16 midpoints."""
    slopes = [_slope(model, x * (i + 0.5) / 16, classes) for i in range(16)]
    return (torch.stack(slopes).mean(0) * x).sum(1)


def by_smoothgrad(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
    """Size of the gradient, mean over 16 noisy copies (0.15 of the range)."""
    noise = torch.randn(16, *x.shape, generator=torch.Generator().manual_seed(0))
    return torch.stack([_slope(model, x + 0.15 * n, classes).abs() for n in noise]).mean(0).sum(1)


def _through(domain: object) -> Maps:
    def maps(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
        def slope(outputs: Tensor) -> Tensor:
            return F.one_hot(classes, outputs.shape[1]).to(outputs.dtype)

        found = pulled_back(graph, (x,), slope, domain)  # type: ignore[arg-type]
        return next(iter(found.values())).abs().sum(1)

    return maps


by_guided_backprop: Maps = _through(GuidedBackprop())


def by_excitation_pullback(temperature: float) -> Maps:
    """Size of the softly gated gradient."""
    return _through(ExcitationPullback(temperature))


def by_deep_taylor(bounds: tuple[float, float] | None) -> Maps:
    """z^B in the first layer with bounds, w^2 without."""

    def maps(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
        return relevance(graph, (x,), of_class(classes), composite("deep-taylor", bounds=bounds)).map.sum(1)

    return maps


def by_fullgrad(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
    """The paper's map."""
    found, places = decomposed(graph, (x,), lambda out: F.one_hot(classes, out.shape[1]).to(out.dtype))
    return saliency(found, places, (x.shape[2], x.shape[3]))


def at_random(model: nn.Module, graph: Graph, x: Tensor, classes: Tensor) -> Tensor:
    """The control: a random order."""
    return torch.rand(len(x), *x.shape[2:], generator=torch.Generator().manual_seed(1))


def removal(
    model: nn.Module, x: Tensor, classes: Tensor, order: Tensor, shares: Sequence[float], most: bool
) -> Tensor:
    """[shares, n] probability of the class with a share of the pixels at 0, the most (or least) relevant first."""
    ranks = order.flatten(1).argsort(1, descending=most).argsort(1).reshape(len(x), 1, *x.shape[2:])
    found = []
    with torch.no_grad():
        for share in shares:
            masked = x * (ranks >= round(share * ranks[0].numel()))
            found.append(model(masked).softmax(1).gather(1, classes[:, None])[:, 0])
    return torch.stack(found)


STEPS = tuple(i / 16 for i in range(17))


def deletion(model: nn.Module, x: Tensor, classes: Tensor, order: Tensor) -> float:
    """Mean over pictures of the area under the probability as the most relevant pixels go."""
    curve = removal(model, x, classes, order, STEPS, most=True)
    return float(((curve[1:] + curve[:-1]) / 2).mean())


def randomised(
    make: Callable[[], nn.Module], model: nn.Module, layers: Sequence[str], seed: int
) -> nn.Module:
    """A copy with these layers drawn anew."""
    with torch.random.fork_rng():
        torch.manual_seed(1000 + seed)
        fresh = make()
    state = {
        name: (fresh.state_dict()[name] if name.split(".")[0] in layers else value)
        for name, value in model.state_dict().items()
    }
    fresh.load_state_dict(state)
    return fresh.eval()


def alike(a: Tensor, b: Tensor) -> float:
    """Mean rank correlation of maps, picture by picture."""
    found = [
        spearman(p.flatten().numpy(), q.flatten().numpy())
        for p, q in zip(a.detach(), b.detach(), strict=True)
    ]
    return float(np.mean([value for value in found if value is not None] or [0.0]))


def traced(model: nn.Module, x: Tensor) -> Graph:
    """The program of a network; it holds the network's own tensors, so one does however they change."""
    known = _PROGRAMS.setdefault(model, {})
    kind = (x.shape[1:], x.dtype)
    if kind not in known:
        known[kind] = capture(model, (x[:2],))
    return known[kind]


_PROGRAMS: WeakKeyDictionary[nn.Module, dict[Any, Graph]] = WeakKeyDictionary()


def summary(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with Student's interval."""
    mean, low, high = student(list(values))
    return {name: mean, f"{name}, low": low, f"{name}, high": high}
