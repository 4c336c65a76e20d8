"""First weights at the edge of chaos: signals and gradients neither die out nor explode with depth.

Hayou, Doucet & Rousseau 2019; for ReLU this is the initialisation of He et al. 2015.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from microtome.errors import UsageError
from microtome.interpret.mean_field import Edge, edge_of_chaos


def critical_(
    module: nn.Module,
    activation: Any,
    *,
    variance: float | None = None,
    sigma_b: float | None = None,
    generator: torch.Generator | None = None,
) -> Edge:
    """Draw the weights and biases of every linear and convolutional layer within, in place.

    Weights are N(0, sigma_w^2 / fan-in), biases N(0, sigma_b^2), with chi_1 = 1 at the variance the network rests at.
    Other layers stay as they are.

    Args:
        module: a layer, or a network of them.
        activation: what follows the layers: a module, a function or a name (see ``interpret.gaussian``).
        variance: of a unit before the activation, where the network is to rest; 1 if neither this nor ``sigma_b``.
        sigma_b: deviation of the biases, instead; 0 for ReLU.
        generator: for the draws.

    Returns:
        The deviations used.

    Raises:
        UsageError: MT372 when there is no such point; MT373 when the module has no layer to draw, needs a bias that
            it lacks, or transposes a convolution.
    """
    edge = edge_of_chaos(activation, variance=variance, sigma_b=sigma_b)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | _ConvNd)]
    if not layers:
        raise UsageError("MT373", f"{type(module).__name__} has no linear or convolutional layer")
    for layer in layers:
        if isinstance(layer, _ConvTransposeNd):
            raise UsageError(
                "MT373", "units of a transposed convolution have no common fan-in", fix="initialise it apart"
            )
        if layer.bias is None and edge.sigma_b > 0:
            raise UsageError(
                "MT373", f"the edge asks for biases of deviation {edge.sigma_b:.3g}, and a layer has none",
                fix="use bias=True, or sigma_b=0",
            )  # fmt: skip
    for layer in layers:
        fan_in = layer.weight[0].numel()
        with torch.no_grad():
            layer.weight.normal_(0, edge.sigma_w / math.sqrt(fan_in), generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0, edge.sigma_b, generator=generator)
    return edge
