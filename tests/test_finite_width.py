"""Finite-width predictions against ensembles of sampled networks, and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.errors import UsageError
from microtome.interpret.finite_width import ensembles, scale_invariant
from microtome.interpret.gaussian import nonlinearity
from microtome.interpret.mean_field import chi, variance_map


def sampled(name, sigma_w, sigma_b, kernel, width, depth, networks, seed=0):
    """[networks, depth + 1] the common variance of each layer's units, of networks drawn whole."""
    f, generator = nonlinearity(name), torch.Generator().manual_seed(seed)
    z = math.sqrt(kernel) * torch.randn(networks, width, 1, dtype=torch.float64, generator=generator)
    found = [torch.full((networks,), kernel, dtype=torch.float64)]
    for _ in range(depth):
        h = f.value(z)
        found.append(sigma_b**2 + sigma_w**2 * h.square().mean((1, 2)))
        weights = torch.randn(networks, width, width, generator=generator)
        z = sigma_w / math.sqrt(width) * (weights.double() @ h)
        z = z + sigma_b * torch.randn(networks, width, 1, dtype=torch.float64, generator=generator)
    return torch.stack(found, 1)


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b", "kernel"),
    [("tanh", 1.4, 0.3, 0.9), ("gelu", 1.5, 0.2, 0.8), ("relu", 1.3, 0.3, 1.0), ("sin", 1.2, 0.2, 0.7)],
)
def test_kernels_and_fluctuations_are_those_of_sampled_networks(name, sigma_w, sigma_b, kernel):
    width, depth, networks = 96, 4, 3000
    found = sampled(name, sigma_w, sigma_b, kernel, width, depth, networks)
    told = ensembles(name, sigma_w, sigma_b, kernel, [width] * depth)
    for layer in range(1, depth + 1):
        s, t = found[:, layer], told[layer]
        error = float(s.std()) / math.sqrt(networks)
        assert abs(float(s.mean()) - t.kernel - t.correction) < 4.5 * error
        square = (s - s.mean()).square()
        spread = float(square.std()) / math.sqrt(networks)
        # First order: the second is smaller by layers over width.
        assert abs(float(square.mean()) - t.fluctuation) < 4.5 * spread + layer / width * t.fluctuation
        assert spread < 0.1 * t.fluctuation


def test_the_correction_of_the_mean_is_seen_where_it_is_large():
    """Narrow tanh networks: the mean is off the infinite-width kernel by many standard errors, as predicted."""
    width, depth, networks = 10, 6, 60_000
    found = sampled("tanh", 1.6, 0.1, 1.0, width, depth, networks)[:, depth]
    told = ensembles("tanh", 1.6, 0.1, 1.0, [width] * depth)[depth]
    error = float(found.std()) / math.sqrt(networks)
    seen = float(found.mean()) - told.kernel
    assert abs(seen) > 10 * error
    assert seen == pytest.approx(
        told.correction, rel=0.3
    )  # the next order is smaller by 1 / width, times a few


@pytest.mark.parametrize(("name", "each"), [("relu", 5.0), ("identity", 2.0), ("leaky_relu", None)])
def test_scale_invariant_networks_to_all_orders(name, each):
    function = (lambda x: x * 1.0) if name == "identity" else name
    widths = [6, 9, 12]
    exact = scale_invariant(function, widths)
    if each is not None:
        assert exact == pytest.approx(math.prod(1 + each / n for n in widths) - 1, rel=1e-12)
    wide = ensembles(function, 1.3, 0.0, 0.7, [100_000] * 3)[-1]
    assert wide.fluctuation / wide.kernel**2 == pytest.approx(
        scale_invariant(function, [100_000] * 3), rel=1e-3
    )
    f = nonlinearity(function)
    generator, networks = torch.Generator().manual_seed(1), 200_000
    s = torch.ones(networks, dtype=torch.float64)
    for n in widths:  # the chain of common variances, which the units make by themselves
        s = (
            (f.value(s.sqrt()[:, None] * torch.randn(networks, n, dtype=torch.float64, generator=generator)))
            .square()
            .mean(1)
        )
    ratio = s.square() / s.mean().square()
    assert float(ratio.mean()) - 1 == pytest.approx(exact, abs=6 * float(ratio.std()) / math.sqrt(networks))


def test_susceptibilities_are_derivatives_of_the_maps():
    step = 1e-5
    layer = ensembles("gelu", 1.5, 0.2, 0.8, [])[0]
    up, down = (float(variance_map("gelu", 0.8 + d, 1.5, 0.2)) for d in (step, -step))
    assert layer.parallel == pytest.approx((up - down) / (2 * step), rel=1e-7)
    assert layer.perpendicular == pytest.approx(float(chi("gelu", 0.8, 1.5)), rel=1e-12)
    assert layer.kurtosis == 0


def test_the_book_s_critical_gelu_has_both_susceptibilities_at_one():
    """Roberts, Yaida & Hanin give C_b = 0.17292239, C_W = 1.98305826 for the half-stable point of GELU."""
    sigma_w, sigma_b = math.sqrt(1.98305826), math.sqrt(0.17292239)
    from microtome.interpret.mean_field import edge_of_chaos

    edge = edge_of_chaos("gelu", variance=_half_stable("gelu"))
    assert (edge.sigma_w, edge.sigma_b) == pytest.approx((sigma_w, sigma_b), rel=1e-6)


def _half_stable(name):
    from scipy.optimize import brentq

    def off(k):
        layer = ensembles(name, 1.0, 0.0, k, [])[0]
        return layer.parallel / layer.perpendicular - 1

    return brentq(off, 0.5, 20, xtol=1e-13)


def test_what_has_no_answer_is_refused():
    with pytest.raises(UsageError, match="not linear"):
        scale_invariant("tanh", [3])
    with pytest.raises(UsageError, match="no fluctuations"):
        ensembles("relu", 1.0, 0.0, 0.0, [3])
