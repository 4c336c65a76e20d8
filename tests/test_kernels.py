"""Kernels of infinite width against slow recursions from closed forms, and against sampled wide networks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microtome.errors import SubjectError
from microtome.interpret import capture
from microtome.interpret.kernels import infinite_width_kernels

# --- slow oracles: one pair of inputs, one pair of positions at a time


def relu_dual(a, b, k):
    """Cho & Saul 2009: (E relu relu, E step step)."""
    angle = math.acos(max(-1.0, min(1.0, k / math.sqrt(a * b))))
    value = math.sqrt(a * b) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
    return value, (math.pi - angle) / (2 * math.pi)


def erf_dual(a, b, k):
    """Williams 1997, and its derivative."""
    m = (1 + 2 * a) * (1 + 2 * b)
    return 2 / math.pi * math.asin(2 * k / math.sqrt(m)), 4 / math.pi / math.sqrt(m - 4 * k * k)


def dense_oracle(x, dual, depth, sigma_w, sigma_b):
    """NTK parametrisation: layers of weights with a function between each two."""
    n = len(x)
    nngp, ntk = torch.zeros(n, n), torch.zeros(n, n)
    for i, j in itertools.product(range(n), repeat=2):
        pair = {(p, q): float(x[p] @ x[q]) / x.shape[1] for p in (i, j) for q in (i, j)}
        tangent = 0.0
        for layer in range(depth):
            slope = 1.0
            if layer:
                duals = {(p, q): dual(pair[p, p], pair[q, q], pair[p, q]) for p, q in pair}
                pair, slope = {key: value for key, (value, _) in duals.items()}, duals[i, j][1]
            pair = {key: sigma_w**2 * value + sigma_b**2 for key, value in pair.items()}
            tangent = pair[i, j] + sigma_w**2 * slope * tangent
        nngp[i, j], ntk[i, j] = pair[i, j], tangent
    return nngp, ntk


class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)


@pytest.mark.parametrize(("function", "dual"), [(nn.ReLU, relu_dual), (Erf, erf_dual)])
def test_dense_kernels_are_the_published_recursions(function, dual):
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        model = nn.Sequential(nn.Linear(5, 4), function(), nn.Linear(4, 4), function(), nn.Linear(4, 2))
        found = infinite_width_kernels(model, x, sigma_w=1.4, sigma_b=0.3, parametrization="ntk")
        nngp, ntk = dense_oracle(x, dual, 3, 1.4, 0.3)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.nngp, nngp, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.ntk, ntk, rtol=1e-12, atol=1e-12)


def conv_oracle(x, sigma_w, sigma_b, stride, padding, pooled):
    """conv 3x3, ReLU, conv 2x2 with stride and padding, ReLU, flatten or pool, linear: by loops over positions."""
    n, channels, side, _ = x.shape
    cells = list(itertools.product(range(side), repeat=2))
    k = {(i, p, j, q): float(x[i, :, p[0], p[1]] @ x[j, :, q[0], q[1]]) / channels
         for i in range(n) for j in range(n) for p in cells for q in cells}  # fmt: skip
    t = dict.fromkeys(k, 0.0)
    for taps, s, pad in ((3, 1, 1), (2, stride, padding)):
        size = (side + 2 * pad - taps) // s + 1
        new = list(itertools.product(range(size), repeat=2))
        shifts = list(itertools.product(range(taps), repeat=2))

        def over(values, i, p, j, q, s=s, pad=pad, shifts=shifts):
            def at(cell, d):
                return (cell[0] * s - pad + d[0], cell[1] * s - pad + d[1])

            return sum(values.get((i, at(p, d), j, at(q, d)), 0.0) for d in shifts) / len(shifts)

        every = [(i, p, j, q) for i in range(n) for j in range(n) for p in new for q in new]
        tangent = {key: sigma_w**2 * over(t, *key) for key in every}
        k = {key: sigma_w**2 * over(k, *key) + sigma_b**2 for key in every}
        t = {key: tangent[key] + k[key] for key in every}
        duals = {(i, p, j, q): relu_dual(k[i, p, i, p], k[j, q, j, q], k[i, p, j, q]) for i, p, j, q in every}
        k = {key: duals[key][0] for key in every}
        t = {key: duals[key][1] * t[key] for key in every}
        side, cells = size, new
    nngp, ntk = torch.zeros(n, n), torch.zeros(n, n)
    for i, j in itertools.product(range(n), repeat=2):
        pairs = [(p, q) for p in cells for q in cells if pooled or p == q]
        mean = sum(k[i, p, j, q] for p, q in pairs) / len(pairs)
        nngp[i, j] = sigma_w**2 * mean + sigma_b**2
        ntk[i, j] = nngp[i, j] + sigma_w**2 * sum(t[i, p, j, q] for p, q in pairs) / len(pairs)
    return nngp, ntk


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_convolutional_kernels_are_the_published_recursions(pooled, stride, padding):
    torch.set_default_dtype(torch.float64)
    try:
        x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        side = (4 + 2 * padding - 2) // stride + 1
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)]
        head = end if pooled else [nn.Flatten(), nn.Linear(5 * side**2, 2)]
        layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 5, 2, stride, padding), nn.ReLU()]
        found = infinite_width_kernels(
            nn.Sequential(*layers, *head), x, sigma_w=1.3, sigma_b=0.2, parametrization="ntk"
        )
        nngp, ntk = conv_oracle(x, 1.3, 0.2, stride, padding, pooled)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.nngp, nngp, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.ntk, ntk, rtol=1e-11, atol=1e-12)


# --- sampled networks


class Residual(nn.Module):
    """Two residual blocks after a first layer."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(8, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.last = nn.Linear(width, 1)

    def forward(self, x):
        h = self.first(x)
        for layer in self.inner:
            h = h + 0.5 * layer(torch.tanh(h))
        return self.last(F.relu(h))


class ChannelsLast(nn.Module):
    """A token mixer without mixing: the same layers at every position, then a mean over them."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.c(F.gelu(self.b(F.silu(self.a(x.transpose(1, 2))))).mean(1))


def dense(width):
    layers = [nn.Linear(8, width), nn.GELU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    return nn.Sequential(*layers)


def flat(width):
    layers = [nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(
        *layers, nn.Conv2d(width, width, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(width * 4, 1)
    )


CASES = {
    "dense": (dense, 512, (8,)),
    "residual": (Residual, 512, (8,)),
    "channels last": (ChannelsLast, 384, (4, 5)),
    "convolutional": (flat, 96, (2, 6, 6)),
}


def redrawn(model, seed, sigma_w=1.3, sigma_b=0.4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.normal_(0, sigma_w / math.sqrt(layer.weight[0].numel()), generator=generator)
                layer.bias.normal_(0, sigma_b, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_those_of_sampled_wide_networks(name):
    build, width, shape = CASES[name]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    model, seeds = build(width), 40
    told = infinite_width_kernels(model, x, sigma_w=1.3, sigma_b=0.4)
    outputs, tangents = [], []
    for seed in range(seeds):
        redrawn(model, seed)
        y = model(x)[:, 0]
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(v, model.parameters(), retain_graph=True)])
            for v in y
        ]
        jacobian = torch.stack(rows).double()
        tangents.append(jacobian @ jacobian.T)
        # The last layer's covariance given the one before: what the outputs' own product would be a noisy sample of.
        outputs.append(_given_last(model, x))
    for found, truth, least in ((outputs, told.nngp, 0.05), (tangents, told.ntk, 0.05)):
        each = torch.stack(found)
        error = each.std(0) / math.sqrt(seeds)
        assert bool(((each.mean(0) - truth).abs() <= 4.3 * error).all())  # Student t of 39: a level of 1e-4
        assert bool((error <= least * truth.diagonal().mean()).all())  # and wrong by a fifth would be seen


def _given_last(model, x):
    seen = []
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_hook(lambda module, args, result: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    h = seen[0].double()
    return 1.3**2 * h @ h.T / h.shape[1] + 0.4**2


def test_own_variances_are_read_from_the_weights():
    model = redrawn(dense(400), 1, 1.1, 0.25)
    x = torch.randn(4, 8)
    own = infinite_width_kernels(model, x)
    layers = [s for s in own.steps if s.kind == "weights"]
    for step, layer in zip(layers, [m for m in model if isinstance(m, nn.Linear)], strict=True):
        assert step.sigma_w == pytest.approx(
            float(layer.weight.detach().square().mean()) ** 0.5 * layer.in_features**0.5
        )
        assert step.sigma_b == pytest.approx(float(layer.bias.detach().square().mean()) ** 0.5)
    given = infinite_width_kernels(model, x, sigma_w=1.1, sigma_b=0.25)
    # Three layers of at most 400 weights at the end: mean squares within 5 sqrt(2 / 400).
    assert float((own.nngp / given.nngp - 1).abs().max()) < 3 * 5 * math.sqrt(2 / 400)


# --- properties


@given(st.integers(0, 10_000), st.sampled_from(["dense", "residual", "convolutional"]))
@settings(max_examples=6, deadline=None)
def test_kernels_are_symmetric_positive_and_follow_the_inputs(seed, name):
    build, _, shape = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, *shape, generator=generator)
    model = redrawn(build(8), seed)
    found = infinite_width_kernels(model, x)
    order = torch.randperm(5, generator=generator)
    moved = infinite_width_kernels(model, x[order])
    for whole, other in ((found.nngp, moved.nngp), (found.ntk, moved.ntk)):
        torch.testing.assert_close(whole, whole.T, rtol=1e-12, atol=1e-12)
        assert float(torch.linalg.eigvalsh(whole)[0]) > -1e-10 * float(whole.diagonal().max())
        torch.testing.assert_close(other, whole[order][:, order], rtol=1e-9, atol=1e-12)


def test_all_pairs_of_positions_hold_what_single_positions_do():
    """A pool of size 1 asks for all pairs and changes nothing."""
    x = torch.randn(3, 2, 5, 5)
    head = [nn.Flatten(), nn.Linear(3 * 9, 2)]
    layers = [nn.Conv2d(2, 3, 3), nn.Tanh()]
    model = redrawn(nn.Sequential(*layers, nn.AvgPool2d(1), *head), 0)
    without = nn.Sequential(*[m for m in model if not isinstance(m, nn.AvgPool2d)])
    first, second = infinite_width_kernels(model, x), infinite_width_kernels(without, x)
    torch.testing.assert_close(first.ntk, second.ntk, rtol=1e-12, atol=1e-12)
    assert float(first.ntk.abs().max()) > 0


def test_layers_and_an_earlier_end_can_be_asked_for():
    model = nn.Sequential(*dense(16), nn.Softmax(1))
    x = torch.randn(3, 8)
    with pytest.raises(SubjectError, match="softmax"):
        infinite_width_kernels(model, x)
    found = infinite_width_kernels(model, x, output="4", layers=["2"])
    torch.testing.assert_close(found.nngp, infinite_width_kernels(model[:5], x).nngp)
    torch.testing.assert_close(found.at["2"].ntk, infinite_width_kernels(model[:3], x).ntk)


class Shared(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how

    def forward(self, x):
        h = self.a(x)
        if self.how == "again":
            return self.a(torch.tanh(h))
        if self.how == "sum":
            return self.b(h + torch.tanh(h))
        if self.how == "twice":
            return h + h
        if self.how == "mean":
            return h.mean()
        if self.how == "scale":
            return h * self.b.bias
        return torch.relu(torch.relu(h))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("again", "again"),
        ("sum", "share their last weights"),
        ("twice", "share"),
        ("mean", "aten.mean"),
        ("scale", "multiplies"),
        ("relu", "Gaussian"),
    ],
)
def test_what_has_no_recursion_is_refused(how, words):
    with pytest.raises(SubjectError, match=words):
        infinite_width_kernels(Shared(how), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Conv2d(2, 4, 3, groups=2), nn.ReLU()], "in groups"),
        ([nn.ConvTranspose2d(2, 4, 3), nn.ReLU()], "transposed"),
        ([nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)], "max_pool2d"),
        ([nn.Conv2d(2, 4, 3), nn.PReLU(4)], "for each unit"),
        ([nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)], "MT375"),
        ([nn.AvgPool2d(2)], "no random weights"),
    ],
)
def test_convolutions_that_have_no_rule_or_are_too_large_are_refused(layers, words):
    limit = 1000 if words == "MT375" else 1 << 20
    with pytest.raises(SubjectError, match=words):
        infinite_width_kernels(nn.Sequential(*layers), torch.randn(2, 2, 6, 6), limit=limit)


def test_a_captured_program_serves_again_with_other_inputs():
    model = redrawn(dense(8), 0)
    graph = capture(model, (torch.randn(2, 8),))
    x = torch.randn(5, 8)
    torch.testing.assert_close(infinite_width_kernels(graph, x).ntk, infinite_width_kernels(model, x).ntk)
