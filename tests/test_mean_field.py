"""Gaussian means against closed forms, and mean-field maps against sampled wide networks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

from microtome.errors import UsageError
from microtome.interpret import gaussian, mean_field
from microtome.nn.critical import critical_

ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "elu", "erf", "sin", "hardtanh", "leaky_relu")


def arc_cosine(q1, q2, c):
    """Cho & Saul 2009, first order: E relu(u) relu(v)."""
    a = math.acos(c)
    return math.sqrt(q1 * q2) * (math.sin(a) + (math.pi - a) * c) / (2 * math.pi)


def arc_sine(q1, q2, c):
    """Williams 1997: E erf(u) erf(v)."""
    k = c * math.sqrt(q1 * q2)
    return 2 / math.pi * math.asin(2 * k / math.sqrt((1 + 2 * q1) * (1 + 2 * q2)))


PAIRS = st.tuples(st.floats(1e-3, 4), st.floats(1e-3, 4), st.floats(-1, 1))


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_two_numbers_agree_with_closed_forms(case):
    relu, erf = gaussian.nonlinearity("relu"), gaussian.nonlinearity("erf")
    assert float(gaussian.pair_mean(relu.value, *case, relu.kinks)) == pytest.approx(
        arc_cosine(*case), abs=1e-12 * math.sqrt(case[0] * case[1])
    )
    assert float(gaussian.pair_mean(relu.slope, *case, relu.kinks)) == pytest.approx(
        (math.pi - math.acos(case[2])) / (2 * math.pi), abs=1e-12
    )
    assert float(gaussian.pair_mean(erf.value, *case)) == pytest.approx(arc_sine(*case), abs=1e-10)


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu"])
def test_two_numbers_agree_with_an_adaptive_integral(name):
    f = gaussian.nonlinearity(name)
    q1, q2, c = 1.3, 0.6, 0.7

    def of(x):
        return float(f.value(torch.tensor(x, dtype=torch.float64)))

    def integrand(y, x):
        v = math.sqrt(q2) * (c * x + math.sqrt(1 - c * c) * y)
        return of(math.sqrt(q1) * x) * of(v) * math.exp(-(x * x + y * y) / 2) / (2 * math.pi)

    truth, _ = integrate.dblquad(integrand, -8, 8, -8, 8, epsabs=1e-7, epsrel=1e-7)
    assert float(gaussian.pair_mean(f.value, q1, q2, c, f.kinks)) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("c", [-0.6, 0.3, 0.95])
def test_kinks_away_from_zero_agree_with_the_bivariate_normal(c):
    """hardtanh has slope 1 where |x| < 1: E f'(u) f'(v) is the probability of a square."""
    f, q1, q2 = gaussian.nonlinearity("hardtanh"), 1.3, 0.6
    k = c * math.sqrt(q1 * q2)
    truth = stats.multivariate_normal.cdf(
        [1, 1], [0, 0], [[q1, k], [k, q2]], abseps=1e-10, releps=1e-10, lower_limit=[-1, -1]
    )
    assert float(gaussian.pair_mean(f.slope, q1, q2, c, f.kinks)) == pytest.approx(truth, abs=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_stated_error_holds_and_ends_of_the_correlation_are_one_number(name):
    f = gaussian.nonlinearity(name)
    for q in (0.1, 1.0, 4.0):
        assert gaussian.error(name, q) < 2e-9
        square = float(mean_field.second_moment(name, q))
        assert float(gaussian.pair_mean(f.value, q, q, 1.0, f.kinks)) == pytest.approx(square, rel=5e-9)
        centre = float(gaussian.mean(f.value, q, f.kinks))
        assert float(gaussian.pair_mean(f.value, q, q, 0.0, f.kinks)) == pytest.approx(
            centre**2, abs=1e-8 * square
        )


def test_kinks_are_found_in_any_function():
    def stairs(x):
        return (x - 0.3).abs() + F.relu(x + 2.25)

    assert gaussian.nonlinearity(stairs).kinks == pytest.approx((-2.25, 0.3), abs=1e-10)
    assert gaussian.nonlinearity(nn.ReLU6()).kinks == pytest.approx((0, 6), abs=1e-10)
    assert gaussian.nonlinearity("tanh").kinks == ()
    with pytest.raises(UsageError, match="jumps"):
        gaussian.nonlinearity(torch.sign)
    with pytest.raises(UsageError, match="no activation 'rleu'"):
        gaussian.nonlinearity("rleu")


def test_relu_rests_at_the_initialisation_of_he():
    edge = mean_field.edge_of_chaos("relu")
    assert (edge.sigma_w, edge.sigma_b) == pytest.approx((math.sqrt(2), 0), abs=1e-12)
    with pytest.raises(UsageError, match="no edge of chaos"):
        mean_field.edge_of_chaos("relu", sigma_b=0.1)


@pytest.mark.parametrize(
    ("name", "sigma_b", "expected"),
    [("erf", 0.0, math.sqrt(math.pi) / 2), ("tanh", 0.0, 1.0), ("selu", 0.0, None), ("tanh", 0.2, None)],
)
def test_an_edge_with_given_biases(name, sigma_b, expected):
    edge = mean_field.edge_of_chaos(name, sigma_b=sigma_b)
    if expected is not None:
        assert edge.sigma_w == pytest.approx(expected, rel=1e-9)
    assert edge.sigma_b == pytest.approx(sigma_b, abs=1e-9)
    if edge.variance:
        assert float(
            mean_field.variance_map(name, edge.variance, edge.sigma_w, edge.sigma_b)
        ) == pytest.approx(edge.variance, rel=1e-9)
    assert float(mean_field.chi(name, edge.variance, edge.sigma_w)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "stable"), [("tanh", True), ("elu", True), ("silu", False), ("gelu", False)]
)
def test_an_edge_says_whether_networks_stay_on_it(name, stable):
    edge = mean_field.edge_of_chaos(name, sigma_b=0.2)
    assert (edge.parallel < 1) == stable
    step = 1e-5
    sides = [
        float(mean_field.variance_map(name, edge.variance + d, edge.sigma_w, edge.sigma_b))
        for d in (-step, step)
    ]
    assert (sides[1] - sides[0]) / (2 * step) == pytest.approx(edge.parallel, rel=1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_an_unstable_rest_at_zero_is_no_edge(name):
    with pytest.raises(UsageError, match="no edge of chaos with sigma_b=0"):
        mean_field.edge_of_chaos(name, sigma_b=0.0)


@given(st.sampled_from(["tanh", "erf", "gelu"]), st.floats(0.3, 3), st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_a_fixed_point_is_one(name, sigma_w, sigma_b):
    try:
        rest = mean_field.fixed_point(name, sigma_w, sigma_b)
    except UsageError:
        assert name == "gelu"  # bounded activations cannot grow without bound
        return
    q, c = rest.variance, rest.correlation
    assert float(mean_field.variance_map(name, q, sigma_w, sigma_b)) == pytest.approx(q, rel=1e-8)
    assert float(mean_field.correlation_map(name, c, q, sigma_w, sigma_b)) == pytest.approx(c, abs=1e-7)
    assert (rest.phase == "chaotic") == (rest.chi > 1 + 1e-6)
    assert rest.slope <= 1 + 1e-6
    step = 1e-4
    if step < c < 1 - step:
        sides = [float(mean_field.correlation_map(name, c + d, q, sigma_w, sigma_b)) for d in (-step, step)]
        assert (sides[1] - sides[0]) / (2 * step) == pytest.approx(rest.slope, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b"), [("relu", 1.3, 0.2), ("tanh", 1.8, 0.1), ("gelu", 1.5, 0.3)]
)
def test_maps_are_those_of_sampled_wide_networks(name, sigma_w, sigma_b):
    width, depth, seeds = 2048, 4, 30
    f = gaussian.nonlinearity(name)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    found = torch.zeros(seeds, depth + 1, 3, dtype=torch.float64)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        h = x
        for layer in range(depth + 1):
            z = h @ torch.randn(h.shape[1], width, generator=generator) * sigma_w / math.sqrt(h.shape[1])
            z = (z + sigma_b * torch.randn(width, generator=generator)).double()
            found[seed, layer] = torch.stack(
                [z[0].square().mean(), z[1].square().mean(), (z[0] * z[1]).mean()]
            )
            h = f.value(z).float()
    first = sigma_w**2 * (x.double() @ x.double().T) / 64 + sigma_b**2
    q = (float(first[0, 0]), float(first[1, 1]))
    variances, c = mean_field.propagated(
        name, q, float(first[0, 1]) / math.sqrt(q[0] * q[1]), sigma_w, sigma_b, depth
    )
    told = torch.stack([variances[:, 0], variances[:, 1], c * variances.prod(1).sqrt()], 1)
    # Student t of 30 networks: 15 correlated comparisons, each at a level of 1e-4.
    standard_error = found.std(0) / math.sqrt(seeds)
    assert bool(((found.mean(0) - told).abs() <= 4.5 * standard_error).all())
    # The test can tell 10 % apart.
    scale = torch.stack([variances[:, 0], variances[:, 1], variances.prod(1).sqrt()], 1)
    assert bool((standard_error / scale < 0.022).all())


def test_critical_draws_what_it_says():
    model = nn.Sequential(nn.Conv2d(3, 64, 5), nn.Tanh(), nn.Flatten(), nn.Linear(64 * 16, 400))
    edge = critical_(model, nn.Tanh(), variance=0.5, generator=torch.Generator().manual_seed(0))
    assert float(mean_field.chi("tanh", 0.5, edge.sigma_w)) == pytest.approx(1, abs=1e-9)
    model.requires_grad_(False)
    for layer, fan_in in ((model[0], 75), (model[3], 1024)):
        n = layer.weight.numel()
        assert float(layer.weight.square().mean()) * fan_in == pytest.approx(
            edge.sigma_w**2, rel=5 * math.sqrt(2 / n)
        )
        m = layer.bias.numel()
        assert float(layer.bias.square().mean()) == pytest.approx(edge.sigma_b**2, rel=5 * math.sqrt(2 / m))


def test_critical_refuses_what_it_cannot_draw():
    with pytest.raises(UsageError, match="no linear or convolutional layer"):
        critical_(nn.ReLU(), "relu")
    with pytest.raises(UsageError, match="asks for biases"):
        critical_(nn.Linear(3, 3, bias=False), "tanh")
    with pytest.raises(UsageError, match="transposed"):
        critical_(nn.ConvTranspose2d(3, 3, 2), "relu")
    with pytest.raises(UsageError, match="give one of them"):
        critical_(nn.Linear(3, 3), "tanh", variance=1.0, sigma_b=0.1)
