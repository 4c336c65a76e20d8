"""What finite width adds to mean-field theory: how much networks of one width and depth differ from each other.

Given the activations of a layer, the next one's units are exactly Gaussian and independent, with one variance that
they share: S' = sigma_b^2 + sigma_w^2 mean_i f(sqrt(S) x_i)^2 over the n units. S is random from network to network.
To first order in 1 / n (Roberts, Yaida & Hanin 2022, chapter 4), with g(K) = E f(x)^2, x ~ N(0, K):

- kernel       K' = sigma_b^2 + sigma_w^2 g(K)
- fluctuation  Var S' = sigma_w^4 (E f^4 - g^2) / n + chi_par^2 Var S    (the four-point vertex over the width)
- correction   E S' - K' = chi_par (E S - K) + sigma_w^2 g''(K) Var S / 2
- chi_par = sigma_w^2 g'(K), chi_perp = sigma_w^2 E f'^2: both are 1 at criticality

A unit's excess kurtosis is 3 Var S / K^2, which grows as depth over width. For functions linear on both sides of 0,
without biases, S is a product of independent factors and ``scale_invariant`` has all orders: with A2 and A4 the mean
second and fourth power, E S^2 = K^2 prod (1 + (A4 / A2^2 - 1) / n): 1 + 5 / n a layer for ReLU, 1 + 2 / n for a linear
network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from microtome.errors import UsageError
from microtome.interpret.dual_activations import two_slopes
from microtome.interpret.gaussian import mean, nonlinearity


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """One layer of units over networks drawn at random.

    Attributes:
        kernel: variance of a unit at infinite width.
        correction: what finite width adds to its mean, to first order in 1 / width.
        fluctuation: variance from network to network of the units' common variance.
        parallel: chi_par of the step from here, the factor of a small change of the kernel.
        perpendicular: chi_perp of the step from here, the factor of a small difference between inputs.
    """

    kernel: float
    correction: float
    fluctuation: float
    parallel: float
    perpendicular: float

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis of a unit: 0 when it is Gaussian."""
        return 3 * self.fluctuation / self.kernel**2


def ensembles(
    activation: Any, sigma_w: float, sigma_b: float, kernel: float, widths: Sequence[int]
) -> tuple[Ensemble, ...]:
    """Layers from the first, whose units are exactly Gaussian, to the one after ``widths``.

    Args:
        activation: a module, a function or a name.
        sigma_w: deviation of weights times the root of the fan-in.
        sigma_b: deviation of biases.
        kernel: variance of a unit of the first layer: sigma_w^2 |x|^2 / d + sigma_b^2.
        widths: units of the layers that are summed over, from the first on; one layer more is returned.

    Raises:
        UsageError: MT377 for a kernel that is not positive.
    """
    if not kernel > 0:
        raise UsageError("MT377", f"a variance of {kernel:g} has no fluctuations", fix="give one above 0")
    f = nonlinearity(activation)
    k, shift, spread = kernel, 0.0, 0.0
    found = []
    for place in range(len(widths) + 1):

        def moment(weight: Any, k: float = k) -> float:
            return float(mean(lambda x: weight(x, f.value(x).square()), k, f.kinks))

        g = moment(_second)
        slope = moment(lambda x, y: y * (x * x - k)) / (2 * k**2)  # noqa: B023 - used at once
        bend = moment(lambda x, y: y * (x**4 - 6 * k * x * x + 3 * k**2)) / (4 * k**4)  # noqa: B023
        parallel = sigma_w**2 * slope
        perpendicular = sigma_w**2 * float(mean(lambda x: f.slope(x).square(), k, f.kinks))
        found.append(Ensemble(kernel=k, correction=shift, fluctuation=spread, parallel=parallel,
                              perpendicular=perpendicular))  # fmt: skip
        if place == len(widths):
            break
        fourth = moment(lambda x, y: y * y)
        shift = parallel * shift + sigma_w**2 * bend * spread / 2
        spread = sigma_w**4 * (fourth - g * g) / widths[place] + parallel**2 * spread
        k = sigma_b**2 + sigma_w**2 * g
    return tuple(found)


def _second(_: Tensor, y: Tensor) -> Tensor:
    return y


def scale_invariant(activation: Any, widths: Sequence[int]) -> float:
    """Var S / (E S)^2 after these widths, to all orders, of networks without biases.

    Raises:
        UsageError: MT377 for a function that is not linear on both sides of 0.
    """
    f = nonlinearity(activation)
    slopes = two_slopes(f)
    if slopes is None:
        raise UsageError("MT377", f"'{f.name}' is not linear on both sides of 0", fix="use ensembles")
    second, fourth = (sum(abs(s) ** p for s in slopes) / 2 for p in (2, 4))
    each = 3 * fourth / second**2 - 1
    return math.prod(1 + each / n for n in widths) - 1


__all__ = ["Ensemble", "ensembles", "scale_invariant"]
