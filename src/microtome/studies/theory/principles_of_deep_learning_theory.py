"""Do networks differ from each other as depth over width, and does criticality turn exponential decay into powers?"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.figures import line
from microtome.interpret.finite_width import ensembles, scale_invariant
from microtome.interpret.mean_field import variance_map
from microtome.study import Measured, Outcome, Study


def identity(x: Tensor) -> Tensor:
    """A linear network's activation."""
    return x * 1.0


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": identity,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sin": torch.sin,
}
CRITICAL = {
    "linear": (1.0, 0.0, 1.0),
    "relu": (math.sqrt(2), 0.0, 1.0),
    "tanh": (1.0, 0.0, 1.0),
    "gelu": (math.sqrt(1.98305826), math.sqrt(0.17292239), 3.0),
    "sin": (1.0, 0.0, 1.0),
}
"""sigma_w, sigma_b and the first variance; GELU's half-stable point is the book's."""


def shared(
    name: str, width: int, depth: int, networks: int, seed: int, sigma: tuple[float, float, float]
) -> Tensor:
    """[networks, depth + 1] the variance that the units of each layer share, of networks drawn whole, in stacks."""
    generator = torch.Generator().manual_seed(seed)
    f, (w, b, kernel) = FUNCTIONS[name], sigma
    z = math.sqrt(kernel) * torch.randn(networks, width, 1, generator=generator)
    found = [torch.full((networks,), kernel, dtype=torch.float64)]
    for _ in range(depth):
        h = f(z)
        found.append(b**2 + w**2 * h.double().square().mean((1, 2)))
        weights = torch.randn(networks, width, width, generator=generator)
        z = (w / math.sqrt(width)) * torch.bmm(weights, h) + b * torch.randn(
            networks, width, 1, generator=generator
        )
    return torch.stack(found, 1)


def many(name: str, width: int, depth: int, networks: int, seed: int) -> Tensor:
    """As ``shared``, a stack of bounded memory at a time."""
    step = max((1 << 22) // width**2, 1)
    parts = [shared(name, width, depth, min(step, networks - at), 1_000_003 * seed + at, CRITICAL[name])
             for at in range(0, networks, step)]  # fmt: skip
    return torch.cat(parts)


def kurtosis(s: Tensor) -> tuple[float, float]:
    """Excess kurtosis of a unit, 3 Var S / (E S)^2, and its standard error by the delta method."""
    ratio = 3 * (s / s.mean()).square()
    influence = ratio - 2 * ratio.mean() * (s / s.mean())
    return float(ratio.mean()) - 3, float(influence.std()) / math.sqrt(len(s))


def grid(smoke: bool, seed: int) -> tuple[dict[str, float], dict[str, bool], list[dict[str, object]]]:
    """Kernels and kurtoses over depths and widths, at criticality."""
    widths, depth, networks = ((16, 32), 4, 200) if smoke else ((32, 64, 128), 12, 1500)
    numbers: dict[str, float] = {}
    points: list[dict[str, object]] = []
    straight, sloped, inside, cells = [], [], 0, 0
    for number, name in enumerate(FUNCTIONS):
        x, y, expected = [], [], []
        for width in widths:
            found = many(name, width, depth, networks, 100 * seed + 10 * number + width)
            told = ensembles(FUNCTIONS[name], *CRITICAL[name], [width] * depth)
            for layer in range(1, depth + 1):
                s, t = found[:, layer], told[layer]
                cells += 1
                gap = abs(float(s.mean()) - t.kernel - t.correction)
                inside += gap <= 3 * float(s.std()) / math.sqrt(networks)
                if layer / width <= 0.1:
                    x.append(layer / width)
                    y.append(kurtosis(s)[0])
                    expected.append(t.kurtosis)
                    points.append({"depth / width": x[-1], "excess kurtosis": y[-1], "activation": name})
        at, measured, predicted = np.array(x), np.array(y), np.array(expected)
        slope, theory = float(at @ measured / (at @ at)), float(at @ predicted / (at @ at))
        r2 = 1 - float(((measured - slope * at) ** 2).sum() / ((measured - measured.mean()) ** 2).sum())
        numbers |= {f"{name}: slope of kurtosis in depth / width": slope, f"{name}: slope predicted": theory,
                    f"{name}: R^2 of the line through 0": r2}  # fmt: skip
        straight.append(r2 >= 0.9)
        sloped.append(abs(slope / theory - 1) <= 0.25)
        if name in ("linear", "relu"):
            k, error = kurtosis(many(name, 16, 4, 20 * networks, 100 * seed + 77)[:, -1])
            exact = 3 * scale_invariant(FUNCTIONS[name], [16] * 4)
            key = f"{name}, 4 layers of 16: kurtosis"
            numbers |= {key: k, f"{key} to all orders": exact, f"{key}, standard error": error}
            sloped.append(abs(k - exact) <= 4 * error)
    numbers |= {"means of kernels": cells, "means within 3 standard errors of the prediction": inside}
    return numbers, {"kernels": inside >= 0.95 * cells, "straight in depth / width": all(straight),
                     "at the predicted slope": all(sloped)}, points  # fmt: skip


def decay(smoke: bool, seed: int) -> tuple[dict[str, float], dict[str, bool]]:
    """tanh: the kernel by depth at criticality, and off it."""
    width, depth, networks = (64, 24, 10) if smoke else (256, 64, 100)
    layers = np.arange(depth // 4, depth + 1)
    numbers: dict[str, float] = {}
    better = {}
    for place, w in (("critical", 1.0), ("off", 0.9)):
        parts = [
            shared("tanh", width, depth, 10, 900_000 + 1000 * seed + i, (w, 0.0, 1.0))
            for i in range(networks // 10)
        ]
        kernel = torch.cat(parts).mean(0).numpy()[layers]
        k, told = 1.0, [1.0]
        for _ in range(depth):
            k = float(variance_map("tanh", k, w, 0.0))
            told.append(k)
        logs = np.log(kernel)
        power = np.polyfit(np.log(layers), logs, 1, full=True)
        rate = np.polyfit(layers, logs, 1, full=True)
        mapped = np.polyfit(np.log(layers), np.log(np.array(told)[layers]), 1)[0]
        numbers[f"tanh, {place}: exponent of the kernel in depth"] = float(power[0][0])
        numbers[f"tanh, {place}: exponent by the map"] = float(mapped)
        numbers[f"tanh, {place}: ln of the kernel a layer"] = float(rate[0][0])
        better[place] = float(power[1][0]) < float(rate[1][0])
    near = (
        numbers["tanh, critical: exponent of the kernel in depth"]
        - numbers["tanh, critical: exponent by the map"]
    )
    log_chi = 2 * math.log(0.9)
    numbers["tanh, off: ln chi"] = log_chi
    return numbers, {"a power at criticality": better["critical"] and abs(near) <= 0.1,
                     "exponential off it": not better["off"]
                     and abs(numbers["tanh, off: ln of the kernel a layer"] / log_chi - 1) <= 0.1}  # fmt: skip


def residual(smoke: bool, seed: int) -> tuple[dict[str, float], dict[str, bool]]:
    """ReLU with z' = xi z + W f(z), kernels kept (xi^2 + sigma_w^2 / 2 = 1): relative variance of squared lengths."""
    width, depth, networks = (16, 4, 200) if smoke else (64, 12, 1000)
    numbers: dict[str, float] = {}
    for xi in (0.0, 0.7, 0.9):
        w = math.sqrt(2 * (1 - xi**2))
        found = []
        for part in range(max(networks // 500, 1)):
            generator = torch.Generator().manual_seed(10_000 * seed + part)
            z = torch.randn(min(networks, 500), width, 1, generator=generator)
            z = (
                z / z.square().mean(1, keepdim=True).sqrt()
            )  # the first length is fixed: what follows is the depth's
            for _ in range(depth):
                weights = torch.randn(len(z), width, width, generator=generator)
                z = xi * z + (w / math.sqrt(width)) * torch.bmm(weights, F.relu(z))
            found.append(z.double().square().mean((1, 2)))
        s = torch.cat(found)
        numbers[f"residual weight {xi:g}: relative variance of the squared length"] = float(
            s.var() / s.mean() ** 2
        )
        numbers[f"residual weight {xi:g}: mean squared length"] = float(s.mean())
    plain, strong = (
        numbers[f"residual weight {xi}: relative variance of the squared length"] for xi in ("0", "0.9")
    )
    return numbers, {"residuals extend depth": strong < 0.5 * plain}


def measure(smoke: bool, seed: int = 0) -> Measured:
    """The grid, decay by depth, residual connections."""
    numbers, holds, points = grid(smoke, seed)
    for part in (decay, residual):
        more, also = part(smoke, seed)
        numbers, holds = numbers | more, holds | also
    core = holds["straight in depth / width"] and holds["at the predicted slope"]
    verdict: Outcome = "reproduced" if all(holds.values()) else "partly" if core else "not reproduced"
    said = "; ".join(f"{name}: {'yes' if value else 'no'}" for name, value in holds.items())
    slopes = ", ".join(
        f"{n} {numbers[f'{n}: slope of kurtosis in depth / width']:.2f} of "
        f"{numbers[f'{n}: slope predicted']:.2f}" for n in FUNCTIONS
    )  # fmt: skip
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,
        decided_by=f"{said}. Slopes: {slopes}",
        figure=line("Excess kurtosis of a unit by depth over width", points, x="depth / width", y="excess kurtosis",
                    series="activation"),
        conditions=("networks at initialisation; the claims on training and on the best aspect ratio are not tested",
                    "depth / width up to 0.1, where the first order is meant to hold"),
    )  # fmt: skip


STUDY = Study(
    paper="principles-of-deep-learning-theory",
    claim="At criticality a unit's excess kurtosis over networks grows in a straight line with depth over width, at "
    "the slope of the four-point recursion; tanh's kernel falls as a power of depth at criticality and exponentially "
    "off it; residual connections keep networks alike over more layers.",
    null="Kurtosis depends on depth or width otherwise, or decay is of one kind on and off criticality.",
    control="Kernels with their first-order corrections; the product to all orders for linear and ReLU networks; "
    "sigma_w of 0.9; residual weight 0.",
    threshold="95 % of means of kernels within 3 standard errors; R^2 of the line through 0 at least 0.9 and slopes "
    "within 25 % of the predicted ones for all five activations (1500 networks, widths 32 to 128, depth / width up to "
    "0.1); within 4 standard errors of all orders; exponent within 0.1 of the map's, rate within 10 % of ln chi, the "
    "better of two fits; half the variance of squared lengths at residual weight 0.9.",
    measure=measure,
    uses=("microtome.interpret.finite_width:ensembles", "microtome.interpret.finite_width:scale_invariant"),
    example="from microtome.interpret.finite_width import ensembles\n\n"
    "ensembles('gelu', 1.5, 0.2, 1.0, [128] * 8)[-1].kurtosis",
)
